"""Checksums made to hold: what is wrong is then for the logic to find, and not for them."""

from __future__ import annotations

import re
from contextlib import suppress
from zlib import crc32

from aiostore.engines.file import format as fmt
from aiostore.engines.file.blocks import BLOCK_BYTES
from aiostore.engines.file.format import CRC_BYTES, SLOT_BYTES, Damaged
from aiostore.engines.file.run_format import HEADER_BYTES, Header, decode_header, encode_header
from tests.fuzz.seeds import HEAD, MANIFEST, Files, first_of

_DURABLE = re.compile(rb'\{"durable":([0-9]{1,30})')
_HEADER = re.compile(rb'.*?_id":([0-9]{1,30}).*?_id":([0-9]{1,30}).*?s":([0-9]{1,30}).*?s":([0-9]{1,30})', re.DOTALL)
SIZE_MAX = 1 << 20


def mend(files: Files, path: str, store_id: str) -> None:
    """Make the checksums in the file hold, as far as it has the shape for it."""
    data = files[path]
    first = first_of(path)
    if first is not None:
        files[path] = mended_lines(data, fmt.line_seed(store_id, first))
    elif path == MANIFEST:
        files[path] = mended_text(data.rstrip(b"\n"), 0) + b"\n"
    elif path == HEAD:
        files[path] = b"".join(_slot(data[at : at + SLOT_BYTES], store_id) for at in (0, SLOT_BYTES))
    elif path.endswith(".idx"):
        files[path] = mended_run(data, store_id)


def mended_text(text: bytes, seed: int) -> bytes:
    """The text with the checksum in its end."""
    body = text[:-CRC_BYTES] if text[-CRC_BYTES:].startswith(b',"crc":"') else text.removesuffix(b"}")
    return b'%b,"crc":"%08x"}' % (body, crc32(body, seed))


def mended_lines(data: bytes, seed: int) -> bytes:
    """Each line that ends as one does, with its checksum; the rest as it is."""
    return b"\n".join(
        mended_text(line, seed) if line[-CRC_BYTES:].startswith(b',"crc":"') else line for line in data.split(b"\n")
    )


def _slot(slot: bytes, store_id: str) -> bytes:
    match = _DURABLE.match(slot)
    return slot if match is None else fmt.encode_slot(int(match[1]), store_id)


def mended_run(data: bytes, store_id: str) -> bytes:
    """The run with a header that its numbers give, and the checksums of its blocks and tables."""
    header = header_of(data, store_id)
    if header is None or header.size > SIZE_MAX:
        return data
    return with_header(data, header, store_id)


def header_of(data: bytes, store_id: str) -> Header | None:
    """What the header says, whether or not its checksum holds."""
    with suppress(Damaged):
        return decode_header(data[:HEADER_BYTES], store_id)
    match = _HEADER.match(data[:HEADER_BYTES])
    if match is None:
        return None
    first, last, segments, keys = map(int, match.groups())
    return Header(first, last, segments, keys, 0)


def with_header(data: bytes, header: Header, store_id: str) -> bytes:
    """The run with this header, of the size that follows from it, and with checksums that hold."""
    size = header.size
    if not 0 < size <= SIZE_MAX or header.directory_size < 0 or header.blocks < 0:
        return encode_header(header, store_id)[:HEADER_BYTES] + data[HEADER_BYTES:]
    out = bytearray(data[:size].ljust(size, b"\0"))
    at = header.directory_at + header.key_blocks * 8
    for number in range(header.blocks):
        start = header.blocks_at + number * BLOCK_BYTES
        out[at : at + 4] = crc32(out[start : start + BLOCK_BYTES]).to_bytes(4, "little")
        at += 4
    tables = crc32(out[header.directory_at : size], crc32(out[HEADER_BYTES : header.blocks_at]))
    out[:HEADER_BYTES] = encode_header(header._replace(tables=tables), store_id)[:HEADER_BYTES]
    return bytes(out)


def with_table(files: Files, path: str, store_id: str) -> None:
    """Have the run say the sizes and last checksums that its segments have now."""
    header = header_of(files[path], store_id)
    if header is None or header.size > SIZE_MAX or header.segments > 1000:
        return
    out = bytearray(files[path])
    for number in range(header.segments):
        at = HEADER_BYTES + number * 24
        first = int.from_bytes(out[at : at + 8], "little")
        segment = files.get(f"/s/{fmt.segment_name(first)}")
        if segment is None:
            continue
        last = segment.rstrip(b"\n")[-CRC_BYTES:]
        out[at + 8 : at + 16] = len(segment).to_bytes(8, "little")
        with suppress(ValueError):
            out[at + 16 : at + 20] = int(last[8:16], 16).to_bytes(4, "little")
    files[path] = with_header(bytes(out), header, store_id)
