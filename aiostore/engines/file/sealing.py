"""Sealing beside a running store: parts of the log get their index on disk, and runs are merged, in threads."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.compaction import next_merge
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.index import Index, Part, runs_of
from aiostore.engines.file.recovery import scan_again
from aiostore.engines.file.run import Run, RunDamaged
from aiostore.engines.file.run_writer import give_way
from aiostore.engines.file.sealed import merge, seal, too_many
from aiostore.errors import EngineUnavailable, StoreClosed, StoreCorrupt

_log = logging.getLogger("aiostore")

PARTS_WAITING_MAX = 4
"""So many parts may wait for their index; while there are more, the log is not rolled."""

Made = Future[Sequence[Part | Run]]
"""What will take the place of other sources."""


class _Stopped(Exception):
    """The store is closing."""


class Sealer:
    """Exchanges parts of the index for runs, and runs for larger ones. Its methods are called in the loop.

    What fails is logged and tried again when the next part is complete: till then it is found in memory, or in smaller
    runs. Opened to read, nothing is written, and what is made anew stays in memory. What is no longer used is freed in
    a thread as well. Errors are logged as texts: a handler that keeps records would else keep runs open.
    """

    def __init__(self, disk: Disk, directory: str, index: Index, blocks: Blocks, *, writing: bool) -> None:
        self._disk = disk
        self._directory = directory
        self._store_id = index.store_id
        self._index = index
        self._blocks = blocks
        self._writing = writing
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        # Merges have a thread of their own: a large one must not keep what is in memory from being written.
        self._seals = ThreadPoolExecutor(1, thread_name_prefix="aiostore-seal")
        self._merges = ThreadPoolExecutor(1, thread_name_prefix="aiostore-merge")
        self._sealing: Part | None = None
        self._corrupt: set[Part] = set()
        self._merging: Sequence[Run] = ()
        self._mending: dict[Run, Made] = {}
        self._merged = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._put_aside: deque[Callable[[], object]] = deque()
        self._closed = False
        blocks.aside = self._aside

    def look(self) -> None:
        """Do what there is to do; called at the start, and when a part is complete."""
        if self._stop.is_set() or not self._writing:
            return
        waiting = [source for source in self._index.sources[:-1] if isinstance(source, Part)]
        waiting = [part for part in waiting if part not in self._corrupt]
        if waiting and self._sealing is None:
            self._sealing = waiting[0]
            self._sealing.aside = self._aside_while_open
            self._submit(self._seals, functools.partial(self._seal, waiting[0]), self._sealed)
        if len(waiting) > PARTS_WAITING_MAX:
            self._room.clear()
        else:
            self._room.set()
        runs = runs_of(self._index)
        following = next_merge(runs)
        if following is not None and not self._merging and not self._mending:
            self._merging = runs[following]
            self._merged.clear()
            self._submit(self._merges, functools.partial(self._merge, self._merging), self._after_merge)

    async def room(self) -> None:
        """Wait while too many parts wait for their index, if they are being worked at."""
        await self._room.wait()

    async def mend(self, damaged: RunDamaged) -> None:
        """Make a run anew that was found to be damaged; `StoreCorrupt` if its segments are, or `EngineUnavailable`."""
        while damaged.run in self._merging and not self._stop.is_set():  # the merge fails, or finds it whole
            await self._merged.wait()
        if self._stop.is_set():
            raise StoreClosed
        if damaged.run in self._index.sources:
            try:
                await asyncio.shield(asyncio.wrap_future(self._begin_mending(damaged)))
            except _Stopped:
                raise StoreClosed from None
            except OSError as error:
                raise EngineUnavailable(f"{damaged}; it cannot be made anew now: {error}") from error

    def stop(self) -> None:
        """Begin nothing more, and give up what is being written."""
        self._stop.set()
        self._room.set()
        self._merged.set()

    def close(self) -> None:
        """Wait until nothing is written any more; on any thread, after `stop`."""
        self._merges.shutdown()
        self._seals.shutdown()
        self._closed = True
        self._do_what_was_put_aside()

    # --- in the loop, when a job has ended ---

    def _submit(
        self, threads: ThreadPoolExecutor, work: Callable[[], Sequence[Part | Run]], ended: Callable[[Made], None]
    ) -> Made:
        job: Made
        try:
            job = threads.submit(work)
        except RuntimeError as error:
            job = Future()
            job.set_exception(OSError(errno.EAGAIN, str(error)))  # no more threads can be started now

        def tell(job: Made) -> None:
            with suppress(RuntimeError):  # the loop was closed before the store was
                self._loop.call_soon_threadsafe(ended, job)

        job.add_done_callback(tell)
        return job

    def _sealed(self, job: Made) -> None:
        part, self._sealing = self._sealing, None
        assert part is not None, "one job at a time"
        if self._take(job, [part]):
            self.look()
        elif isinstance(job.exception(), StoreCorrupt):
            self._corrupt.add(part)  # it stays in memory
            self.look()
        else:
            self._room.set()  # a disk that is full must not hold up what it would still have room for

    def _after_merge(self, job: Made) -> None:
        merged, self._merging = self._merging, ()
        self._merged.set()
        if self._take(job, merged):
            self.look()
        elif isinstance(error := job.exception(), RunDamaged) and not self._stop.is_set():
            self._begin_mending(error)

    def _begin_mending(self, damaged: RunDamaged) -> Made:
        run = damaged.run
        job = self._mending.get(run)
        if job is None:
            _log.warning("%s; the index is made anew", str(damaged))

            def mended(job: Made) -> None:
                del self._mending[run]
                if self._take(job, [run]):
                    self.look()

            job = self._mending[run] = self._submit(self._merges, functools.partial(self._mend, run), mended)
        return job

    def _take(self, job: Made, old: Sequence[Part | Run]) -> bool:
        """Exchange the sources for what was made; False if it failed, or nobody wants it any more."""
        if self._stop.is_set():
            return False
        error = job.exception()
        if error is None:
            if old[0] in self._index.sources:  # else a follower has taken the writer's in its place
                self._index.exchange(old, job.result())
        elif not isinstance(error, RunDamaged):
            self._complain(error)
        return error is None

    def _complain(self, error: BaseException) -> None:
        _log.warning("%s: the index on disk cannot be brought up to date now: %s", self._directory, str(error))

    # --- in threads ---

    def _seal(self, part: Part) -> Sequence[Run]:
        return [seal(self._disk, self._directory, self._store_id, part, self._blocks, self._pause)]

    def _merge(self, runs: Sequence[Run]) -> Sequence[Run]:
        return [merge(self._disk, self._directory, self._store_id, runs, self._blocks, self._pause)]

    def _mend(self, run: Run) -> Sequence[Part | Run]:
        kept = 0

        def sealed(index: Index, part: Part) -> None:
            nonlocal kept
            part.aside = self._aside_while_open
            if not self._writing:
                return
            try:
                index.exchange([part], self._seal(part))
            except OSError as error:  # no room: so few parts may wait for it, too
                if not kept:
                    self._complain(error)
                kept += 1
                if kept > PARTS_WAITING_MAX:
                    raise
            runs = too_many(index)
            if runs:
                index.exchange(runs, self._merge(runs))

        return scan_again(
            self._disk, self._directory, self._store_id, run, self._index.part_bytes_min, self._check, sealed
        )

    def _aside(self, work: Callable[[], object]) -> None:
        """Have this done in a thread, or by `close`, or after that at once; called in any thread, at any moment."""
        self._put_aside.append(work)
        if self._closed:
            self._do_what_was_put_aside()
        else:
            with suppress(RuntimeError):  # the loop was closed before the store was
                self._loop.call_soon_threadsafe(self._hand_over)

    def _aside_while_open(self, work: Callable[[], object]) -> None:
        """Have this done in a thread, if the store is still open."""
        if not self._closed:
            self._aside(work)

    def _hand_over(self) -> None:
        with suppress(RuntimeError):  # they are shut down: `close` does it
            self._seals.submit(self._do_what_was_put_aside)

    def _do_what_was_put_aside(self) -> None:
        while True:
            try:
                work = self._put_aside.popleft()
            except IndexError:  # not asked for before: two threads may be here
                return
            work()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _pause(self) -> None:
        self._check()
        give_way()
