"""Samples: data as it was stored in each version of a type, to be decoded in a test as long as there are events."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from aiostore.drafts import SCHEMA_VERSION
from aiostore.errors import EventStoreError
from aiostore.events import NO_METADATA, Event, Types

_FILE_NAME = re.compile(r"(?P<name>.+)\.v(?P<version>[0-9]+)\.json")


def check(
    types: Types, versions: Mapping[str, int], samples: str | PathLike[str] | Mapping[str, Mapping[int, Any]]
) -> None:
    """Check that there is a sample of each version up to the current one, and that each is decoded."""
    found = dict(_given(samples) if isinstance(samples, Mapping) else _stored(Path(samples)))
    wrong: list[str] = []
    for name, current in versions.items():
        wrong += [
            f"{name!r} version {version}: there is no sample; add {file_name(name, version)}"
            for version in range(1, current + 1)
            if (name, version) not in found
        ]
    for (name, version), data in found.items():
        if not 1 <= version <= versions.get(name, 0):
            wrong.append(f"{name!r} version {version}: there is a sample, and no such version is known")
            continue
        try:
            types.decode(_event(name, version, data))
        except (EventStoreError, msgspec.MsgspecError) as error:
            wrong.append(f"{name!r} version {version}: {error}")
    if wrong:
        raise AssertionError("\n".join(wrong))


def file_name(name: str, version: int) -> str:
    """The name of a sample's file."""
    return f"{quote(name, safe='')}.v{version}.json"


def _given(samples: Mapping[str, Mapping[int, Any]]) -> Iterator[tuple[tuple[str, int], bytes]]:
    for name, versions in samples.items():
        for version, data in versions.items():
            yield (name, version), msgspec.json.encode(data)


def _stored(directory: Path) -> Iterator[tuple[tuple[str, int], bytes]]:
    for path in sorted(directory.iterdir()):
        parts = _FILE_NAME.fullmatch(path.name)
        if parts is not None:
            yield (unquote(parts["name"]), int(parts["version"])), path.read_bytes()


def _event(name: str, version: int, data: bytes) -> Event:
    metadata = NO_METADATA if version == 1 else msgspec.Raw(msgspec.json.encode({SCHEMA_VERSION: version}))
    return Event(1, "sample", 1, name, "2000-01-01T00:00:00.000000Z", msgspec.Raw(data), metadata)
