"""State kept beside the log, in ``state.db``: snapshots and checkpoints. Derived, but for what others remember of it.

A SQLite file of one table. Each row is bound to the log by the checksum of the line at its position. It is opened for
each call, so that no connection lives on in a forked child. Every function here blocks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

from aiostore.engine import Saving, prefix_end
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
_LOAD_SOME = "SELECT key, revision, position, crc, value FROM states WHERE key >= ? AND key > ?"
_REVISION = "SELECT revision FROM states WHERE key = ?"
_SAVE = "INSERT OR REPLACE INTO states(key, revision, position, crc, value) VALUES (?, ?, ?, ?, ?)"
_REMOVE = "DELETE FROM states WHERE key = ?"


class Row(NamedTuple):
    """What is kept under a key. ``crc``: the checksum of the line at the position, empty at position 0."""

    revision: int
    position: int
    crc: str
    value: bytes


class _HalfDone(EventStoreError):
    """A crash cut a save off, and whoever opened the file only to read cannot undo it."""


class StateFile:
    """A file of states, ``state.db`` in a store's directory; made when the first is saved. One call at a time."""

    def __init__(self, disk: Disk, path: str, *, read_only: bool) -> None:
        self._disk = disk
        self._directory = os.path.dirname(path) or "."
        self._read_only = read_only
        self._path = path

    def load(self, key: str) -> Row | None:
        """What is kept under the key."""
        rows = self._rows(_LOAD, (key,))
        return Row(*rows[0]) if rows else None

    def load_some(self, prefix: str, after: str, limit: int) -> dict[str, Row]:
        """What is kept under the first keys that begin with the prefix and are above ``after``."""
        end = prefix_end(prefix)
        bounds = [prefix, after] if end is None else [prefix, after, end]
        rows = self._rows(f"{_LOAD_SOME}{'' if end is None else ' AND key < ?'} ORDER BY key LIMIT ?", [*bounds, limit])
        return {key: Row(*row) for key, *row in rows}

    def _rows(self, query: str, values: Sequence[object]) -> list[Any]:
        if not self._disk.exists(self._path):
            return []
        # A writer may have to undo what a crash left half done. A reader cannot; for it, nothing is kept.
        try:
            with self._connected("ro" if self._read_only else "rw") as connection:
                if self._version(connection) == 0:  # a crash came before the first state was saved
                    return []
                return connection.execute(query, values).fetchall()
        except _HalfDone:
            return []

    def save(self, position: int, crc: str, savings: Sequence[Saving]) -> list[int]:
        """Keep them all or none, durably; returns their revisions. `StateConflict` if another is kept than expected."""
        revisions = []
        self._create()
        with self._connected("rw") as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            if self._version(connection) == 0:
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            for key, value, expected in savings:
                kept = connection.execute(_REVISION, (key,)).fetchone()
                revision: int = kept[0] if kept else 0
                if expected not in (None, revision):
                    raise StateConflict(key, expected, revision)
                if value is None:
                    connection.execute(_REMOVE, (key,))
                else:
                    connection.execute(_SAVE, (key, revision + 1, position, crc, value))
                revisions.append(0 if value is None else revision + 1)
            connection.execute("COMMIT")
        return revisions

    def _create(self) -> None:
        try:
            if not self._disk.exists(self._path):
                self._disk.close(self._disk.open_write(self._path))  # with the mode of the other files
                self._disk.sync_directory(self._directory)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StoreFull(self._path, str(error)) from error
            raise EngineUnavailable(f"{self._path} cannot be made: {error}") from error

    def _has_room(self) -> bool:
        """SQLite does not say why it could not open its journal."""
        try:
            return self._disk.has_free_space(self._directory)
        except OSError:
            return True

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
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_CANTOPEN and not self._has_room()):
            return StoreFull(self._path, str(error))
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreCorrupt(
                self._path, 0, f"{error}; move the file away to begin without snapshots and checkpoints"
            )
        return EngineUnavailable(f"{self._path} cannot be used now: {error}")
