"""``python -m aiostore``: the command line, or, without the packages that it needs, a hint how to get them."""

from __future__ import annotations

import sys

HINT = "aiostore: the command line needs typer and rich: pip install '.[cli]' from the checkout\n"
WRONG_USAGE = 2


def main() -> None:
    """Run the command line."""
    try:
        from aiostore.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "aiostore":
            raise
        sys.stderr.write(HINT)
        sys.exit(WRONG_USAGE)
    app()


if __name__ == "__main__":
    main()
