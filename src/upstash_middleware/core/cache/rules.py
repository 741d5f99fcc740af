"""Cache rules: which requests the cache answers, and what holds for their responses.

Values that users write by hand, or that come from plain mappings; they are checked when they
are made and need neither credentials nor I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass, field, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from upstash_middleware.messages import Request

SUCCESSFUL = frozenset({200, 203, 204, 300, 301, 308})
"""The statuses that a rule's own TTL is for: an error is not to stay because a page may."""
NEGATIVE = frozenset({404, 405, 410, 414, 501})
"""The errors that a rule's negative TTL is for."""
LONGEST_DEADLINE = 60.0
CACHEABLE_METHODS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class CacheRule:
    """What the cache may do with the requests that it matches; the first rule that does counts.

    What a response says of its own freshness (``s-maxage``, ``max-age``, ``Expires``) outweighs
    ``ttl``: the code that made the response knows more about it than a pattern of paths. So a
    rule can cover many pages, and one of them can still ask for less, or for none.

    Raises ConfigurationError, naming the field, for values that mean nothing.
    """

    path: str
    """``/products/{id}``: a named segment; ``/files/{rest:path}``: everything that follows."""
    ttl: float | None = None
    """Seconds of freshness for a successful response that states none itself; None to store
    only what states its own."""
    negative_ttl: float | Mapping[int, float] | None = field(default=None, hash=False)
    """The same for 404, 405, 410, 414 and 501, or for the statuses of a mapping,
    ``{404: 60, 503: 5}``; None to store only those that state it."""
    grace: float | None = None
    """Seconds for which a response is kept after it has become stale, to be validated; None for
    those of the setting ``cache_grace``."""
    stale_while_revalidate: float = 0.0
    """Seconds for which a stale response may be used while a fresh one is fetched, where the
    response does not say."""
    stale_if_error: float = 0.0
    """Seconds for which a stale response may stand in for an error, where it does not say."""
    tags: tuple[str, ...] = ()
    """What its responses are purged by, ``product:{id}`` with the path's named parts."""
    methods: tuple[str, ...] = CACHEABLE_METHODS
    """Those that are answered from the cache: GET, HEAD, or both."""
    vary_cookies: tuple[str, ...] | None = None
    """The cookies that select the response, in place of all that ``Vary: Cookie`` means; other
    cookies change nothing. None to take requests with cookies as their responses' Vary says."""
    vary_headers: tuple[str, ...] = ()
    """Request header fields that always select the response, whatever its Vary says."""
    ignore_query: tuple[str, ...] = ()
    """Query parameters that select nothing: names, or patterns such as ``utm_*``."""
    keep_query: tuple[str, ...] | None = None
    """The only query parameters that select something; None for all."""
    sort_query: bool = False
    """Whether the order of differently named query parameters means nothing."""
    user: Callable[[Request], Any] | None = None
    """Who asks, as text, from a function of the request, sync or async. What it answers selects
    the response as in a private cache: ``private`` is no hindrance to storing it, nor are
    cookies or credentials. None from it means that nobody in particular asks."""
    bypass: Callable[[Request], Any] | None = None
    """Whether a request is not for the cache, from a function of it, sync or async."""
    etag: bool = False
    """Whether a stored body without an ETag gets one, made from its bytes."""
    downstream: str | None = None
    """The Cache-Control that clients and caches on the way get for what is stored here, in
    place of the response's own."""
    deadline: float | None = None
    """Seconds that a call for these requests and the cache alone may take in all; None for what
    the setting ``cache_deadline`` says."""
    pattern: PathPattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", _pattern(self.path))
        for name in ("tags", "methods", "ignore_query"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("vary_cookies", "keep_query"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(sorted(set(_texts(name, value)))))
        fields = {name.lower() for name in _texts("vary_headers", self.vary_headers)}
        object.__setattr__(self, "vary_headers", tuple(sorted(fields)))
        _check_kinds(self)
        _check_seconds("ttl", self.ttl)
        object.__setattr__(self, "negative_ttl", _negative_ttl(self.negative_ttl))
        _check_seconds("grace", self.grace or None)
        for name in ("stale_while_revalidate", "stale_if_error"):
            _check_seconds(name, getattr(self, name) or None)
        _check_deadline(self.deadline)
        _check_methods(self.methods)
        _check_tags(self.tags, self.pattern)

    def covers(self, path: str) -> bool:
        """Whether the rule is about this path, whatever the method."""
        return self.pattern.match(path) is not None

    def ttl_for(self, status: int) -> float | None:
        """Return the seconds of freshness for a response that states none, None for none."""
        if isinstance(self.negative_ttl, Mapping):
            return self.negative_ttl.get(status, self.ttl if status in SUCCESSFUL else None)
        if status in SUCCESSFUL:
            return self.ttl
        return self.negative_ttl if status in NEGATIVE else None

    def tags_for(self, path: str) -> tuple[str, ...]:
        """Return its tags with the path's named parts filled in."""
        parts = self.pattern.match(path) or {}
        return tuple(tag.format_map(parts) for tag in self.tags)


_SETTINGS = tuple(spec.name for spec in fields(CacheRule) if spec.init)


def rule_from_mapping(mapping: Mapping[str, Any], setting: str = "cache[0]") -> CacheRule:
    """Make a rule from plain data, as Django's settings and TOML hold it.

    Raises ConfigurationError naming the setting, its value, and what would be right.
    """
    if unknown := sorted(set(mapping) - set(_SETTINGS)):
        raise ConfigurationError(
            f"{setting}.{unknown[0]}: there is no such setting; there are {', '.join(_SETTINGS)}"
        )
    if "path" not in mapping:
        raise ConfigurationError(
            f"{setting}.path is missing: give a path such as '/products/{{id}}'"
        )
    try:
        return CacheRule(**mapping)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("CacheRule", setting, 1)) from None


