"""The runs that a writer has made since: what a follower exchanges its own index for. Synchronous."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.compaction import choose_runs
from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.index import Part
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import HEADER_BYTES, Header, decode_header, run_first, run_name

_log = logging.getLogger("aiostore")


class NewerRuns:
    """Finds them in a directory. Only what is new is opened."""

    def __init__(self, disk: Disk, directory: str, store_id: str, blocks: Blocks) -> None:
        self._disk = disk
        self._directory = directory
        self._store_id = store_id
        self._blocks = blocks
        self._reported: set[str] = set()

    def find(self, sources: Sequence[Part | Run]) -> list[Run]:
        """The runs, in order, that reach farther than those in use; what takes the place of a part is checked whole."""
        in_use = {source.first_event_id: source.last_event_id for source in sources if isinstance(source, Run)}
        headers: list[Header] = []
        for name in self._disk.names(self._directory):
            if run_first(name) is not None:
                header = self._header(f"{self._directory}/{name}")
                if header is not None:
                    headers.append(header)
        used, _ = choose_runs(headers)
        found: list[Run] = []
        for header in used:
            if in_use.get(header.first_event_id, 0) < header.last_event_id:
                run = self._opened(header.first_event_id, sources)
                if run is not None:
                    found.append(run)
        return found

    def _header(self, path: str) -> Header | None:
        try:
            with closing(OpenFile(self._disk, path)) as opened:
                return decode_header(self._disk.read(opened.file, HEADER_BYTES, 0), self._store_id)
        except (Damaged, OSError) as error:
            self._report(path, error)
            return None

    def _opened(self, first_event_id: int, sources: Sequence[Part | Run]) -> Run | None:
        path = f"{self._directory}/{run_name(first_event_id)}"
        try:
            run = Run.open(self._disk, path, self._store_id, self._blocks)
            if any(isinstance(source, Part) and _overlap(source, run) for source in sources):
                # What is in memory is right, maybe made anew because this very run was found to be damaged.
                for _ in run.scan_offsets():
                    pass
                for _ in run.scan_keys():
                    pass
        except (Damaged, OSError) as error:
            self._report(path, error)
            return None
        return run

    def _report(self, path: str, error: Exception) -> None:
        if not isinstance(error, FileNotFoundError) and path not in self._reported:  # else merged meanwhile
            self._reported.add(path)
            _log.warning("%s cannot be used, its part of the index stays in memory: %s", path, error)


def _overlap(part: Part, run: Run) -> bool:
    return part.first_event_id <= run.last_event_id and run.first_event_id <= part.last_event_id
