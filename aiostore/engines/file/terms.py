"""Terms: what events are found by in the index of sealed segments, and the hash that stands for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Final, Protocol, TypeAlias

from aiostore.engines.file.blocks import decode_numbers

ORDINAL_BITS: Final = 24
"""A key is the hash of a term and, in so many low bits, the place of an event in its run."""

ORDINAL_MASK: Final = (1 << ORDINAL_BITS) - 1

HASH_BYTES: Final = 5


class Kind(bytes, Enum):
    """What a term is the text of; the byte keeps the texts of one kind apart from those of another."""

    STREAM = b"s"
    TYPE = b"t"
    TAG = b"g"
    KEY = b"k"


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


class Term:
    """A text to look up, whose hash is computed when first needed and remembered; so make one for a whole lookup."""

    __slots__ = ("_begun", "_least", "kind", "text")

    def __init__(self, kind: Kind, text: str, begun: Hash) -> None:
        self.kind = kind
        self.text = text
        self._begun = begun
        self._least: int | None = None

    @property
    def least(self) -> int:
        """The least key that the term can have: its hash, and the first place."""
        least = self._least
        if least is None:
            begun = self._begun.copy()
            begun.update(self.text.encode("utf-8", "surrogatepass"))
            least = self._least = int.from_bytes(begun.digest(), "little") << ORDINAL_BITS
        return least

    def __repr__(self) -> str:
        return f"Term({self.kind.name}, {self.text!r})"


class Terms:
    """Makes the terms of one store. Its id is the salt: texts that collide cannot be crafted without knowing it."""

    def __init__(self, store_id: str) -> None:
        salt = store_id.encode()
        self._streams, self._types, self._tags, self._keys = [hash_of(salt, kind) for kind in Kind]

    def stream(self, stream_id: str) -> Term:
        """The term of all events of the stream."""
        return Term(Kind.STREAM, stream_id, self._streams)

    def type(self, event_type: str) -> Term:
        """The term of all events of the type."""
        return Term(Kind.TYPE, event_type, self._types)

    def tag(self, tag: str) -> Term:
        """The term of all events with the tag."""
        return Term(Kind.TAG, tag, self._tags)

    def key(self, stream_id: str, idempotency_key: str) -> Term:
        """The term of the first event of the commit with this key."""
        return Term(Kind.KEY, key_text(stream_id, idempotency_key), self._keys)


def key_text(stream_id: str, idempotency_key: str) -> str:
    """The text of a `Kind.KEY`; a stream_id has no control characters."""
    return f"{stream_id}\0{idempotency_key}"
