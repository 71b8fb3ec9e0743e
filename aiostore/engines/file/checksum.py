"""CRC-32 as `zlib.crc32` defines it, by ISA-L where that is installed (the extra ``speed``): the same in a quarter of
the time."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
