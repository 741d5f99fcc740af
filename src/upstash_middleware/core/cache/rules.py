"""Cache rules: which requests the cache answers, and how their responses are stored; profiles."""

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
"""The statuses to which a ``ttl`` in seconds applies; not errors."""
NEVER_STORED = frozenset({304, 412, 416, 428, 429, 431, 511})
"""Responses to conditions and ranges, which select no stored response (RFC 9110 §15.4.5, §15.5.13,
§15.5.17), and those that RFC 6585 forbids to store."""
MAX_BODY_BYTES = 9 * 1024 * 1024
"""Bytes of a body that one request to Upstash can carry: it may have 10 MB in all."""
MAX_DEADLINE = 60.0


class CacheRule(Struct, frozen=True, dict=True, metaclass=RuleMeta):
    """What the cache may do with the requests that it matches; the first matching rule counts.

    A response's own freshness (``s-maxage``, ``max-age``, ``Expires``) takes precedence over
    ``ttl``: the code that made it knows more than a pattern of paths. So a rule can cover many
    pages, and one of them can still ask for less, or for none.

    Args:
        path: A pattern for paths as the application routes them, without the prefix under which it
            is mounted: in ``/products/{id}``, one segment; in ``/files/{rest:path}``, everything
            after it.
        ttl: Seconds of freshness of a successful response (200, 203, 204, 300, 301, 308) that does
            not state its own, or seconds by status: ``{200: 60, 404: 5}``; None to store only
            responses that state their own.
        errors_per_minute: The most responses with a status of 400 or above that each process stores
            in a minute, so that requests for random paths cause no more writes than that; 0 for
            none.
        max_body: Bytes of the largest body that is stored; None uses the setting
            ``cache_max_body``.
        grace: Seconds for which a response is kept after it has become stale, to be validated; None
            uses the setting ``cache_grace``.
        stale_while_revalidate: Seconds for which a stale response may be used while it is
            revalidated in the background, if the response does not state its own.
        stale_if_error: Seconds for which a stale response may be used in place of an error, if the
            response does not state its own.
        tags: What its responses are purged by, ``product:{id}`` with the path's named parts.
        vary_cookies: Cookies that always select the response, whatever its Vary says. Responses to
            requests with other cookies are stored too, under the whole Cookie field if they have
            ``Vary: Cookie``. With None they are stored only if they have ``Vary: Cookie``.
        narrow_vary_cookie: Whether ``Vary: Cookie`` of these paths' responses means only the
            cookies of ``vary_cookies``. Anything else that such a page shows, such as a session, is
            then shown to others.
        ignore_cookies: Cookies that make no difference, and that the application does not get:
            names, or patterns such as ``visitor_*``, beside those of analytics in profile ``safe``.
            A request that has no others counts as one without cookies. An empty list ignores none,
            and None is the setting ``cache_ignore_cookies``; those of ``vary_cookies`` are never
            ignored.
        vary_headers: Request header fields that always select the response, whatever its Vary says.
        ignore_query: Query parameters that select nothing: names, or patterns such as ``utm_*``.
        keep_query: The only query parameters that select something; None for all.
        sort_query: Whether the order of query parameters with different names makes no difference.
        user: The user's id, from a function of the request, sync or async. It selects the response
            as in a private cache: ``private`` does not prevent storing it, nor do cookies or
            credentials. Text, an integer, a UUID, or a user of Django or Flask-Login. None, False,
            an empty text, or an object whose ``is_authenticated`` is False mean no user. With
            anything else the request bypasses the cache, and the error is logged.
        bypass: Which requests bypass the cache: those with a cookie, ``"cookie:sessionid"``, a
            header field, ``"header:Authorization"``, or a query parameter, ``"query:preview"``;
            several of them; or those for which a function of the request, sync or async, returns
            something true.
        etag: Whether a stored body without an ETag gets one, made from its bytes.
        downstream: The Cache-Control that clients and other caches get for what is stored here, in
            place of the response's own; under a rule with ``user`` it says ``private``. Fields and
            cookies that the rule selects by are added to Vary. For an error, no lifetime in it is
            longer than the error's own.
        downstream_cdn: What the CDN in front gets in place of Cache-Control for what is stored
            here, such as ``max-age=86400``, in the field that only this CDN reads:
            ``Surrogate-Control`` with the setting ``cdn="fastly"``. A CDN that ignores Vary gets
            ``no-store`` if the response varies; an error has no longer lifetime than its own.
        deadline: Seconds that a call for these requests and the cache alone may take; None for the
            setting ``cache_deadline``.

    Raises:
        ConfigurationError: A value is wrong; the message names the field.
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
        _ = self.pattern  # raises for a wrong path
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
        """The values of a request that make it bypass the cache, by ``bypass``."""
        bypass: Any = self.bypass
        if bypass is None or callable(bypass):
            return ()
        return tuple(map(_sent_value, [bypass] if isinstance(bypass, str) else bypass))

    def __hash__(self) -> int:
        # Without ttl, which may be a mapping, and bypass, which may be a list.
        return hash(tuple(getattr(self, n) for n in FIELDS if n not in {"ttl", "bypass"}))

    @cached_property
    def forbids_downstream(self) -> bool:
        """Whether ``downstream`` forbids other shared caches to store its responses."""
        words = (self.downstream or "").split(",")
        return not {"private", "no-store"}.isdisjoint(word.strip().lower() for word in words)

    def covers(self, path: str) -> bool:
        """Whether the rule is for this path, whatever the method."""
        return self.pattern.covers(path)

    def ttl_for(self, status: int) -> float | None:
        """Return the seconds of freshness of a response that states none, None if it has none."""
        if isinstance(self.ttl, Mapping):
            return cast("float | None", self.ttl.get(status))
        return cast("float | None", self.ttl if status in SUCCESSFUL else None)

    def tags_for(self, path: str) -> tuple[str, ...]:
        """Return its tags with the path's named parts filled in."""
        parts = self.pattern.match(path) or {}
        return tuple(tag.format_map(parts) for tag in self.tags)


