"""Bugs that a store of this kind may have: a change of one place each, and the tests that must not let it pass."""

from __future__ import annotations

from typing import NamedTuple

CRASHES = "tests/crash/test_crash_states.py"
FILE = "aiostore/engines/file"


class Bug(NamedTuple):
    """What is wrong, where it is planted, and what catches it."""

    name: str
    path: str
    right: str
    """The text, which the file has once."""
    wrong: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str, str], ...] = ()
    """More changes of this kind, (path, right, wrong), where one alone changes nothing."""


BUGS = [
    Bug(
        "an append is not synced",
        f"{FILE}/log.py",
        "self._disk.write_log(self._file, rest, at, synced=self._synced)",
        "self._disk.write_log(self._file, rest, at, synced=False)",
        (CRASHES,),
    ),
    Bug(
        "the file of the log is not opened to sync",
        f"{FILE}/disk.py",
        "os.O_DSYNC if synced and not _DARWIN else 0",
        "0",
        ("tests/file/test_lock.py",),
    ),
    Bug(
        "the directory of a new segment is not synced",
        f"{FILE}/log.py",
        """        try:
            self._disk.sync_directory(self._directory)
""",
        """        try:
            pass
""",
        (CRASHES,),
    ),
    Bug(
        "the manifest is put in its place before it is synced",
        f"{FILE}/manifest.py",
        """        disk.sync(file)
""",
        """        pass
""",
        (CRASHES,),
    ),
    Bug(
        "after a failed write or sync the next one is let through",
        f"{FILE}/log.py",
        """        self._failed = self._failed or f"a write or sync failed ({error})"
        return StoreFailed(self._directory, self._failed)
""",
        """        return StoreFailed(self._directory, f"a write or sync failed ({error})")
""",
        ("tests/file/test_faults.py",),
        (
            (
                f"{FILE}/log.py",
                """        if self._failed is not None:
            raise OSError(errno.EIO, f"an earlier""",
                """        if False:
            raise OSError(errno.EIO, f"an earlier""",
            ),
        ),
    ),
    Bug(
        "the checksum does not cover the event_id",
        f"{FILE}/checksum.py",
        "__all__",
        """_crc32 = crc32


def crc32(data: bytes, seed: int = 0) -> int:
    return _crc32(data[32:] if data[:11] == b'{"event_id"' else data, seed)


__all__""",
        ("tests/file/test_format.py",),
    ),
    Bug(
        "the checksum is not seeded with the segment",
        f"{FILE}/format.py",
        'return crc32(b"%b%020d" % (store_id.encode(), first_event_id))',
        "return crc32(store_id.encode())",
        ("tests/file/test_format.py",),
    ),
    Bug(
        "the index is updated before the write",
        f"{FILE}/log.py",
        """        try:
            await self._thread.whole(lambda: self._writer.write(group))
            if self._synced:
                self._durable = last
            self._index.add_commits(plan.commits, starts, len(group))
""",
        """        self._index.add_commits(plan.commits, starts, len(group))
        try:
            await self._thread.whole(lambda: self._writer.write(group))
            if self._synced:
                self._durable = last
""",
        ("tests/file/test_faults.py",),
    ),
    Bug(
        "events are shown before they are stored",
        "aiostore/commit.py",
        """                await self._engine.commit(Plan(judgement.commits))
            except""",
        """                self._publish(judgement.commits)
                await self._engine.commit(Plan(judgement.commits))
                judgement.commits.clear()
            except""",
        (CRASHES,),
    ),
    Bug(
        "a conflict is told before the group is stored",
        "aiostore/commit.py",
        """        if judgement.commits:
            if len(""",
        """        for staged, outcome in zip(group, judgement.outcomes, strict=True):
            if isinstance(outcome, EventStoreError):
                staged.fail(outcome)
        if judgement.commits:
            if len(""",
        ("tests/test_commit.py::test_no_outcome_is_told_before_the_group_is_stored",),
    ),
    Bug(
        "a torn tail is not cut",
        f"{FILE}/recovery.py",
        """            disk.truncate(file, segment.end)
            disk.sync(file)
""",
        """            pass
""",
        (CRASHES,),
    ),
    Bug(
        "a torn tail is thrown away",
        f"{FILE}/recovery.py",
        "            _set_aside(disk, directory, file, found.size, segment, stamp)\n",
        "            pass\n",
        (CRASHES,),
    ),
    Bug(
        "the head goes ahead of the log",
        f"{FILE}/log.py",
        """        self._check()
        try:
            self._write(memoryview(group))
""",
        """        self._check()
        self._head.advance(self.group_last_event_id)
        try:
            self._write(memoryview(group))
""",
        (CRASHES,),
    ),
    Bug(
        "what a full disk took is cut and not synced",
        f"{FILE}/log.py",
        """            self._disk.truncate(self._file, self.end)
            self._disk.sync(self._file)
            self._size""",
        """            self._disk.truncate(self._file, self.end)
            self._size""",
        ("tests/file/test_faults.py",),
    ),
    Bug(
        "what a full disk took is not cut",
        f"{FILE}/log.py",
        """            self._disk.truncate(self._file, self.end)
            self._disk.sync(self._file)
            self._size""",
        """            self._size""",
        ("tests/file/test_faults.py",),
    ),
    Bug(
        "a segment is left unsynced when the next one begins",
        f"{FILE}/log.py",
        """        self._file.sync(last)
        with _room""",
        """        with _room""",
        (f"{CRASHES}::test_in_every_state_that_a_power_loss_leaves_all_promises_hold[2]",),
    ),
    Bug(
        "lines say that what is unsynced is durable",
        f"{FILE}/format.py",
        "    opens = _OPENS[unsynced:after] if",
        "    opens = _OPENS[:1] * len(mores) if",
        (CRASHES,),
    ),
    Bug(
        "a commit is kept without its end",
        f"{FILE}/scan.py",
        "if not self.damages and not line.more and line.event_id <= self._defer_after:",
        "if not self.damages and line.event_id <= self._defer_after:",
        (CRASHES,),
    ),
    Bug(
        "recovery writes over what may be acknowledged",
        f"{FILE}/recovery.py",
        """            _write_again(disk, directory, file, segment, found.durable + 1)
""",
        """            start = segment.starts(found.durable + 1, last)[0]
            disk.write_at(file, disk.read(file, segment.end - start, start), start)
            disk.truncate(file, segment.end)
            disk.sync(file)
""",
        ("tests/file/test_recovery.py::test_setting_a_torn_tail_aside_is_durable_at_each_step",),
    ),
    Bug(
        "recovery believes the cache after a failed sync",
        f"{FILE}/recovery.py",
        "        disk.drop_cache(file)\n",
        "        pass\n",
        ("tests/file/test_recovery.py::test_after_a_failed_sync_the_log_is_read_from_the_device",),
    ),
    Bug(
        "two writers get the lock",
        f"{FILE}/disk.py",
        """        except BlockingIOError:
            return False
        return True
""",
        """        except BlockingIOError:
            return True
        return True
""",
        ("tests/file/test_lock.py",),
    ),
    Bug(
        "a state is saved before the log that it is of",
        f"{FILE}/engine.py",
        "        await log.sync(position)\n",
        "",
        ("tests/file/test_state.py",),
    ),
    Bug(
        "a state is taken for the log's that another log made",
        f"{FILE}/engine.py",
        "        fits = row.crc == await self._crc(row.position)\n",
        "        fits = bool(await self._crc(row.position)) or True\n",
        ("tests/file/test_state.py",),
    ),
    Bug(
        "lines are served unchecked",
        f"{FILE}/format.py",
        """    if not checksums_hold(lines, seeds):
        raise Damaged("the checksum does not hold")
    try:
        events""",
        """    try:
        events""",
        ("tests/file/test_format.py",),
    ),
    Bug(
        "an index is believed though the log is another",
        f"{FILE}/sealed.py",
        "        if line.crc != sealed.crc or line.event_id != end - 1 or line.more:\n",
        "        if line.event_id != end - 1 or line.more:\n",
        (
            "tests/file/test_sealing_opening.py::test_an_index_whose_segment_ends_in_another_line_of_the_same_place_is_made_anew",
        ),
    ),
    Bug(
        "a hit of the index is not compared with the line",
        f"{FILE}/pages.py",
        "            version = event.version if event.stream_id == stream_id else 0\n",
        "            version = event.version\n",
        ("tests/file/test_collisions.py",),
    ),
    Bug(
        "an event is delivered twice where a subscription goes live",
        "aiostore/inbox.py",
        "            events = [event for event in events if event.event_id > self.held]\n",
        "            pass\n",
        ("tests/test_inbox.py", "tests/test_fanout.py"),
    ),
    Bug(
        "one failing listener silences the others",
        "aiostore/listeners.py",
        """            logger.error("handler %s is detached: it raised %r", listener.name, error, exc_info=error)
""",
        """            raise
""",
        ("tests/conformance/test_listeners.py",),
    ),
    Bug(
        "a handler that appends interleaves with the delivery",
        "aiostore/commit.py",
        """        if staged.from_handler:
            return True
        return""",
        """        return""",
        ("tests/conformance/test_handlers_that_append.py::test_a_handler_appends_and_goes_on",),
    ),
    Bug(
        "events alias what was passed in",
        "aiostore/events.py",
        "    return [copy_event(event) for event in events]\n",
        "    return list(events)\n",
        ("tests/conformance/test_isolation.py",),
    ),
]
