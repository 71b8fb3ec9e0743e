"""What all commands share: where text goes, how errors are told, and what the exit codes mean."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from aiostore.errors import EventStoreError, InvalidEvent, StoreCorrupt


class Code(IntEnum):
    """The exit codes."""

    WHOLE = 0
    DAMAGED = 1
    WRONG_USAGE = 2
    NOT_EXAMINED = 3


AsJson = Annotated[bool, typer.Option("--json", help="Give one JSON object on stdout, and nothing else there.")]

ForceNetwork = Annotated[
    bool, typer.Option("--force-network", help="Use a network file system all the same: for stores that are used so.")
]


def options_of(location: str, *, force_network: bool) -> dict[str, Any]:
    """The options with which a store is opened to be looked at."""
    return {"mode": "r"} | ({"force_network": True} if force_network and "://" not in location else {})


class Interrupted(Exception):
    """A signal asked for the end; ``args[0]`` is its number."""


class OutputClosed(Exception):
    """Nobody reads the output any more."""


def clean(text: str) -> str:
    """The text on one line, printable: a path may have newlines, escape sequences, and bytes that are no text."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace") if _has_surrogates(text) else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def say(text: str = "") -> None:
    """Write a line to stdout."""
    put(text.encode("utf-8", "backslashreplace") + b"\n")


def say_json(value: object) -> None:
    """Write a value to stdout as JSON."""
    put(msgspec.json.format(msgspec.json.encode(_without_surrogates(msgspec.to_builtins(value)))) + b"\n")


def _without_surrogates(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_surrogates(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    return clean(value) if isinstance(value, str) and _has_surrogates(value) else value


def put(data: bytes) -> None:
    """Write the bytes to stdout; `OutputClosed` if nobody reads them."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise OutputClosed from None


def hint(text: str) -> None:
    """Write a line to stderr."""
    typer.echo(clean(text), err=True)


def fail(message: str, code: int, *, as_json: bool = False) -> NoReturn:
    """Tell an error, and exit."""
    hint(f"aiostore: {message}")
    if as_json:
        say_json({"error": clean(message)})
    raise typer.Exit(code)


@contextlib.contextmanager
def told(*, as_json: bool = False) -> Iterator[None]:
    """Errors become one line and an exit code; so do signals, and a closed stdout."""
    warnings = _Warnings(logging.WARNING)
    logger = logging.getLogger("aiostore")
    logger.addHandler(warnings)
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        raise typer.Exit(128 + signal.SIGINT) from None
    except Interrupted as interrupted:
        raise typer.Exit(128 + interrupted.args[0]) from None
    except OutputClosed:
        # What is still in the buffer must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Code.WHOLE) from None
    except InvalidEvent as error:
        fail(str(error), Code.WRONG_USAGE, as_json=as_json)
    except StoreCorrupt as error:
        fail(str(error), Code.DAMAGED, as_json=as_json)
    except EventStoreError as error:
        fail(str(error), Code.NOT_EXAMINED, as_json=as_json)
    except ValueError as error:
        fail(str(error), Code.WRONG_USAGE, as_json=as_json)
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        fail(f"{name}{error.strerror or error}", Code.NOT_EXAMINED, as_json=as_json)
    finally:
        logger.removeHandler(warnings)


class _Warnings(logging.Handler):
    """Has what the package warns of told on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        hint(f"aiostore: {record.getMessage()}")


def directory_of(path: str) -> str:
    """The absolute path of a store's directory; a ValueError where it cannot be one."""
    if "://" in path:
        raise ValueError(f"{path.partition('://')[0]}:// locations have no files: this command is for directories")
    if not path or "\0" in path:
        raise ValueError("the path must not be empty")
    return os.path.abspath(path)


# --- numbers for people ---


def size_text(size: int) -> str:
    """So many bytes."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{size} B" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def counted(count: int, noun: str, plural: str = "") -> str:
    """So many of these."""
    return f"{count:,} {noun if count == 1 else plural or noun + ('es' if noun.endswith('x') else 's')}"


def ids_text(first: int | None, last: int | None) -> str:
    """Which events."""
    if first is None:
        return ""
    if last is None or last == first:
        return f"event {first}"
    return f"events {first} to {last}"
