"""What a handler says of its response's storing: what the frameworks' ``@cached`` share.

It is said to the cache outside by fields of the response, the only thing that both know; nothing
is stored here. No framework's name stands here.
"""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.cache.directives import FROM_HANDLERS
from upstash_middleware.core.cache.rules import SUCCESSFUL
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.handlers import handler_name
from upstash_middleware.logs import logger
from upstash_middleware.messages import ResponseHead
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from upstash_middleware.core.effects import Flow

Fields = tuple[tuple[str, str], ...]

_OWN_FRESHNESS = ("cache-control", "cdn-cache-control", "expires")
NEVER: Fields = (("cache-control", "no-store"), (FROM_HANDLERS, "no-store"))
"""What keeps a response out of every cache, ours included."""
_told: set[str] = set()


@dataclass(frozen=True, slots=True)
class CachedAs:
    """How a handler's responses are to be stored; the arguments of ``@cached``.

    Raises ConfigurationError, naming the argument.
    """

    ttl: int
    tags: Iterable[str] = ()
    stale_while_revalidate: int = 0
    stale_if_error: int = 0

    def __post_init__(self) -> None:
        for name in ("ttl", "stale_while_revalidate", "stale_if_error"):
            value: object = getattr(self, name)
            least = 1 if name == "ttl" else 0
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise ConfigurationError(f"cached: {name}={value!r} should be whole seconds")
        given: object = self.tags
        if isinstance(given, str):
            raise ConfigurationError(f"cached: tags={given!r} should be a sequence of texts")
        object.__setattr__(self, "tags", tuple(self.tags))
        for tag in self.tags:
            if not _can_be_written(tag):
                raise ConfigurationError(f"cached: the tag {tag!r} should be text without commas")

    def fields(self, head: ResponseHead, parts: Mapping[str, Any]) -> Fields:
        """Return what to add to a response; ``parts`` are those that its path has given names.

        What the response says of its own freshness outweighs ``ttl``, and no error is stored.
        """
        if head.status not in SUCCESSFUL:
            return ()
        tags = [_filled(tag, parts) for tag in self.tags]
        if None in tags:  # without its tag, no purge would find it
            return ((FROM_HANDLERS, "no-store"),)
        named = ", ".join(filter(None, tags))
        added: Fields = (("cache-tag", named),) if named else ()
        if any(name in head.headers for name in _OWN_FRESHNESS):
            return added
        return (*added, (FROM_HANDLERS, self._directives()))

    def _directives(self) -> str:
        text = f"max-age={self.ttl}"
        if self.stale_while_revalidate:
            text += f", stale-while-revalidate={self.stale_while_revalidate}"
        if self.stale_if_error:
            text += f", stale-if-error={self.stale_if_error}"
        return text


@dataclass(frozen=True, slots=True)
class Marking:
    """Adds a handler's fields to its response's head, where a Passage shows it one."""

    cached: CachedAs | None
    """None for what is never to be stored."""
    parts: Mapping[str, Any]

    @property
    def holding(self) -> tuple[()]:
        """Return nothing: there is nothing on Redis to renew."""
        return ()

    def head(self, head: ResponseHead) -> ResponseHead:
        """Return the head with the fields."""
        return marked(head, self.cached, self.parts)

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002 - the protocol's name
        """Return None: nothing is left to do."""
        return None


def marked(head: ResponseHead, cached: CachedAs | None, parts: Mapping[str, Any]) -> ResponseHead:
    """Return a response's head with what its handler says of storing it."""
    if cached is None:
        headers = head.headers.without("cache-control", "expires")
        fields = NEVER
    else:
        headers, fields = head.headers, cached.fields(head, parts)
    pairs = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
    return ResponseHead(head.status, headers.adding(*pairs)) if fields else head


def tell_if_in_vain(gateway: Gateway | None, path: str, handler: object) -> None:
    """Warn, once for each handler, that no cache outside has looked a request for it up."""
    if gateway is not None:
        if not gateway.enabled:
            return
        has_cache = Halves.CACHE in gateway.halves
        if has_cache and any(rule.covers(path) for rule in gateway.settings.cache):
            return
    name = handler_name(handler)
    if name not in _told:
        _told.add(name)
        logger.warning(
            "@cached on %s stores nothing: no cache rule covers %s; add the middleware with "
            "cache=[CacheRule('/{rest:path}')], which stores what says so itself",
            name,
            path,
        )


def _can_be_written(tag: object) -> bool:
    """Whether a tag can stand in a list of them: in a field's characters, without commas."""
    plain = isinstance(tag, str) and tag.isascii() and tag.isprintable()
    return plain and bool(tag) and "," not in str(tag)


def _filled(tag: str, parts: Mapping[str, Any]) -> str | None:
    """Return a tag with the path's named parts, None where one is missing or breaks the field."""
    try:
        text = Formatter().vformat(tag, (), parts)
    except (KeyError, IndexError, ValueError):
        return None
    return text if _can_be_written(text) else None
