"""A manifest that is lost follows from what else there is, and never from too little."""

from __future__ import annotations

import random
import zlib

import pytest

from aiostore.engines.file import format as fmt
from aiostore.engines.file.lost_manifest import id_with_checksum, lost_manifest, rewound
from tests.file.disks import MemoryDisk
from tests.file.driver import counted
from tests.file.examined import Files, sound
from tests.file.followed import STORE_ID, HandWritten


def found(files: Files) -> fmt.Manifest | None:
    disk = MemoryDisk(files)
    manifest = lost_manifest(disk, "/s", disk.names("/s"))
    assert disk.held == 0
    return manifest


@pytest.mark.parametrize("size", [0, 1, 4, 300])
def test_a_checksum_runs_backwards(size: int) -> None:
    dice = random.Random(size)
    for _ in range(20):
        data, seed = dice.randbytes(size), dice.getrandbits(32)
        assert rewound(data, zlib.crc32(data, seed)) == seed


def test_an_id_is_found_for_any_checksum() -> None:
    dice = random.Random(1)
    for checksum in (0, 2**32 - 1, dice.getrandbits(32)):
        store_id = id_with_checksum(checksum)
        assert zlib.crc32(store_id.encode()) == checksum
        assert len(store_id) == 32
        int(store_id, 16)


def test_where_the_id_can_still_be_read_it_is_that() -> None:
    files = dict(sound().files)
    manifest = fmt.decode_manifest(files["/s/aiostore.json"])
    files["/s/aiostore.json"] = files["/s/aiostore.json"].replace(b'"crc"', b'"cRc"')
    assert found(files) == manifest


def test_an_id_that_does_not_fit_is_not_taken() -> None:
    files = dict(sound().files)
    store_id = fmt.decode_manifest(files["/s/aiostore.json"]).store_id
    files["/s/aiostore.json"] = b'{"store_id":"%b"' % b"0123456789abcdef" * 2
    manifest = found(files)
    assert manifest is not None
    assert zlib.crc32(manifest.store_id.encode()) == zlib.crc32(store_id.encode())


def test_one_line_alone_is_too_little_and_the_head_beside_it_is_not() -> None:
    made = HandWritten(head=False)
    made.put(made.lines(counted(1)))
    files = made.disk.files()
    del files["/s/aiostore.json"]
    assert found(files) is None
    files["/s/head"] = fmt.encode_slot(1, STORE_ID) * 2
    manifest = found(files)
    assert manifest is not None
    assert zlib.crc32(manifest.store_id.encode()) == zlib.crc32(STORE_ID.encode())


def test_damaged_lines_are_outvoted() -> None:
    files = dict(sound().files)
    del files["/s/aiostore.json"]
    path = sound().segments[0]
    files[path] = files[path].replace(b'"data":{"n"', b'"data":{"m"', 3)
    manifest = found(files)
    assert manifest is not None
    assert manifest.created == sound().events[0]._timestamp
    assert fmt.line_seed(manifest.store_id, 1) == fmt.line_seed(
        fmt.decode_manifest(sound().files["/s/aiostore.json"]).store_id, 1
    )
