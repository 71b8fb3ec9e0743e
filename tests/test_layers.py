"""Imports only point down the layers, never in a circle; the core imports no extra."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

import aiostore

ROOT = Path(aiostore.__file__).parent

LAYERS: dict[int, list[str]] = {
    0: [
        "finishing",
        "errors",
        "context",
        "tracing",
        "events",
        "query",
        "limits",
        "strictjson",
        "timestamps",
        "drafts",
        "batch",
    ],
    1: ["engine"],
    2: ["engines"],
    3: [
        "ring",
        "turns",
        "inbox",
        "listeners",
        "fanout",
        "worker",
        "judging",
        "tailer",
        "commit",
        "reader",
        "states",
        "checkpoint",
        "subscription",
        "store",
    ],
    4: [
        "brief",
        "waiting",
        "effects",
        "fold",
        "snapshots",
        "projection",
        "live_projection",
        "kept_projection",
        "database_projection",
        "keyed_states",
        "keyed_projection",
        "consumer",
        "boundary",
        "decision_snapshots",
        "decider",
        "codecs",
        "samples",
        "schemadocs",
        "schema",
    ],
    5: ["http", "cli", "frames", "otel", "testing"],
    6: ["aiostore", "__main__"],  # __init__.py, which shows all of them, and the command line's beginning
    7: ["testing.conformance"],  # tests, which use the package as an application does
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def module_of(path: Path) -> str:
    """The dotted name of a file in the package, such as aiostore.engines.file.log."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def layer_of(module: str) -> int | None:
    """The layer of a module of the package; None if it has not been given one."""
    if module.startswith("aiostore.testing.conformance"):
        return LAYER_OF["testing.conformance"]
    parts = module.split(".")
    return LAYER_OF.get(parts[1] if len(parts) > 1 else parts[0])


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, *, types_too: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif types_too or not is_for_types_only(child):
            yield from import_nodes(child, types_too=types_too)


@cache
def imports_of(module: str, *, types_too: bool) -> frozenset[str]:
    """The modules that a module imports, wherever in it: those of the package, and the first names of others."""
    found: set[str] = set()
    for node in import_nodes(ast.parse(MODULES[module].read_text("utf-8")), types_too=types_too):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inside]
        found.update(name if name in MODULES else name.partition(".")[0] for name in names)
    return frozenset(found)


def within(module: str, *, types_too: bool) -> list[str]:
    return sorted(name for name in imports_of(module, types_too=types_too) if name in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module) is not None, f"give {module} a layer in DESIGN.md §4 and here"


@pytest.mark.parametrize("module", MODULES)
def test_imports_do_not_point_up(module: str) -> None:
    own = layer_of(module)
    assert own is not None
    up = [name for name in within(module, types_too=True) if (layer_of(name) or 0) > own]
    assert up == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("aiostore.engines.")])
def test_an_engine_does_not_import_another(module: str) -> None:
    if module == "aiostore.engines.connect":
        return
    own = module.split(".")[2]
    others = {name.split(".")[2] for name in within(module, types_too=True) if name.startswith("aiostore.engines.")}
    assert others <= {own, "postings"}


def test_connect_imports_engines_only_when_they_are_asked_for() -> None:
    tree = ast.parse(MODULES["aiostore.engines.connect"].read_text("utf-8"))
    at_once = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [statement for statement in at_once if "engines" in statement] == []


def test_imports_make_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in within(module, types_too=False):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


# What the core needs

CORE = {"aiofiles", "anyio", "asyncinotify", "filelock", "msgspec"}


def test_the_core_depends_on_few_packages() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert {requirement.partition(">")[0] for requirement in project["dependencies"]} <= CORE


@pytest.mark.parametrize("module", [name for name in MODULES if (layer_of(name) or 0) <= 3])
def test_the_core_names_no_other_package_in_its_imports(module: str) -> None:
    foreign = {name for name in imports_of(module, types_too=False) if name not in MODULES}
    optional = {"asyncpg"} if module.startswith("aiostore.engines.postgres") else set()
    if module == "aiostore.engines.file.checksum":  # which does without it
        optional = {"isal"}
    assert foreign - sys.stdlib_module_names <= CORE | optional


def test_files_and_disks_are_touched_in_one_place() -> None:
    touching = {name for name in MODULES if "aiofiles" in imports_of(name, types_too=True)}
    assert touching <= {"aiostore.engines.file.disk"}


def test_only_the_command_line_needs_what_it_is_made_with() -> None:
    needing = {name for name in MODULES if {"typer", "rich", "click"} & imports_of(name, types_too=True)}
    assert needing
    assert {name for name in needing if not name.startswith("aiostore.cli.")} == set()
    importing = {name for name in MODULES if any("aiostore.cli" in each for each in within(name, types_too=True))}
    assert {name for name in importing if not name.startswith("aiostore.cli.")} == {"aiostore.__main__"}


def test_only_the_modules_for_it_need_pytest() -> None:
    needing = {
        name for name in MODULES if {"pytest", "pytest_asyncio", "hypothesis"} & imports_of(name, types_too=True)
    }
    conformance = "aiostore.testing.conformance"
    assert {name for name in needing if not name.startswith(conformance)} == {"aiostore.testing.fixtures"}
    assert "pytest" not in loaded_by("import aiostore.testing")
    importing = {name for name in MODULES if any("aiostore.testing" in each for each in within(name, types_too=True))}
    assert {name for name in importing if not name.startswith("aiostore.testing")} == set()


def loaded_by(statement: str) -> set[str]:
    """The first names of the modules that a fresh interpreter loads for the statement."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def requirements(package: str) -> set[str]:
    """The import names of a package and of what it needs itself."""
    names = {package.replace("-", "_")}
    for requirement in metadata.requires(package) or ():
        if "extra ==" not in requirement and "python_version" not in requirement:
            name = requirement.split(";")[0].split(">")[0].split("<")[0].split("=")[0].split("[")[0].strip()
            names |= requirements(name)
    return names


def test_importing_aiostore_loads_core_packages_only() -> None:
    allowed = {"aiostore"}.union(
        *map(requirements, CORE - {"filelock"}), {"filelock", "typing_extensions", "exceptiongroup", "sniffio"}
    )
    loaded = loaded_by("import aiostore")
    assert "aiostore" in loaded
    assert loaded - sys.stdlib_module_names <= allowed


def test_importing_aiostore_loads_no_engine() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, aiostore; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in loaded if name.startswith("aiostore.engines.file.")] == []
    assert {"asyncpg", "duckdb", "polars", "numpy", "pandas", "sqlite3", "aiosqlite", "typer", "rich"}.isdisjoint(
        loaded
    )


def test_importing_aiostore_starts_nothing() -> None:
    code = "import threading, aiostore; print(threading.active_count())"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1"]
