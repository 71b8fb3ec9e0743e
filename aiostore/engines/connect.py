"""From a location to its engine. Drivers are imported only when their engine is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from aiostore.engine import Engine
from aiostore.errors import EngineUnavailable, EngineUnsupported


def connect(location: str | os.PathLike[str] | Engine | None, options: Mapping[str, Any]) -> Engine:
    """The engine of a location: None is memory, a path the embedded log, a URL a shared engine, an engine itself.

    Options that the engine does not know are TypeError; values that it does not take, ValueError.
    """
    if isinstance(location, Engine) or location is None:
        if options:
            raise TypeError(f"{'this engine' if location else 'a store in memory'} takes no options: {sorted(options)}")
        if location is not None:
            return location
        from aiostore.engines.memory import MemoryEngine

        return MemoryEngine()
    path = os.fspath(location)
    if not isinstance(path, str) or not path:
        raise ValueError(f"the location must be a path that is not empty or a URL, not {location!r}")
    scheme, separator, _ = path.partition("://")
    if scheme in ("postgresql", "postgres") and separator:
        return _postgres(path, options)
    if separator:
        raise EngineUnsupported(
            f"there is no engine for {scheme}:// locations; a directory's path makes an embedded log, "
            "postgresql://… a shared store"
        )
    from aiostore.engines.file.engine import FileEngine

    engine: Engine = FileEngine(path, **options)
    return engine


def _postgres(url: str, options: Mapping[str, Any]) -> Engine:
    try:
        from aiostore.engines.postgres.engine import PostgresEngine
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise EngineUnavailable(
            "postgresql:// locations need the package asyncpg: pip install '.[postgres]' from the checkout"
        ) from error
    engine: Engine = PostgresEngine(url, **options)
    return engine
