"""The commands of ``python -m aiostore``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from aiostore.cli.cat import cat
from aiostore.cli.console import say
from aiostore.cli.repair import repair
from aiostore.cli.stats import stats
from aiostore.cli.verify import verify

app = typer.Typer(
    name="aiostore",
    help="Look at, check and repair event stores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _tell_version(asked: bool) -> None:
    if asked:
        say(f"aiostore {version('aiostore')}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool, typer.Option("--version", help="Tell the version and exit.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Look at, check and repair event stores."""


for command in (verify, repair, cat, stats):
    app.command()(command)