def _pattern(path: Any) -> PathPattern:
    if not isinstance(path, str):
        raise ConfigurationError(
            f"CacheRule.path = {path!r} should be text such as '/products/{{id}}'"
        )
    try:
        return PathPattern.parse(path)
    except ConfigurationError as error:
        raise ConfigurationError(f"CacheRule.path: {error}") from None


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Return a sequence of texts; one text alone is a likely slip, so it is refused."""
    if isinstance(value, str | bytes) or not _iterable(value):
        raise ConfigurationError(f"CacheRule.{name} = {value!r} should be a sequence of texts")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"CacheRule.{name}: {text!r} should be text, and not empty")
    return texts


def _check_kinds(rule: CacheRule) -> None:
    for name in ("sort_query", "etag"):
        if not isinstance(getattr(rule, name), bool):
            raise ConfigurationError(
                f"CacheRule.{name} = {getattr(rule, name)!r} should be True or False"
            )
    for name in ("user", "bypass"):
        if (value := getattr(rule, name)) is not None and not callable(value):
            raise ConfigurationError(
                f"CacheRule.{name} = {value!r} should be a function of the request, or None"
            )
    if rule.downstream is not None and not isinstance(rule.downstream, str):
        raise ConfigurationError(
            f"CacheRule.downstream = {rule.downstream!r} should be text such as 'max-age=5'"
        )


def _negative_ttl(given: Any) -> Any:
    """Return seconds, or seconds by status; in TOML the keys of a table are text."""
    if not isinstance(given, Mapping):
        _check_seconds("negative_ttl", given)
        return given
    by_status = {}
    for status, seconds in given.items():
        if not re.fullmatch("[345][0-9][0-9]", str(status)):
            raise ConfigurationError(
                f"CacheRule.negative_ttl: {status!r} should be a status from 300 to 599"
            )
        _check_seconds(f"negative_ttl[{status}]", seconds or 0)
        by_status[int(status)] = seconds
    return by_status


def _iterable(value: Any) -> bool:
    return hasattr(value, "__iter__")


def _check_seconds(name: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ConfigurationError(f"CacheRule.{name} = {value!r} should be seconds above 0, or None")


def _check_deadline(value: Any) -> None:
    _check_seconds("deadline", value)
    if value is not None and value > LONGEST_DEADLINE:
        raise ConfigurationError(
            f"CacheRule.deadline = {value!r} should be {LONGEST_DEADLINE:g} seconds at most"
        )


def _check_methods(methods: Iterable[str]) -> None:
    for method in methods:
        if method not in CACHEABLE_METHODS:
            raise ConfigurationError(
                f"CacheRule.methods: {method!r} should be one of {', '.join(CACHEABLE_METHODS)}"
            )


def _check_tags(tags: Iterable[str], pattern: PathPattern) -> None:
    for tag in tags:
        try:
            wanted = {name for _, name, _, _ in Formatter().parse(tag) if name is not None}
        except ValueError as error:
            raise ConfigurationError(f"CacheRule.tags: {tag!r}: {error}") from None
        if missing := sorted(wanted - set(pattern.names)):
            raise ConfigurationError(
                f"CacheRule.tags: {tag!r} names {{{missing[0]}}}, which the path "
                f"{pattern.text!r} does not have"
            )
        try:
            tag.format_map(dict.fromkeys(pattern.names, "7"))
        except (ValueError, LookupError) as error:
            raise ConfigurationError(
                f"CacheRule.tags: {tag!r} cannot be filled in with text: {error}"
            ) from None
