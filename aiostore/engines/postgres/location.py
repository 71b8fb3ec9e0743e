"""The URL of a store: what is handed to the driver, and what may be shown."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from aiostore.engines.postgres.schema import SCHEMA_DEFAULT, checked_name

_SECRET = frozenset({"password", "sslpassword", "passfile"})


class Location(NamedTuple):
    """Where a store is."""

    dsn: str
    """For the driver: with the password, without the schema."""
    schema: str
    shown: str
    """For people, and to open the same store again: without a password, with the schema where it is not the usual."""


def parse_location(url: str, schema: str | None) -> Location:
    """The location of a URL, whose query may name the ``schema`` too; ValueError where the two differ."""
    scheme, separator, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres") or not separator:
        raise ValueError("the URL must begin with postgresql:// or postgres://")
    body, _, query = rest.partition("?")
    given: str | None = schema
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "schema":
            kept.append((name, value))
            continue
        if schema is not None and schema != value:
            raise ValueError(f"the URL names the schema {value!r:.80}, the option {schema!r:.80}")
        given = value
    checked = checked_name(SCHEMA_DEFAULT if given is None else given)
    shown = [(name, value) for name, value in kept if name not in _SECRET]
    if checked != SCHEMA_DEFAULT:
        shown.append(("schema", checked))
    return Location(f"{scheme}://{body}{_query(kept)}", checked, f"{scheme}://{_without_password(body)}{_query(shown)}")


def _query(pairs: list[tuple[str, str]]) -> str:
    return f"?{urlencode(pairs, quote_via=quote, safe='/,:')}" if pairs else ""


def _without_password(body: str) -> str:
    server, slash, database = body.partition("/")
    user, at, hosts = server.rpartition("@")
    return f"{user.partition(':')[0]}{at}{hosts}{slash}{database}"
