"""Cache groups (RFC 9875): which groups a response belongs to, and which it invalidates.

A group is a tag that no application can name: it has no ancestors, and belongs to one origin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from upstash_middleware.core.cache.entries import tag_of_group
from upstash_middleware.core.cache.http.structured import parse_strings
from upstash_middleware.core.cache.keys import origin_of
from upstash_middleware.messages import LONGEST_VALUE

if TYPE_CHECKING:
    from upstash_middleware.messages import Headers, HTTPRequest

CACHE_GROUPS: Final = "Cache-Groups"
"""The field of a response that names its groups (§2)."""
CACHE_GROUP_INVALIDATION: Final = "Cache-Group-Invalidation"
"""The field of a response to an unsafe request that names the groups it invalidates (§3)."""
MAX_GROUPS: Final = 128
"""In one field; at least 32 have to be supported. Each costs the read of its epoch with every
lookup of its members, and one command to invalidate."""


def groups_in(field: str, headers: Headers, request: HTTPRequest) -> tuple[str, ...] | str:
    """Return the groups that a field of a response names, as tags; a reason if it names too many.

    An invalid field is ignored, and so are parameters (§2, §3).
    """
    value = headers.combined(field.lower())
    if value is None:
        return ()
    if len(value) > LONGEST_VALUE:
        return f"{field} has more than {LONGEST_VALUE} characters"
    names = dict.fromkeys(parse_strings(value) or ())
    if len(names) > MAX_GROUPS:
        return f"{field} names more than {MAX_GROUPS} groups"
    origin = origin_of(request.scheme, request.host)
    return tuple(tag_of_group(origin, name) for name in names)
