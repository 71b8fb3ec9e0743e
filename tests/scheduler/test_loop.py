"""The loop itself does what the tests on it rely on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.scheduler.loop import Deadlock, Order, SeededLoop


async def race(count: int = 20) -> list[int]:
    order: list[int] = []

    async def run(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*map(run, range(count)))
    return order


@pytest.mark.parametrize("order", Order)
def test_a_seed_gives_the_same_run_again(order: Order) -> None:
    assert SeededLoop(7, order).play(race()) == SeededLoop(7, order).play(race())


def test_seeds_differ() -> None:
    assert len({tuple(SeededLoop(seed, Order.SHUFFLED).play(race())) for seed in range(20)}) == 20
    assert len({tuple(SeededLoop(seed, Order.ONE_BY_ONE).play(race())) for seed in range(20)}) == 20
    assert SeededLoop(1).play(race()) == [*range(20)] * 3


def test_one_by_one_lets_some_run_ahead_of_others() -> None:
    order = SeededLoop(3, Order.ONE_BY_ONE).play(race())
    assert any(order[:20].count(number) > 1 for number in order[:20])


def test_time_jumps_to_the_next_timer() -> None:
    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        began = [loop.time()]
        await asyncio.sleep(3600)
        began.append(loop.time())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 30)
        return [*began, loop.time()]

    assert SeededLoop().play(scenario()) == pytest.approx([0, 3600, 3630])


def test_a_deadlock_is_found_and_names_who_waits() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    loop = SeededLoop()
    with pytest.raises(Deadlock, match="stuck"):
        loop.play(stuck())
    loop.noise.clear()


@pytest.mark.parametrize("order", Order)
def test_jobs_of_executors_run_in_order_without_a_thread(order: Order) -> None:
    async def scenario() -> list[int]:
        done: list[int] = []
        await asyncio.gather(*(asyncio.to_thread(done.append, number) for number in range(10)))
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(asyncio.get_running_loop)
        return done

    assert sorted(SeededLoop(5, order).play(scenario())) == list(range(10))


def test_a_cancelled_job_is_done_or_not_as_it_may_be_with_threads() -> None:
    async def scenario() -> bool:
        done: list[int] = []
        job = asyncio.get_running_loop().run_in_executor(None, done.append, 1)
        job.cancel()
        await asyncio.sleep(1)
        return done == [1]

    assert {SeededLoop(seed, Order.SHUFFLED).play(scenario()) for seed in range(20)} == {False, True}


def test_an_error_that_nobody_looks_at_is_noise() -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().create_future().set_exception(LookupError("mine"))

    with pytest.raises(AssertionError, match="never retrieved"):
        SeededLoop().play(scenario())


def test_a_task_left_over_is_a_failure() -> None:
    async def scenario() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait()))

    tasks: list[asyncio.Task[bool]] = []
    with pytest.raises(AssertionError, match="left over"):
        SeededLoop().play(scenario())
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]
