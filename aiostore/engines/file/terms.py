"""Terms: what events are found by in the index of sealed segments, and the hash that stands for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeAlias

from aiostore.engines.file.blocks import decode_numbers
from aiostore.engines.postings import Kind, Term

ORDINAL_BITS: Final = 24
"""A key is the hash of a term and, in so many low bits, the place of an event in its run."""

ORDINAL_MASK: Final = (1 << ORDINAL_BITS) - 1

HASH_BYTES: Final = 5


Postings: TypeAlias = Iterable[tuple[str, Sequence[int]]]
"""Terms of one kind, such as the items of a dict: of each the text, and the event_ids that it is posted at, which must
increase strictly."""

_new_hash = blake2b
_ORDINAL_ZEROS: Final = bytes(ORDINAL_BITS // 8)


class Hash(Protocol):
    """What of a hash of `hashlib` is used here."""

    def copy(self) -> Hash: ...
    def update(self, data: bytes, /) -> object: ...
    def digest(self) -> bytes: ...


def hash_of(salt: bytes, kind: Kind) -> Hash:
    """The hash of the terms of a kind, to be copied for each: that is quicker than to begin anew."""
    return _new_hash(salt + kind, digest_size=HASH_BYTES)


def least_keys(begun: Hash, texts: Iterable[str]) -> array[int]:
    """What `Term.least` says of each of these texts, in one go."""
    pieces = [b""]
    for text in texts:
        hashed = begun.copy()
        hashed.update(text.encode("utf-8", "surrogatepass"))
        pieces.append(hashed.digest())
    return decode_numbers("Q", _ORDINAL_ZEROS.join(pieces))


class Hashes:
    """The hashes of one store's terms. Its id is the salt: texts that collide cannot be crafted without knowing it."""

    def __init__(self, store_id: str) -> None:
        salt = store_id.encode()
        self._begun = {kind: hash_of(salt, kind) for kind in Kind}

    def least(self, term: Term) -> int:
        """The least key that the term can have; it is kept with the term."""
        begun = self._begun[term.kind].copy()
        begun.update(term.text.encode("utf-8", "surrogatepass"))
        least = term.hashed = int.from_bytes(begun.digest(), "little") << ORDINAL_BITS
        return least
