"""Terms of which many have one hash: every answer is as right as ever, for what is found is compared with the lines."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest

from aiostore.engine import Selection
from aiostore.engines.file import pages, terms
from tests.file.disks import MemoryDisk
from tests.file.driver import counted, started
from tests.file.sealed_stores import SMALL, GatedDisk, Model, check_answers, commit_some, read, runs_of, settled


class WeakHash:
    """A hash of so few bits."""

    bits = 0

    def __init__(self, data: bytes, digest_size: int) -> None:
        assert digest_size == terms.HASH_BYTES
        self._data = data

    def copy(self) -> WeakHash:
        return type(self)(self._data, terms.HASH_BYTES)

    def update(self, data: bytes) -> None:
        self._data += data

    def digest(self) -> bytes:
        value = int.from_bytes(blake2b(self._data, digest_size=8).digest(), "little") & ((1 << self.bits) - 1)
        return value.to_bytes(terms.HASH_BYTES, "big")


@pytest.fixture(params=[0, 1, 2, 4])
def bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    value: int = request.param
    monkeypatch.setattr(WeakHash, "bits", value)
    monkeypatch.setattr(terms, "_new_hash", WeakHash)
    return value


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_answer_is_right_although_terms_collide(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "EXAMINED_MIN", 4)
    disk, model, dice = GatedDisk(cold=seed == 2), Model(), random.Random(seed)
    engine, driver = await started("/s", disk, **SMALL)
    await commit_some(driver, model, dice, 50)
    await settled(engine)
    assert runs_of(engine)
    await check_answers(engine, model, pages=(1, 3, 500))
    await engine.aclose()
    engine, _ = await started("/s", disk, **{**SMALL, "mode": "r"})
    await check_answers(engine, model, pages=(2,))
    await engine.aclose()
    assert disk.held == 0


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize("backwards", [False, True])
async def test_each_span_of_versions_in_each_size_of_page(backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of the other streams stand before, between and behind those that are asked for."""
    monkeypatch.setattr(pages, "EXAMINED_MIN", 2)
    engine, driver = await started("/s", MemoryDisk(), **SMALL)
    model, dice = Model(), random.Random(3)
    for stream_id in ["b", "b", "b", "a", *dice.choices("ab", k=16), "a", "b", "b"]:
        model.note(await driver.commit(counted(1, stream_id)))
    await settled(engine)
    head = len(model.events)
    version = model.version("a")
    for low in range(1, version + 2):
        for high in (None, *range(low, version + 2)):
            for after in (0, 5):
                selection = Selection(head, after, "a", low, high, backwards=backwards)
                for max_events in (1, 2, 5):
                    assert await read(engine, selection, max_events) == model.selected(selection), (
                        selection,
                        max_events,
                    )
    await engine.aclose()


async def test_a_page_of_a_stream_that_ends_early_is_not_looked_for_to_the_end_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the versions cannot be told by the index, a bound of them ends the walk all the same."""
    monkeypatch.setattr(WeakHash, "bits", 0)
    monkeypatch.setattr(terms, "_new_hash", WeakHash)
    engine, driver = await started("/s", MemoryDisk(), **SMALL)
    await driver.commit(counted(1, "b"))
    for _ in range(100):
        await driver.commit(counted(2, "a"))
    await settled(engine)
    page = await engine.read(Selection(driver.head, stream_id="a", to_version=2), None, 500)
    assert [event.version for event in page.events] == [1, 2]
    assert page.cursor is None
    page = await engine.read(Selection(driver.head, stream_id="a", from_version=199, backwards=True), None, 500)
    assert [event.version for event in page.events] == [200, 199]
    assert page.cursor is None
    await engine.aclose()
