"""What requests are about, as far as their URL says: rule, keys and tags, worked out once for each.

Text and tables only. What else selects a stored response (cookies, fields, a user) is of each
request, and is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.epochs import with_ancestors
from upstash_middleware.core.cache.keys import origin_of, url_of
from upstash_middleware.values import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.cache.exchanges import Context
    from upstash_middleware.core.cache.keys import Names
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import Request

_ROOM = 512
_LONGEST_REMEMBERED = 512
"""Characters of a request that its place is remembered of, so that all together take a megabyte."""


@value(frozen=True, slots=True)
class Place:
    """What a URL is to the cache, whoever asks."""

    rule: CacheRule
    """The first that covers it."""
    context: Context
    """What passages under that rule share."""
    url: str
    """Path and query, as its epoch is named by."""
    key: str
    previous: str
    """The key of the application's previous version, empty where there is none."""
    tags: tuple[str, ...]
    """What its rule says, with ancestors."""
    epochs: tuple[str, ...]
    """The keys of the epochs that bear on it."""
    narrows: bool
    """Whether cookies or fields that its rule names narrow its key."""


class Places:
    """The places of the URLs last asked for."""

    __slots__ = ("_covering", "_names", "_previous", "_version", "known")

    def __init__(
        self,
        covering: Sequence[tuple[CacheRule, Context]],
        names: Names,
        version: str,
        previous_version: str,
    ) -> None:
        self._covering = covering
        self._names = names
        self._version = version
        self._previous = previous_version
        self.known: dict[tuple[str, ...], Place] = {}

    def of(self, request: Request, method: str) -> Place | None:
        """Return the place of a request, taken as one of this method; None if no rule covers it."""
        path = request.path
        asked = (method, path, request.sent_path, request.query, request.scheme, request.host)
        place = self.known.get(asked)
        if place is not None:
            return place
        for rule, context in self._covering:
            if method in rule.methods and rule.covers(path):
                place = self._under(rule, context, request)
                if sum(map(len, asked)) <= _LONGEST_REMEMBERED:
                    if len(self.known) >= _ROOM:
                        self.known.clear()
                    self.known[asked] = place
                return place
        return None

    def _under(self, rule: CacheRule, context: Context, request: Request) -> Place:
        names, url = self._names, url_of(request, rule)
        origin = origin_of(request.scheme, request.host)
        previous, tags = self._previous, with_ancestors(rule.tags_for(request.path))
        return Place(
            rule,
            context,
            url,
            names.resource(origin, url, self._version),
            names.resource(origin, url, previous) if previous else "",
            tags,
            names.epochs(url, tags),
            bool(rule.vary_cookies or rule.vary_headers),
        )
