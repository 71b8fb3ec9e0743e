"""JSON Schema of event types: one document for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aiostore.codecs import is_model
from aiostore.drafts import SCHEMA_VERSION

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def document(types: Sequence[tuple[str, int, Any]]) -> dict[str, Any]:
    """The schema of events of these types: (event type, schema version, class)."""
    structs = [kind for _, _, kind in types if not is_model(kind)]
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    definitions: dict[str, Any] = dict(components)
    references = dict(zip(structs, schemas, strict=True))
    for event_type, _, kind in types:
        if is_model(kind):
            references[kind] = _add_model(definitions, event_type, kind)
    return {
        "$schema": DIALECT,
        "title": "Events",
        "oneOf": [_event(event_type, version, references[kind]) for event_type, version, kind in types],
        "$defs": definitions,
    }


def _add_model(definitions: dict[str, Any], event_type: str, kind: Any) -> dict[str, Any]:
    """Take in a pydantic model and its parts, under names that no other type has."""
    schema = kind.model_json_schema(ref_template=f"#/$defs/{_escaped(event_type)}.{{model}}")
    for name, part in schema.pop("$defs", {}).items():
        definitions[f"{event_type}.{name}"] = part
    definitions.setdefault(f"{event_type}.{kind.__name__}", schema)  # one that refers to itself is there already
    return {"$ref": f"#/$defs/{_escaped(event_type)}.{kind.__name__}"}


def _escaped(name: str) -> str:
    """The name in a JSON pointer that is the fragment of a URI."""
    return name.replace("~", "~0").replace("/", "~1").replace("%", "%25")


def _event(event_type: str, version: int, data: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"type": "object", "properties": {SCHEMA_VERSION: {"const": version}}}
    if version > 1:
        metadata["required"] = [SCHEMA_VERSION]
    return {
        "title": event_type,
        "type": "object",
        "properties": {"event_type": {"const": event_type}, "data": data, "metadata": metadata},
        "required": ["event_type", "data", "metadata"],
    }
