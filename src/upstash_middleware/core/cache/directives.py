"""Which directives a response gives to this cache: targeted ones, else Cache-Control.

RFC 9111 §5.2 and RFC 9213; what a directive means stands with the rule that obeys it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.fields import NO_DIRECTIVES, Directives, cache_control
from upstash_middleware.core.cache.structured import Item, Token, parse_dictionary
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.messages import Headers

CDN_CACHE_CONTROL = "cdn-cache-control"
FROM_HANDLERS = "upstash-cache-control"
"""What a handler's decorator says to this cache alone; it goes no further."""

# Directives whose argument is delta-seconds: any other type makes a targeted field invalid.
_OF_SECONDS = frozenset({"max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"})


@dataclass(frozen=True, slots=True)
class Control:
    """The directives that apply to a response."""

    directives: Directives
    targeted: bool = False
    """Whether they come from a targeted field, so that Expires counts no more than
    Cache-Control does (RFC 9213 §2.2)."""


def control_of(headers: Headers, targets: Iterable[str]) -> Control:
    """Return the directives of the first targeted field that is valid and not empty.

    ``targets`` are the fields' names in lower case. Without such a field those of
    Cache-Control apply.
    """
    for name in targets:
        value = headers.combined(name)
        directives = _targeted(value) if value is not None else None
        if directives is not None:
            return Control(directives, targeted=True)
    return Control(cache_control(headers))


def _targeted(value: str) -> Directives | None:
    members = parse_dictionary(value)
    if not members or not all(_fits(name, item) for name, item in members.items()):
        return None
    # A Boolean False says that the directive does not apply.
    return Directives(
        {name: _argument(item) for name, item in members.items() if item is not False}
    )


def _fits(name: str, item: Item) -> bool:
    return name not in _OF_SECONDS or (isinstance(item, int) and not isinstance(item, bool))


def _argument(item: Item) -> str | None:
    if item is True:
        return None
    return str(item) if isinstance(item, int | str | Token) else ""


def client_control(headers: Headers) -> Directives:
    """Return what a request asks of caches (§5.2.1).

    ``Pragma: no-cache`` counts where there is no Cache-Control (§5.4).
    """
    if "cache-control" in headers:
        return cache_control(headers)
    pragma = Directives.parse(headers.lines("pragma"))
    return Directives({"no-cache": None}) if "no-cache" in pragma else NO_DIRECTIVES
