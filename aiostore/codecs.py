"""Codecs: how objects of a class become JSON and are made of it again. Structs, dataclasses and pydantic models."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

_PLACE = re.compile(r"(?s)(?P<why>.*?) - at `(?P<key>key in )?\$(?P<path>.*)`$")


class Codec(ABC):
    """One class and its JSON. ``decode`` makes an object of a JSON object's bytes, and raises what it likes."""

    decode: Callable[[bytes | msgspec.Raw], Any]

    @abstractmethod
    def json_value(self, value: Any) -> object:
        """What of an object is to be encoded."""

    def misfit(self, error: Exception) -> tuple[str, str]:
        """Where in the data (as ``.items[0].price``) ``decode`` found something wrong, and what."""
        found = _PLACE.match(str(error)) if isinstance(error, msgspec.ValidationError) else None
        if found is not None:
            return found["path"], found["why"]
        return "", str(error) if isinstance(error, msgspec.ValidationError) else repr(error)


class StructCodec(Codec):
    """Of msgspec Structs and dataclasses."""

    def __init__(self, kind: type) -> None:
        self.decode = msgspec.json.Decoder(kind).decode

    def json_value(self, value: Any) -> object:
        """The object itself: it is encoded as what it is."""
        return value


class ModelCodec(Codec):
    """Of pydantic models, which tell themselves how: pydantic is not needed here."""

    def __init__(self, kind: Any) -> None:
        validate: Callable[[bytes], Any] = kind.model_validate_json
        self.decode = lambda data: validate(bytes(data))

    def json_value(self, value: Any) -> object:
        """A dict of it, without what is computed of the rest, which validation may refuse."""
        return value.model_dump(mode="json", by_alias=True, round_trip=True)

    def misfit(self, error: Exception) -> tuple[str, str]:
        """As of any codec; the model tells it in its own way."""
        tell: Callable[[], list[Any]] = getattr(error, "errors", list)
        errors = tell()
        if not errors:
            return super().misfit(error)
        first = errors[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        return path, first["msg"]


def is_model(kind: object) -> bool:
    """Whether this is a class of pydantic models, or one that has their methods."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


def is_struct(kind: object) -> bool:
    """Whether this is a class of msgspec Structs or a dataclass."""
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))


def codec_of(kind: type) -> Codec:
    """The codec of a class. TypeError says which of its fields has no JSON form."""
    if is_model(kind):
        return ModelCodec(kind)
    if issubclass(kind, msgspec.Struct) and kind.__struct_config__.array_like:
        raise TypeError(f"{kind.__qualname__} is array_like: events are JSON objects")
    try:
        return StructCodec(kind)
    except (TypeError, NameError) as error:
        raise TypeError(f"{kind.__qualname__} cannot be decoded from JSON: {error}") from error