FIELDS = CacheRule.__struct_fields__
"""What users set of a rule."""


def rule_from_mapping(mapping: Mapping[str, Any], setting: str = "cache[0]") -> CacheRule:
    """Make a rule from plain data, such as Django's settings or TOML.

    Raises ConfigurationError naming the setting, its value, and what would be right.
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
    # One text alone is a likely mistake.
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise _invalid(name, value, "a sequence of texts")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"CacheRule.{name}: {text!r} should be text, and not empty")
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


_SENT_VALUE_EXTRACTORS = {"cookie": cookie, "header": header, "query": query}


def _sent_value(text: Any) -> SentValue:
    kind, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in _SENT_VALUE_EXTRACTORS or not name:
        raise ConfigurationError(
            f"CacheRule.bypass: {text!r} should be 'cookie:NAME', 'header:NAME' or 'query:NAME', "
            "such as 'cookie:sessionid', a list of them, or a function of the request"
        )
    try:
        return _SENT_VALUE_EXTRACTORS[kind](name)
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
    _ = rule.bypassed_by  # raises for a wrong text
    for name, most in (("errors_per_minute", inf), ("max_body", MAX_BODY_BYTES)):
        number: Any = getattr(rule, name)
        if name == "max_body" and number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
            bound = "" if most == inf else f" to {most}, which one request to Upstash can carry"
            raise _invalid(name, number, f"a whole number from 0{bound}")
    if rule.keep_query is not None and rule.ignore_query:
        raise ConfigurationError(
            f"CacheRule.ignore_query = {rule.ignore_query!r}: with keep_query, all other "
            "parameters are ignored already; leave out one of them"
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
    """Refuse what is not a pattern of a cookie's name. Raises ConfigurationError."""
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
            f"CacheRule.downstream_cdn = {for_cdn!r}: with user=, the CDN would give one user's "
            "page to the next; leave it out"
        )
    if downstream is None:
        return
    if not isinstance(downstream, str):
        raise _invalid("downstream", downstream, "text such as 'max-age=5'")
    if rule.user is not None and ('"' in downstream or not rule.forbids_downstream):
        raise ConfigurationError(
            f"CacheRule.downstream = {downstream!r}: with user=, other caches would give one "
            f"user's page to the next; write {f'private, {downstream}'!r}"
        )


def _check_tag(tag: str, pattern: PathPattern) -> None:
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


# --- Profiles: what a shared cache may do beyond what every shared cache must --------------------


class Profile(Struct, frozen=True, kw_only=True):
    """What a shared cache may do beyond what every shared cache must."""

    name: str
    stores_set_cookie: bool = False
    """Whether a response with Set-Cookie may be stored and sent to others."""
    stores_for_cookies: bool = False
    """Whether the response to a request with cookies may be stored although neither ``Vary:
    Cookie`` nor the rule accounts for them."""
    stores_for_credentials: bool = False
    """Whether the response to a request with a field such as X-Api-Key may be stored although that
    field does not select it. For Authorization, RFC 9111 §3.5 decides."""
    stores_reflections: bool = False
    """Whether a response may be stored that shows an address from X-Forwarded-For or similar."""
    stores_parts: bool = False
    """Whether a partial response is stored (§3.3). It serves only requests for the same range, and
    may end in the middle of a client's address, which is then not found in it."""
    ignores_bodies: bool = False
    """Whether the body of a GET or HEAD is ignored, since it has no meaning (RFC 9110 §9.3.1).
    Applications may read it nevertheless."""
    stores_posts: bool = False
    """Whether the response to a POST may answer a later GET where it says so (RFC 9110 §9.3.3),
    which costs each POST a lookup."""
    ignores_analytics: bool = False
    """Whether cookies of analytics are ignored, unless a setting says that none is."""
    uses_heuristics: bool = False
    """Whether a response without explicit freshness may get heuristic freshness (§4.2.2)."""
    stores_to_validate: bool = False
    """Whether a response that is never fresh is stored for its validator alone. That saves work
    only if the application answers conditional requests, and costs a command each time."""
    fills_despite_conditions: bool = False
    """Whether a conditional request that misses is forwarded without its conditions. §4.3.2 leaves
    them to the application, whose 304 cannot be stored: as long as all clients have the page, each
    of them would reach the application."""
    obeys_clients: bool = False
    """Whether the request's own directives are obeyed (§5.2.1). They are advisory, and would let
    clients bypass an application's own cache."""
    s_maxage_revalidates: bool = False
    """Whether s-maxage (§5.2.2.10) forbids stale responses even if the response states
    stale-while-revalidate. CDNs allow that, and applications are written for CDNs."""
    replays_date: bool = False
    """Whether a hit carries the stored Date instead of the server's own."""
    stores_first: bool = False
    """Whether a response is stored before its last byte is sent, if the setting does not say."""
    updates_content_type: bool = False
    """Whether a 304 may change the Content-Type (§3.2). Frameworks put their default on a 304."""
    normalises: bool = False
    """Whether hosts and the values of selecting fields are normalised as far as their definitions
    allow. Applications are less thorough: Django reads no language from ``de,,en``, and Starlette
    does not read ``GZIP`` as ``gzip``."""


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
