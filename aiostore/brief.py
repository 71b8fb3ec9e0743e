"""A state in a few words, however large it is."""

from __future__ import annotations

import reprlib
from typing import Any

_repr = reprlib.Repr()
_repr.maxdict = _repr.maxlist = _repr.maxset = 8
_repr.maxstring = _repr.maxother = 200


def brief(state: Any) -> str:
    """A repr that looks only at the first few elements of a state, however large."""
    if isinstance(state, dict | list | set | tuple):
        if type(state) in (dict, list, set, tuple):
            return _repr.repr(state)
        return f"<{type(state).__qualname__} of {len(state)}>"  # a Counter, say
    names = getattr(state, "__struct_fields__", getattr(state, "__dataclass_fields__", None))
    if names is None:
        return _repr.repr(state)
    return f"{type(state).__qualname__}({', '.join(f'{name}={brief(getattr(state, name, None))}' for name in names)})"
