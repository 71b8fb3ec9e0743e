"""The README's Python runs as it stands there, in order, in one directory."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aiostore import (
    AppendCondition,
    Consumer,
    Event,
    EventStore,
    LiveProjection,
    NewEvent,
    Projection,
    Query,
    Retry,
    StreamAppend,
    reconstruct_state,
)

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


async def run(snippet: str, names: dict[str, Any]) -> None:
    """Run a snippet that may await at its top level, as a notebook does."""
    code = compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


def test_the_first_snippet_runs_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time, the first event is history
        exec(compile(SNIPPETS[0], "README.md", "exec"), {})
        assert capsys.readouterr().out == "1 order-1 1 OrderPlaced {'sku': 'A-17', 'quantity': 2}\n"


async def test_the_others_run_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evidence = tmp_path / "orders.damaged-20261130T033503Z"
    evidence.mkdir()
    (evidence / "salvaged.jsonl").touch()  # tests/cli has one with events
    async with await EventStore.open("orders/") as store:
        names: dict[str, Any] = {
            "AppendCondition": AppendCondition,
            "Consumer": Consumer,
            "Counter": Counter,
            "Event": Event,
            "EventStore": EventStore,
            "LiveProjection": LiveProjection,
            "NewEvent": NewEvent,
            "Projection": Projection,
            "json": json,
            "reconstruct_state": reconstruct_state,
            "Query": Query,
            "Retry": Retry,
            "StreamAppend": StreamAppend,
            "position": 0,
            "store": store,
            "UTC": UTC,
            "datetime": datetime,
            "timedelta": timedelta,
        }
        await store.append_batch("account-1", [("Deposited", {"amount": n}) for n in range(7)])
        for snippet in SNIPPETS[1:]:
            try:
                async with asyncio.timeout(0.5) as limit:
                    await run(snippet, names)
            except TimeoutError:
                assert limit.expired()
                assert "subscribe(" in snippet, "only a subscription has no end"
        head = await store.head()
        assert names["position"] + 1 == names["ordered"].event_id
        decided = names["decision"].events[0]
        assert (decided.event_id, names["decision"].state) == (head - 1, 20)
        assert (await store.read_stream("cart-44").to_list())[0].metadata == {"correlation_id": "req-7"}
        assert [event.event_type for event in names["last_ten"]][:2] == ["CheckedOut", "Deposited"]
        assert names["listener"].error is None
        assert names["balances"].state["account-2"] == 5000
        assert names["at_version_3"] == 0 + 1 + 2
        assert names["events"].height == head
