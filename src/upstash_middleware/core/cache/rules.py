"""Cache rules: which requests the cache handles, and how responses are stored. Also profiles."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import inf
from string import Formatter
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import force_setattr

from upstash_middleware.core.clock import Duration, seconds_in
from upstash_middleware.core.identify import SentValue, cookie, header, query, takes
from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.errors import ConfigurationError, RuleMeta, named_part, unknown_name
from upstash_middleware.messages import HTTPRequest  # noqa: TC001 - for signatures

SUCCESSFUL = frozenset({200, 203, 204, 300, 301, 308})
"""The statuses to which a ``ttl`` in seconds applies."""
NEVER_STORED = frozenset({304, 412, 416, 428, 429, 431, 511})
"""Statuses of responses to conditions and ranges, which no later request could use (RFC 9110
§15.4.5, §15.5.13, §15.5.17), and statuses that RFC 6585 forbids to store."""
MAX_BODY_BYTES = 9 * 1024 * 1024
"""The maximum size of a body in bytes. A request to Upstash is limited to 10 MB in total."""
MAX_DEADLINE = 60.0


class CacheRule(Struct, frozen=True, dict=True, metaclass=RuleMeta):
    """Configures the cache for the requests that it matches. The first matching rule applies.

    The freshness stated by a response (``s-maxage``, ``max-age``, ``Expires``) takes precedence
    over ``ttl``. One rule can therefore cover many pages, and a page can still state a shorter
    lifetime, or forbid storing.

    Args:
        path: A pattern for paths without the prefix under which the application is mounted.
            ``/products/{id}`` matches one segment, ``/files/{rest:path}`` any number of segments.
        ttl: Seconds of freshness of a successful response (200, 203, 204, 300, 301, 308) that
            states no lifetime, or seconds by status: ``{200: 60, 404: 5}``. With None, only
            responses that state a lifetime are stored.
        errors_per_minute: The maximum number of responses with a status from 400 that each process
            stores in a minute. It limits the writes caused by requests for random paths. 0 means
            none.
        max_body: The maximum size of a stored body in bytes; None means the setting
            ``cache_max_body``.
        grace: Seconds for which a stale response is kept so that it can be revalidated; None means
            the setting ``cache_grace``.
        stale_while_revalidate: Seconds for which a stale response may be used while it is
            revalidated in the background, unless the response states its own value.
        stale_if_error: Seconds for which a stale response may be used instead of an error, unless
            the response states its own value.
        tags: Tags for purging; ``product:{id}`` contains a named part of the path.
        vary_cookies: Cookies that always select the response, in addition to its Vary. Responses to
            requests with other cookies are also stored. If they have ``Vary: Cookie``, the whole
            Cookie field selects them. With None, only responses with ``Vary: Cookie`` are stored.
        narrow_vary_cookie: Whether ``Vary: Cookie`` in the responses means only the cookies of
            ``vary_cookies``. If a page depends on other cookies, such as a session, it is shown to
            other users.
        ignore_cookies: Cookies that do not select responses, and that the application does not get:
            names, or patterns such as ``visitor_*``, in addition to cookies of analytics in profile
            ``safe``. A request with only these cookies counts as one without cookies. An empty list
            ignores none, and None means the setting ``cache_ignore_cookies``. Cookies in
            ``vary_cookies`` are never ignored.
        vary_headers: Request header fields that always select the response, in addition to its
            Vary.
        ignore_query: Query parameters that do not select: names, or patterns such as ``utm_*``.
        keep_query: The only query parameters that select; None for all.
        sort_query: Whether the order of query parameters with different names is ignored.
        user: A function of the request, sync or async, that returns the user's id. The id selects
            the response as in a private cache: the response is stored despite ``private``, cookies
            or credentials. The id is text, an integer, a UUID, or a user of Django or Flask-Login.
            None, False, empty text, or an object whose ``is_authenticated`` is False mean no user.
            For any other value, the request bypasses the cache, and the error is logged.
        bypass: The requests that bypass the cache: those with a cookie (``"cookie:sessionid"``), a
            header field (``"header:Authorization"``) or a query parameter (``"query:preview"``);
            several of these; or those for which a function of the request, sync or async, returns a
            true value.
        etag: Whether a stored response without an ETag gets one, computed from its body.
        downstream: The Cache-Control that clients and other caches get for stored responses,
            instead of the response's own; with ``user`` it must contain ``private``. The fields and
            cookies by which the rule selects are added to Vary. For an error, lifetimes are limited
            to the error's own.
        downstream_cdn: The Cache-Control for the CDN in front, such as ``max-age=86400``, in the
            field that only this CDN reads, such as ``Surrogate-Control`` with the setting
            ``cdn="fastly"``. If the response varies, a CDN that ignores Vary gets ``no-store``. For
            an error, lifetimes are limited to the error's own.
        deadline: The deadline in seconds of calls that are only for the cache; None means the
            setting ``cache_deadline``.

    Raises:
        ConfigurationError: A value is invalid; the message names the field.
    """

    path: str
    ttl: Duration | Mapping[int, Duration] | None = None
    errors_per_minute: int = 60
    max_body: int | None = None
    grace: Duration | None = None
    stale_while_revalidate: Duration = 0.0
    stale_if_error: Duration = 0.0
    tags: Sequence[str] = ()
    vary_cookies: Sequence[str] | None = None
    narrow_vary_cookie: bool = False
    ignore_cookies: Sequence[str] | None = None
    vary_headers: Sequence[str] = ()
    ignore_query: Sequence[str] = ()
    keep_query: Sequence[str] | None = None
    sort_query: bool = False
    user: Callable[[HTTPRequest], Any] | None = None
    bypass: str | Sequence[str] | Callable[[HTTPRequest], Any] | None = None
    etag: bool = False
    downstream: str | None = None
    downstream_cdn: str | None = None
    deadline: Duration | None = None

    def __post_init__(self) -> None:
        set_field = force_setattr  # the rule is frozen
        _ = self.pattern  # raises for an invalid path
        for name in ("tags", "ignore_query"):
            set_field(self, name, _texts(name, getattr(self, name)))
        for name in ("vary_cookies", "ignore_cookies", "keep_query"):
            if (value := getattr(self, name)) is not None:
                set_field(self, name, tuple(sorted(set(_texts(name, value)))))
        names = {name.lower() for name in _texts("vary_headers", self.vary_headers)}
        set_field(self, "vary_headers", tuple(sorted(names)))
        set_field(self, "ttl", _ttl(self.ttl))
        set_field(self, "deadline", _seconds("deadline", self.deadline, most=MAX_DEADLINE))
        for name in ("grace", "stale_while_revalidate", "stale_if_error"):
            set_field(self, name, _seconds(name, getattr(self, name), or_zero=True))
        _check(self)

    @cached_property
    def pattern(self) -> PathPattern:
        """The parsed path."""
        path: Any = self.path
        if not isinstance(path, str):
            raise _invalid("path", path, "text such as '/products/{id}'")
        try:
            return PathPattern.parse(path)
        except ConfigurationError as error:
            raise ConfigurationError(f"CacheRule.path: {error}") from None

    @cached_property
    def bypassed_by(self) -> tuple[SentValue, ...]:
        """The values named by ``bypass``: a request that has one of them bypasses the cache."""
        bypass: Any = self.bypass
        if bypass is None or callable(bypass):
            return ()
        return tuple(map(_sent_value, [bypass] if isinstance(bypass, str) else bypass))

    def __hash__(self) -> int:
        # Without ttl, which may be a mapping, and bypass, which may be a list: neither is hashable.
        return hash(tuple(getattr(self, n) for n in FIELDS if n not in {"ttl", "bypass"}))

    @cached_property
    def forbids_downstream(self) -> bool:
        """Whether ``downstream`` forbids other shared caches to store the responses."""
        words = (self.downstream or "").split(",")
        return not {"private", "no-store"}.isdisjoint(word.strip().lower() for word in words)

    def covers(self, path: str) -> bool:
        """Whether the rule covers this path, with any method."""
        return self.pattern.covers(path)

    def ttl_for(self, status: int) -> float | None:
        """Return the seconds of freshness of a response that states none; None if it has none."""
        if isinstance(self.ttl, Mapping):
            return cast("float | None", self.ttl.get(status))
        return cast("float | None", self.ttl if status in SUCCESSFUL else None)

    def tags_for(self, path: str) -> tuple[str, ...]:
        """Return the tags, with the named parts of the path filled in."""
        parts = self.pattern.match(path) or {}
        return tuple(tag.format_map(parts) for tag in self.tags)


FIELDS = CacheRule.__struct_fields__
"""The names of the fields that users set."""


def rule_from_mapping(mapping: Mapping[str, Any], setting: str = "cache[0]") -> CacheRule:
    """Create a rule from plain data, such as Django's settings or TOML.

    Raises ConfigurationError, which names the setting, the value and the valid values.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(
            f"{setting} = {mapping!r}: a rule is a mapping such as "
            "{'path': '/products/{id}', 'ttl': 60}, or a CacheRule"
        )
    for name in mapping:
        if name not in FIELDS:
            raise unknown_name(setting, name, FIELDS)
    if "path" not in mapping:
        raise ConfigurationError(
            f"{named_part(setting, 'path')} is missing: give a path such as '/products/{{id}}'"
        )
    try:
        return CacheRule(**mapping)
    except ConfigurationError as error:
        text = re.sub(
            r"^CacheRule\.(\w+)", lambda found: named_part(setting, found[1]), str(error), count=1
        )
        raise ConfigurationError(text) from None


