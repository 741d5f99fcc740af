"""The tables of docs/reference/known-fields.md, made from those that the cache works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.http.fields import (
    CLIENT_FIELDS,
    CREDENTIAL_FIELDS,
    REFLECTED_FIELDS,
)
from upstash_middleware.core.cache.http.vary import LIST_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping


def credentials() -> str:
    """Return the fields that name a user."""
    return _table(CREDENTIAL_FIELDS)


def reflected() -> str:
    """Return the fields that say which URL was asked for."""
    return _table({name: reason for name, (_, reason) in REFLECTED_FIELDS.items()})


def clients() -> str:
    """Return the fields that hold a client's address."""
    return _table(CLIENT_FIELDS)


def lists() -> str:
    """Return the fields whose value is a list."""
    said = {True: "no difference", False: "a difference"}
    rows = [
        f"| `{name.title()}` | {said[field.case]} | {said[field.order]} |"
        for name, field in LIST_FIELDS.items()
    ]
    return "\n".join(["| field | case makes | order makes |", "| --- | --- | --- |", *rows])


def _table(fields: Mapping[str, str]) -> str:
    rows = [f"| `{name}` | {reason} |" for name, reason in fields.items()]
    return "\n".join(["| field | what it is, and who sends or reads it |", "| --- | --- |", *rows])
