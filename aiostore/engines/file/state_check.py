"""Whether ``state.db`` is whole, by SQLite's own check, and which places of the log it is bound to. Changes nothing."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import NamedTuple
from urllib.parse import quote

from aiostore.engines.file.state import FORMAT

REASONS_MAX = 3
"""So many of the faults that SQLite finds are told."""


class SavedState(NamedTuple):
    """What a snapshot or checkpoint is bound to: the checksum of the line at its position, empty at 0."""

    key: str
    position: int
    crc: str


class StateReport(NamedTuple):
    """What was found in the file."""

    saved: list[SavedState]
    damage: str = ""
    """Why it cannot be used; empty if it can."""
    note: str = ""
    """Why it was not looked at, or not wholly."""


def check_state(path: str) -> StateReport:
    """Examine the file, as it is committed now, also beside a process that saves to it. Waits for the device."""
    try:
        uri = f"file:{quote(os.fsencode(path))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("BEGIN")  # all of it as of one moment
            return _checked(connection)
    except sqlite3.Error as error:
        extended = getattr(error, "sqlite_errorcode", 0)
        if extended == sqlite3.SQLITE_READONLY_ROLLBACK:
            return StateReport([], note="a crash cut a save off; the next to open the store undoes it")
        if extended & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StateReport([], damage=str(error))
        return StateReport([], note=f"it cannot be looked at now: {error}")


def _checked(connection: sqlite3.Connection) -> StateReport:
    reasons = [reason for (reason,) in connection.execute(f"PRAGMA integrity_check({REASONS_MAX})")]
    if reasons != ["ok"]:
        return StateReport([], damage="; ".join(" ".join(reason.split()) for reason in reasons))
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:  # a crash came before the first state was saved
        return StateReport([])
    if version > FORMAT:
        return StateReport([], note=f"it has format {version}, and this version knows format {FORMAT}: update aiostore")
    try:
        rows = connection.execute("SELECT key, position, crc FROM states ORDER BY position, key").fetchall()
    except sqlite3.OperationalError as error:
        return StateReport([], damage=str(error))
    return StateReport([SavedState(*row) for row in rows])
