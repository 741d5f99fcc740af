"""No-Vary-Search: the differences between queries that do not select a response.

The functions are pure. Section numbers refer to draft-ietf-httpbis-no-vary-search-10.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes, urlencode

from msgspec import Struct

from upstash_middleware.core.cache.http.structured import (
    FALSE,
    TRUE,
    parse_dictionary,
    parse_inner_list,
)
from upstash_middleware.messages import LONGEST_VALUE

if TYPE_CHECKING:
    from upstash_middleware.messages import Headers

MAX_NAMES: Final = 128
"""The maximum number of parameter names in one field."""


class Variation(Struct, frozen=True):
    """How the query selects a response: the URL variation config of the draft (§4)."""

    names: frozenset[str] = frozenset()
    """The parameters that do not select, or the only ones that do."""
    are_kept: bool = False
    """Whether ``names`` are the only parameters that select."""
    ignores_order: bool = False
    """Whether the order of parameters with different names is ignored."""

    def canonical(self, query: str) -> str:
        """Return the canonical form of a query: one of all the equivalent queries (§6).

        A query that is too long has no other equivalent, and neither has any under the default.
        """
        if self == EXACT or len(query) > LONGEST_VALUE:
            return query
        pairs = []
        for part in filter(None, query.split("&")):
            name, _, value = part.partition("=")
            if ((decoded := _decode_form_text(name)) in self.names) is self.are_kept:
                pairs.append((decoded, _decode_form_text(value)))
        if self.ignores_order:
            pairs.sort(key=lambda pair: pair[0])
        return urlencode(pairs)

    def __str__(self) -> str:
        """Return the field's value in a normalised form; empty for the default."""
        names = " ".join(f'"{quote(name, safe="")}"' for name in sorted(self.names))
        members = ["key-order"] if self.ignores_order else []
        if names or self.are_kept:
            members.append(f"{'except' if self.are_kept else 'params'}=({names})")
        return ", ".join(members)


EXACT: Final = Variation()
"""The default: the whole query selects, unchanged."""


def variation_of(headers: Headers) -> Variation:
    """Return how the query selects a response. For an invalid field, this is the default (§5.1)."""
    if "no-vary-search" not in headers:
        return EXACT
    found = parse_field(headers.combined("no-vary-search") or "")
    return EXACT if isinstance(found, str) else found


def parse_field(value: str) -> Variation | str:
    """Parse a field's value; return why it is invalid, if it is (§5.1)."""
    return _parse_members(value) if len(value) <= LONGEST_VALUE else "it is too long"


@lru_cache(maxsize=128)
def _parse_members(value: str) -> Variation | str:
    members = parse_dictionary(value)
    if members is None:
        return 'it should be a Dictionary of RFC 9651, such as key-order, params=("a" "b")'
    order = members.get("key-order", FALSE)
    if order not in {TRUE, FALSE}:
        return "key-order should be a Boolean"
    if "params" in members and "except" in members:
        return "params and except exclude each other; except=(…) alone ignores all other parameters"
    kind = "except" if "except" in members else "params"
    names = parse_inner_list(members.get(kind, "()"))
    if names is None:
        return f'{kind} should be a list of Strings, such as {kind}=("a" "b")'
    if len(names) > MAX_NAMES:
        return f"{kind} should name at most {MAX_NAMES} parameters"
    return Variation(frozenset(map(_decode_form_text, names)), kind == "except", order == TRUE)


def _decode_form_text(text: str) -> str:
    """Decode a name or value in the format application/x-www-form-urlencoded (§5.3)."""
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "replace")
