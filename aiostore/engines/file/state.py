"""State kept beside the log, in ``state.db``: snapshots and checkpoints. Derived, but for what others remember of it.

A SQLite file of one table. Each row is bound to the log by the checksum of the line at its position. It is opened for
each call, so that no connection lives on in a forked child. Every function here blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple
from urllib.parse import quote

from aiostore.engines.file.disk import NO_ROOM, Disk
from aiostore.errors import (
    EngineUnavailable,
    EngineUnsupported,
    EventStoreError,
    StateConflict,
    StoreCorrupt,
    StoreFull,
)

STATE_NAME = "state.db"
FORMAT = 1
"""The ``user_version`` of the file that this code reads and writes."""

_CREATE = """
CREATE TABLE states(
  key TEXT PRIMARY KEY, revision INTEGER NOT NULL, position INTEGER NOT NULL, crc TEXT NOT NULL, value BLOB NOT NULL
) STRICT
"""
_LOAD = "SELECT revision, position, crc, value FROM states WHERE key = ?"
_SAVE = "INSERT OR REPLACE INTO states(key, revision, position, crc, value) VALUES (?, ?, ?, ?, ?)"


class Row(NamedTuple):
    """What is kept under a key. ``crc``: the checksum of the line at the position, empty at position 0."""

    revision: int
    position: int
    crc: str
    value: bytes


class _HalfDone(EventStoreError):
    """A crash cut a save off, and whoever opened the file only to read cannot undo it."""


class StateFile:
    """The file in the store's directory; made when the first state is saved. One call at a time."""

    def __init__(self, disk: Disk, directory: str, *, read_only: bool) -> None:
        self._disk = disk
        self._directory = directory
        self._read_only = read_only
        self._path = f"{directory}/{STATE_NAME}"

    def load(self, key: str) -> Row | None:
        """What is kept under the key."""
        if not self._disk.exists(self._path):
            return None
        # A writer may have to undo what a crash left half done. A reader cannot; for it, nothing is kept.
        try:
            with self._connected("ro" if self._read_only else "rw") as connection:
                if self._version(connection) == 0:  # a crash came before the first state was saved
                    return None
                row = connection.execute(_LOAD, (key,)).fetchone()
        except _HalfDone:
            return None
        return None if row is None else Row(*row)

    def save(self, key: str, position: int, crc: str, value: bytes, expected_revision: int | None) -> int:
        """Keep the value, durably; returns its revision. `StateConflict` if another than the expected one is kept."""
        self._create()
        with self._connected("rw") as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            if self._version(connection) == 0:
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            kept = connection.execute(_LOAD, (key,)).fetchone()
            revision: int = kept[0] if kept else 0
            if expected_revision not in (None, revision):
                raise StateConflict(key, expected_revision, revision)
            connection.execute(_SAVE, (key, revision + 1, position, crc, value))
            connection.execute("COMMIT")
        return revision + 1

    def _create(self) -> None:
        try:
            if not self._disk.exists(self._path):
                self._disk.close(self._disk.open_write(self._path))  # with the mode of the other files
                self._disk.sync_directory(self._directory)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StoreFull(self._path, str(error)) from error
            raise EngineUnavailable(f"{self._path} cannot be made: {error}") from error

    def _version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise EngineUnsupported(
                f"{self._path} has format {version}; this version knows format {FORMAT}: update aiostore"
            )
        return version

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        """A connection without a transaction; what is not committed in the block is undone. Errors are our own."""
        try:
            uri = f"file:{quote(self._path)}?mode={mode}"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise self._own(error) from error

    def _own(self, error: sqlite3.Error) -> EventStoreError:
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF
        if extended == sqlite3.SQLITE_READONLY_ROLLBACK:
            return _HalfDone()
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(self._path, str(error))
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreCorrupt(
                self._path, 0, f"{error}; move the file away to begin without snapshots and checkpoints"
            )
        return EngineUnavailable(f"{self._path} cannot be used now: {error}")
