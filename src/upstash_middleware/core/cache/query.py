"""Which of a URL's query parameters name a resource; text only."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.cache.rules import CacheRule


def normal_query(query: str, rule: CacheRule) -> str:
    """Return a raw query with the parameters that its rule keeps, in the order it gives them.

    Parameters that stay are not respelled: what their values mean only the application knows.
    """
    if rule.keep_query is None and not rule.ignore_query and not rule.sort_query:
        return query
    parts = [part for part in query.split("&") if part and _counts(part, rule)]
    # By name alone: the order among parameters of one name may mean something.
    return "&".join(sorted(parts, key=_name) if rule.sort_query else parts)


def _counts(part: str, rule: CacheRule) -> bool:
    name = _name(part)
    if rule.keep_query is not None and not _matches(name, rule.keep_query):
        return False
    return not _matches(name, rule.ignore_query)


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0])


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
