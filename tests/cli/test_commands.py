"""What each command says and how it exits, in text and as JSON."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiostore import EventStore
from aiostore.engines.file import format as fmt
from aiostore.engines.file.findings import Finding
from aiostore.engines.file.repair_plan import Plan
from aiostore.engines.file.repairing import Outcome
from aiostore.engines.file.statistics import FileStatistics
from aiostore.engines.file.verifying import Report
from tests.cli.commands import content, damage, fill, run, segments

KEYS = ["event_id", "stream_id", "version", "event_type", "timestamp", "data", "metadata", "tags"]


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    await fill(tmp_path / "orders", segment_bytes=4000)
    return tmp_path / "orders"


# --- verify ---


def test_verify_a_whole_store(path: Path) -> None:
    before = content(path)
    ran = run("verify", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == f"{path} is whole"
    assert "120 events in 3 streams" in ran.out
    assert content(path) == before


def test_verify_a_damaged_store(path: Path) -> None:
    damage(segments(path)[1])
    ran = run("verify", path)
    assert ran.code == 1
    assert f"{path} is DAMAGED" in ran.out
    assert f"damage  {segments(path)[1].name} at byte" in ran.out
    assert "the checksum does not hold" in ran.out
    assert f"repair --dry-run {path}" in ran.out


def test_verify_as_json_has_the_documented_keys(path: Path) -> None:
    damage(segments(path)[1])
    ran = run("verify", path, "--json")
    assert ran.code == 1
    assert list(ran.json) == [field.name for field in msgspec.structs.fields(Report)]
    assert list(ran.json["findings"][0]) == [field.name for field in msgspec.structs.fields(Finding)]
    told = " ".join(run("verify", "--help").out.split())
    assert [key for key in ran.json if key not in told] == []


# --- repair ---


def test_repair_a_whole_store_changes_nothing(path: Path) -> None:
    before = content(path)
    ran = run("repair", path)
    assert (ran.code, ran.err) == (0, "")
    assert "is whole: there is nothing to repair, and nothing was changed" in ran.out
    assert content(path) == before
    assert [each.name for each in path.parent.iterdir()] == ["orders"]


@pytest.mark.parametrize("options", [["--dry-run"], ["--dry-run", "--yes"], []])
def test_repair_that_may_not_change_anything_says_what_it_would(path: Path, options: list[str]) -> None:
    damage(segments(path)[1])
    before = content(path)
    ran = run("repair", path, *options)
    assert ran.code == (1 if options else 2)
    assert ("--yes is needed" in ran.err) == (not options)
    for text in ("will be taken out of it", "cannot be read any more", "salvaged.jsonl", "cut ", "a-1 version"):
        assert text in ran.out
    assert content(path) == before
    assert [each.name for each in path.parent.iterdir()] == ["orders"]


async def test_repair_and_append_again(path: Path) -> None:
    damage(segments(path)[1])
    events = run("verify", path, "--json").json["events"]
    ran = run("repair", path, "--yes", "--json")
    assert (ran.code, ran.err) == (0, "")
    plan, outcome = ran.json["plan"], ran.json["outcome"]
    assert list(plan) == [field.name for field in msgspec.structs.fields(Plan)]
    assert list(outcome) == [field.name for field in msgspec.structs.fields(Outcome)]
    assert run("verify", path).code == 0
    salvaged = [json.loads(line) for line in Path(outcome["salvaged_file"]).read_text("utf-8").splitlines()]  # noqa: ASYNC240
    assert plan["kept_event_id"] + len(salvaged) == events
    async with EventStore(path) as store:
        for line in salvaged:  # as the README has it
            key = f"salvaged-{line['event_id']}"
            metadata, tags = line.get("metadata"), line.get("tags", ())
            await store.append(
                line["stream_id"], line["event_type"], line["data"], metadata=metadata, tags=tags, idempotency_key=key
            )
        assert await store.head() == events
    assert run("verify", path).code == 0


def test_repair_in_text_says_where_all_is(path: Path) -> None:
    damage(segments(path)[1])
    ran = run("repair", path, "-y")
    assert ran.code == 0
    (evidence,) = path.parent.glob("orders.damaged-*")
    assert f"what was there before: {evidence}" in ran.out
    assert f"to append again: {evidence}/salvaged.jsonl" in ran.out


# --- cat ---

QUESTIONS: list[tuple[list[str], Callable[[dict[str, Any]], bool]]] = [
    ([], lambda event: True),
    (["--stream", "a-1"], lambda event: event["stream_id"] == "a-1"),
    (["--stream", "a-1", "--type", "First", "--after", "20"],
     lambda event: event["stream_id"] == "a-1" and event["event_type"] == "First" and event["event_id"] > 20),
    (["--type", "First", "--type", "Third"], lambda event: event["event_type"] == "First"),
    (["--tag", "all", "--tag", "n:3"], lambda event: event["tags"] == ["n:3", "all"]),
    (["--prefix", "a-"], lambda event: event["stream_id"].startswith("a-")),
    (["--after", "7", "--up-to", "30"], lambda event: 7 < event["event_id"] <= 30),
    (["--prefix", "b", "--up-to", "60"], lambda event: event["stream_id"] == "b" and event["event_id"] <= 60),
    (["--stream", "nobody"], lambda event: False),
    (["--since", "2000-01-01"], lambda event: True),
    (["--until", "2000-01-01T00:00:00+01:00"], lambda event: False),
]  # fmt: skip


@pytest.mark.parametrize(("options", "wanted"), QUESTIONS, ids=[" ".join(options) for options, _ in QUESTIONS])
def test_cat_gives_what_is_asked_for(path: Path, options: list[str], wanted: Callable[[dict[str, Any]], bool]) -> None:
    everything = run("cat", path).lines
    assert [event["event_id"] for event in everything] == list(range(1, 121))
    assert list(everything[0]) == KEYS
    expected = [event for event in everything if wanted(event)]
    for extra, part in [
        ([], expected),
        (["--backwards"], expected[::-1]),
        (["--limit", "3"], expected[:3]),
        (["--backwards", "--limit", "2"], expected[:-3:-1]),
    ]:
        ran = run("cat", path, *options, *extra)
        assert (ran.code, ran.err, ran.lines) == (0, "", part)


def test_cat_by_time(path: Path) -> None:
    times = [event["timestamp"] for event in run("cat", path).lines]
    middle = times[60]
    count = sum(time < middle for time in times)
    assert len(run("cat", path, "--until", middle).lines) == count
    assert len(run("cat", path, "--since", middle.removesuffix("Z")).lines) == 120 - count


def test_cat_of_a_damaged_store_gives_what_stands_before(path: Path) -> None:
    damage(segments(path)[1])
    first = fmt.segment_first(segments(path)[1].name) or 0
    ran = run("cat", path)
    assert ran.code == 1
    assert len(ran.lines) >= first - 1
    assert "is corrupt at byte" in ran.err


async def test_cat_beside_a_writer_sees_what_it_stored(path: Path) -> None:
    async with EventStore(path) as store:
        await store.append("a-1", "Third", {})
        ran = await asyncio.to_thread(run, "cat", path, "--type", "Third")
        assert len(ran.lines) == 1
        ran = await asyncio.to_thread(run, "verify", path, "--json")
        assert (ran.code, ran.json["writer_pid"] is not None) == (0, True)
        ran = await asyncio.to_thread(run, "repair", path)
        assert (ran.code, "locked for writing" in ran.err) == (3, True)


async def test_cat_and_stats_read_postgres(new_postgres_url: Callable[[], str]) -> None:
    url = new_postgres_url()
    async with EventStore(url) as store:
        for n in range(5):
            await store.append_batch("a", [("T", {"n": n}), ("U", {"n": n})])
    ran = await asyncio.to_thread(run, "cat", url, "--type", "T", "--backwards", "--limit", "2")
    assert [(event["event_id"], event["data"]) for event in ran.lines] == [(9, {"n": 4}), (7, {"n": 3})]
    ran = await asyncio.to_thread(run, "stats", url, "--full", "--json")
    assert (ran.json["events"], ran.json["contents"]["streams"], ran.json["files"]) == (10, 1, None)


# --- stats ---


def test_stats(path: Path) -> None:
    before = content(path)
    ran = run("stats", path)
    assert (ran.code, ran.err) == (0, "")
    lines = [line.split(None, 1) for line in ran.out.splitlines()]
    assert ["events", "120"] in lines
    assert ["writer", "none"] in lines
    assert ["streams", "not known without --full"] in lines
    assert content(path) == before


def test_stats_full(path: Path) -> None:
    ran = run("stats", path, "--full", "--top", "2", "--json")
    assert ran.code == 0
    contents = ran.json["contents"]
    assert contents == {
        "streams": 3,
        "event_types": 2,
        "largest_streams": [{"name": "a-1", "events": 40}, {"name": "a-2", "events": 40}],
        "largest_event_types": [{"name": "First", "events": 60}, {"name": "Second", "events": 60}],
    }
    text = run("stats", path, "--full").out
    assert "largest streams" in text
    assert "           40  a-1" in text


def test_stats_as_json_has_the_documented_keys(path: Path) -> None:
    ran = run("stats", path, "--json")
    files = ran.json["files"]
    assert list(files) == [field.name for field in msgspec.structs.fields(FileStatistics)]
    assert files["bytes"]["segments"] == sum(each.stat().st_size for each in segments(path))
    told = " ".join(run("stats", "--help").out.split())
    assert [key for key in [*ran.json, *files, *files["bytes"]] if key not in told] == []


def test_stats_of_an_empty_store(tmp_path: Path) -> None:
    async def make() -> None:
        async with EventStore(tmp_path / "s"):
            pass

    asyncio.run(make())
    ran = run("stats", tmp_path / "s", "--json", "--full")
    assert (ran.json["events"], ran.json["first_timestamp"], ran.json["contents"]["streams"]) == (0, None, 0)
    assert run("verify", tmp_path / "s").code == 0
    assert run("cat", tmp_path / "s") == (0, "", "")


# --- what cannot be ---


def _future(path: Path) -> None:
    manifest = fmt.decode_manifest((path / "aiostore.json").read_bytes())
    changed = msgspec.structs.replace(manifest, min_reader=2, min_writer=2)
    (path / "aiostore.json").write_bytes(fmt.encode_manifest(changed))


def _file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"x")


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _of_another(path: Path) -> None:
    _empty(path)
    (path / "notes.txt").write_bytes(b"x")


NOT_EXAMINED: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (shutil.rmtree, "there is no"),
    "a file": (_file, "irectory"),
    "an empty directory": (_empty, "there is no store in"),
    "another directory": (_of_another, "there is no store in"),
    "a format of the future": (_future, "update aiostore"),
}


@pytest.mark.parametrize("command", [["verify"], ["repair", "--yes"], ["cat"], ["stats"], ["verify", "--json"]])
@pytest.mark.parametrize("kind", NOT_EXAMINED)
def test_what_cannot_be_examined_is_one_line_and_3(path: Path, command: list[str], kind: str) -> None:
    change, text = NOT_EXAMINED[kind]
    change(path)
    before = content(path) if path.is_dir() else {}
    ran = run(*command, path)
    assert ran.code == 3
    assert ran.err.startswith("aiostore: ")
    assert len(ran.err.splitlines()) == 1
    assert text in ran.err
    assert ran.out == "" or list(ran.json) == ["error"]
    assert (content(path) if path.is_dir() else {}) == before


@pytest.mark.parametrize(
    "args",
    [
        ["cat", "s", "--follow", "--backwards"],
        ["cat", "s", "--follow", "--up-to", "3"],
        ["cat", "s", "--since", "yesterday"],
        ["cat", "s", "--after", "-1"],
        ["cat", "s", "--limit", "x"],
        ["cat", "s", "--stream", ""],
        ["cat", "s", "--type", ""],
        ["cat", ""],
        ["verify", ""],
        ["verify", "postgresql://host/db"],
        ["repair", "postgresql://host/db"],
        ["stats", "s", "--top", "0"],
        ["verify"],
        ["frobnicate"],
        ["verify", "s", "--frobnicate"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(args: list[str]) -> None:
    ran = run(*args)
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_no_rights_is_one_line_and_3(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object, at: str) -> Any:
        raise PermissionError(13, "Permission denied", at)

    monkeypatch.setattr("aiostore.engines.file.disk.Disk.open_read", refuse)
    for command in ("verify", "stats", "cat"):
        ran = run(command, path)
        assert (ran.code, len(ran.err.splitlines())) == (3, 1)
        assert "ermission denied" in ran.err
    monkeypatch.undo()
    monkeypatch.setattr("aiostore.engines.file.disk.Disk.names", refuse)
    ran = run("repair", path)
    assert (ran.code, ran.err) == (3, f"aiostore: {path}: Permission denied\n")


def test_odd_paths_are_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a b\n[red]\x1b[31m'ü$(x)"
    asyncio.run(fill(path, rounds=2))
    ran = run("verify", path)
    assert ran.code == 0
    assert ran.out.splitlines()[0].endswith("/a b\\n[red]\\x1b[31m'ü$(x) is whole")
    assert run("verify", path, "--json").json["path"] == str(path)
    assert len(run("cat", path).lines) == 12
    damage(segments(path)[0])
    assert run("repair", path, "--yes").code == 0
    assert run("stats", path).code == 0


def test_the_help_documents_the_exit_codes() -> None:
    for command in ("verify", "repair", "cat", "stats"):
        text = " ".join(run(command, "--help").out.split())
        assert "Exit codes: 0" in text
        for code in ("1", "2", "3", "130"):
            assert f", {code} " in text


def test_the_version() -> None:
    assert run("--version").out.startswith("aiostore 0.")


def test_a_network_file_system_is_read_if_it_is_forced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiostore.engines.file.disk.Disk.file_system", lambda disk, path: "nfs4")
    damage(segments(path)[-1])
    assert run("verify", path).code == 1
    for command in (["cat", "--limit", "1"], ["stats"], ["repair", "--yes"]):
        ran = run(*command, path)
        assert (ran.code, "network file system" in ran.err) == (3, True)
        assert run(*command, path, "--force-network").code == 0
