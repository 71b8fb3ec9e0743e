"""DuckDB and Polars read the directory, with the calls that the README gives, and agree with the engine."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from aiostore.events import Event
from tests.file.driver import counted, everything, started

DUCKDB = """
SELECT event_id, stream_id, version, event_type, timestamp, data, metadata, tags
FROM read_json('orders/*.jsonl', format = 'newline_delimited', ignore_errors = true,
               maximum_object_size = 100_000_000,
               columns = {event_id: 'UBIGINT', stream_id: 'VARCHAR', version: 'UBIGINT', event_type: 'VARCHAR',
                          timestamp: 'TIMESTAMP', data: 'JSON', metadata: 'JSON', tags: 'VARCHAR[]'})
WHERE event_id IS NOT NULL ORDER BY event_id
"""


def polars_frame() -> pl.DataFrame:
    # scan_ndjson would do for a closed store, but spoils backslashes in a `data` that is read as text (Polars 2.1).
    keys = {"event_id": pl.UInt64, "stream_id": pl.String, "version": pl.UInt64, "event_type": pl.String,
            "timestamp": pl.String, "data": pl.String, "metadata": pl.String, "tags": pl.String}  # fmt: skip
    return (
        pl.scan_lines("orders/*.jsonl")
        .filter(pl.col("line").str.contains(r'"crc":"[0-9a-f]{8}"\}$'))  # not one that is being written
        .select(pl.col("line").str.json_path_match(f"$.{key}").cast(kind).alias(key) for key, kind in keys.items())
        .with_columns(
            pl.col("timestamp").str.to_datetime(time_zone="UTC"), pl.col("tags").str.json_decode(pl.List(pl.String))
        )
        .collect()
    )


@pytest.fixture
async def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    monkeypatch.chdir(tmp_path)
    engine, driver = await started("orders", segment_bytes=1000)
    for n in range(4):
        await driver.commit(counted(2), (f"key-{n}", counted(3, "t")))
        odd = {"text": 'quoted " \\ ü \u2028', "list": [1, {"a": None}], "float": 0.1, "n": str(n)}
        await driver.commit([("üü", "Odd", odd, {"by": n}, ("a:1", "b,2"))], [("empty", "E", {})])
    found = await everything(engine)
    await engine.aclose()
    return found


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "data": json.loads(row["data"]),
        "metadata": json.loads(row["metadata"] or "{}"),
        "tags": tuple(row["tags"] or ()),
    }


def expected(events: list[Event]) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


def test_duckdb_agrees(events: list[Event]) -> None:
    with duckdb.connect() as connection:
        found = connection.sql(DUCKDB)
        rows = [plain(dict(zip(found.columns, row, strict=True))) for row in found.fetchall()]
    for row in rows:
        row["timestamp"] = row["timestamp"].replace(tzinfo=UTC)
    assert rows == expected(events)


def test_a_line_that_is_being_written_is_skipped(events: list[Event]) -> None:
    newest = max(Path("orders").glob("*.jsonl"))
    with newest.open("ab") as log:
        log.write(b'{"event_id":1000,"stream_id":"x","vers')
    with duckdb.connect() as connection:
        assert len(connection.sql(DUCKDB).fetchall()) == len(events)
    assert len(polars_frame()) == len(events)


def test_polars_agrees(events: list[Event]) -> None:
    rows = [plain(row) for row in polars_frame().sort("event_id").iter_rows(named=True)]
    assert rows == expected(events)


async def test_the_same_while_the_store_is_open(events: list[Event]) -> None:
    engine, driver = await started("orders")
    await driver.commit(counted(2))
    with duckdb.connect() as connection:
        assert len(connection.sql(DUCKDB).fetchall()) == len(events) + 2
    assert len(polars_frame()) == len(events) + 2
    await engine.aclose()