def _invalid(name: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"CacheRule.{name} = {value!r} should be {expected}")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    # A single text is probably a mistake.
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise _invalid(name, value, "a sequence of texts")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"CacheRule.{name}: {text!r} should be non-empty text")
    return texts


def _seconds(name: str, value: Any, *, or_zero: bool = False, most: float = inf) -> float | None:
    if value is None:
        return None
    seconds = seconds_in(value)
    if seconds is None or not (seconds >= 0 if or_zero else seconds > 0) or seconds == inf:
        least = "from 0" if or_zero else "above 0"
        text = "a timedelta, or text such as '60s' or '5 minutes'"
        raise _invalid(name, value, f"a number of seconds {least}, {text}")
    if seconds > most:
        raise _invalid(name, value, f"at most {most:g} seconds")
    return seconds


def _ttl(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return _seconds("ttl", given)
    by_status = {}
    for status, seconds in given.items():
        if not re.fullmatch("[2-5][0-9][0-9]", str(status)):  # in TOML the keys are text
            raise ConfigurationError(
                f"CacheRule.ttl: {status!r} should be a status from 200 to 599, as in "
                "{200: 60, 404: 5}"
            )
        if int(status) in NEVER_STORED:
            raise ConfigurationError(
                f"CacheRule.ttl: responses with status {status} are never stored; leave it out"
            )
        by_status[int(status)] = _seconds(f"ttl[{status}]", seconds or 0)
    if not by_status:
        raise _invalid("ttl", given, "numbers of seconds by status, such as {200: 60, 404: 5}")
    return by_status


_CLIENT_VALUE_EXTRACTORS = {"cookie": cookie, "header": header, "query": query}


def _sent_value(text: Any) -> SentValue:
    kind, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in _CLIENT_VALUE_EXTRACTORS or not name:
        raise ConfigurationError(
            f"CacheRule.bypass: {text!r} should be 'cookie:NAME', 'header:NAME' or 'query:NAME', "
            "such as 'cookie:sessionid', a list of them, or a function of the request"
        )
    try:
        return _CLIENT_VALUE_EXTRACTORS[kind](name)
    except ConfigurationError as error:
        raise ConfigurationError(f"CacheRule.bypass: {error}") from None


def _check(rule: CacheRule) -> None:
    for name in ("narrow_vary_cookie", "sort_query", "etag"):
        if not isinstance(value := getattr(rule, name), bool):
            raise _invalid(name, value, "True or False")
    if rule.user is not None and not callable(rule.user):
        raise _invalid("user", rule.user, "a function of the request, or None")
    bypass: Any = rule.bypass
    if not (bypass is None or callable(bypass) or isinstance(bypass, str | list | tuple)):
        raise _invalid("bypass", bypass, "text such as 'cookie:sessionid', or a function")
    for name in ("user", "bypass"):
        if callable(function := getattr(rule, name)) and not takes(function, 1):
            raise _invalid(name, function, "called with the request, as 'lambda request: …'")
    _ = rule.bypassed_by  # raises for invalid text
    for name, most in (("errors_per_minute", inf), ("max_body", MAX_BODY_BYTES)):
        number: Any = getattr(rule, name)
        if name == "max_body" and number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
            bound = "" if most == inf else f" to {most}, the limit of one request to Upstash"
            raise _invalid(name, number, f"a whole number from 0{bound}")
    if rule.keep_query is not None and rule.ignore_query:
        raise ConfigurationError(
            f"CacheRule.ignore_query = {rule.ignore_query!r}: with keep_query, all other "
            "parameters are already ignored; leave out one of them"
        )
    _check_cookies(rule)
    _check_downstream(rule)
    for tag in rule.tags:
        _check_tag(tag, rule.pattern)


def _check_cookies(rule: CacheRule) -> None:
    for name in rule.vary_cookies or ():
        _check_cookie("CacheRule.vary_cookies", name, "the name of a cookie")
    for name in rule.ignore_cookies or ():
        check_cookie_pattern("CacheRule.ignore_cookies", name)
    if both := {*(rule.ignore_cookies or ())} & {*(rule.vary_cookies or ())}:
        raise ConfigurationError(
            f"CacheRule.ignore_cookies: {min(both)!r} selects responses by vary_cookies; leave out "
            "one of them"
        )
    if rule.narrow_vary_cookie and not rule.vary_cookies:
        raise ConfigurationError(
            "CacheRule.narrow_vary_cookie = True needs vary_cookies, such as ('theme',): the only "
            "cookies on which these pages depend"
        )
    if rule.narrow_vary_cookie and rule.covers("/a") and rule.covers("/a/a"):
        raise ConfigurationError(
            f"CacheRule.narrow_vary_cookie = True: the path {rule.path!r} matches the whole "
            "site, including pages with sessions; set it on a rule that matches only the pages "
            "that depend on no other cookies"
        )


def check_cookie_pattern(setting: str, pattern: Any) -> None:
    """Raise ConfigurationError for a value that is not a pattern of a cookie's name."""
    _check_cookie(setting, pattern, "the name of a cookie, or a pattern such as '_ga*'")


def _check_cookie(setting: str, name: Any, should_be: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[!#-+\--:<>-~]+", name):
        raise ConfigurationError(
            f"{setting}: {name!r} should be {should_be}, in ASCII and without spaces, quotes, "
            "'=', ';' or ','"
        )


def _check_downstream(rule: CacheRule) -> None:
    downstream = rule.downstream
    for_cdn: Any = rule.downstream_cdn
    if for_cdn is not None and not (isinstance(for_cdn, str) and re.fullmatch("[ -~]+", for_cdn)):
        raise _invalid("downstream_cdn", for_cdn, "text such as 'max-age=86400'")
    if for_cdn is not None and rule.user is not None:
        raise ConfigurationError(
            f"CacheRule.downstream_cdn = {for_cdn!r}: with user=, the CDN would send one user's "
            "page to other users; leave it out"
        )
    if downstream is None:
        return
    if not isinstance(downstream, str):
        raise _invalid("downstream", downstream, "text such as 'max-age=5'")
    if rule.user is not None and ('"' in downstream or not rule.forbids_downstream):
        raise ConfigurationError(
            f"CacheRule.downstream = {downstream!r}: with user=, other caches would send one "
            f"user's page to other users; write {f'private, {downstream}'!r}"
        )


def _check_tag(tag: str, pattern: PathPattern) -> None:
    try:
        wanted = {name for _, name, _, _ in Formatter().parse(tag) if name is not None}
    except ValueError as error:
        raise ConfigurationError(f"CacheRule.tags: {tag!r}: {error}") from None
    if missing := sorted(wanted - set(pattern.names)):
        raise ConfigurationError(
            f"CacheRule.tags: {tag!r} contains {{{missing[0]}}}, which the path "
            f"{pattern.text!r} does not have"
        )
    try:
        tag.format_map(dict.fromkeys(pattern.names, "7"))
    except (ValueError, LookupError) as error:
        raise ConfigurationError(
            f"CacheRule.tags: {tag!r} cannot be filled in with text: {error}"
        ) from None


# --- Profiles: the optional behaviour of shared caches -------------------------------------------


class Profile(Struct, frozen=True, kw_only=True):
    """The behaviour of the cache where RFC 9111 leaves a choice to shared caches."""

    name: str
    stores_set_cookie: bool = False
    """Whether to store a response with Set-Cookie, and send it to other clients."""
    stores_for_cookies: bool = False
    """Whether to store the response to a request with cookies even if neither ``Vary: Cookie`` nor
    the rule selects by them."""
    stores_for_credentials: bool = False
    """Whether to store the response to a request with a field such as X-Api-Key even if the field
    does not select it. For Authorization, RFC 9111 §3.5 applies."""
    stores_reflections: bool = False
    """Whether to store a response that shows an address from X-Forwarded-For or similar fields."""
    stores_parts: bool = False
    """Whether to store a partial response (§3.3). It only answers requests for the same range. A
    client's address that is cut off at its end is not detected."""
    ignores_bodies: bool = False
    """Whether to ignore the body of a GET or HEAD, because it has no meaning (RFC 9110 §9.3.1).
    Applications may still read it."""
    stores_posts: bool = False
    """Whether the response to a POST may answer a later GET if it says so (RFC 9110 §9.3.3). Each
    POST then needs a lookup."""
    ignores_analytics: bool = False
    """Whether to ignore cookies of analytics by default."""
    uses_heuristics: bool = False
    """Whether to use heuristic freshness for a response without explicit freshness (§4.2.2)."""
    stores_to_validate: bool = False
    """Whether to store a response that is never fresh, for its validator. This saves work only if
    the application answers conditional requests, and it costs a command for each response."""
    fills_despite_conditions: bool = False
    """Whether to forward a conditional request that misses without its conditions. By §4.3.2 the
    application evaluates them, but its 304 cannot be stored. While all clients have a copy of the
    page, each of their requests would reach the application."""
    obeys_clients: bool = False
    """Whether to obey the request's directives (§5.2.1). They are advisory, and would allow clients
    to bypass the application's own cache."""
    s_maxage_revalidates: bool = False
    """Whether s-maxage (§5.2.2.10) forbids stale responses even if the response states
    stale-while-revalidate. CDNs allow them, and applications are written for CDNs."""
    replays_date: bool = False
    """Whether a hit has the stored Date; otherwise the server sets the current time."""
    stores_first: bool = False
    """Whether to store a response before its last byte is sent, unless a setting decides."""
    updates_content_type: bool = False
    """Whether a 304 may change the Content-Type (§3.2). Frameworks add their default to a 304."""
    normalises: bool = False
    """Whether to normalise hosts and the values of selecting fields as far as their definitions
    allow. Applications may not do so: Django finds no language in ``de,,en``, and Starlette does
    not recognise ``GZIP`` as ``gzip``."""


SAFE = Profile(name="safe", ignores_analytics=True, fills_despite_conditions=True)
CONFORMING = Profile(
    name="conforming",
    stores_set_cookie=True,
    stores_for_cookies=True,
    stores_for_credentials=True,
    stores_reflections=True,
    stores_parts=True,
    ignores_bodies=True,
    stores_posts=True,
    uses_heuristics=True,
    stores_to_validate=True,
    obeys_clients=True,
    s_maxage_revalidates=True,
    replays_date=True,
    stores_first=True,
    updates_content_type=True,
    normalises=True,
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (SAFE, CONFORMING)}


def profile_named(name: str) -> Profile:
    """Return a profile by its name. Raises ConfigurationError for an unknown name."""
    if name not in PROFILES:
        raise ConfigurationError(
            f"cache profile {name!r} should be one of {', '.join(map(repr, PROFILES))}"
        )
    return PROFILES[name]
