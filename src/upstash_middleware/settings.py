"""Settings: read from keyword arguments, a mapping, a rule file and the environment.

All settings are checked here, when the middleware is created. Only missing credentials are reported
later, at the first call, so that imports, tests and management commands work without credentials.
Every error names the setting and its value.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from msgspec import Struct

from upstash_middleware.arguments import defaults_of, passing_to
from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.identify import address_setting, detected_platform, takes
from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.core.ratelimit.rules import check_together as check_rules_together
from upstash_middleware.core.ratelimit.rules import lease_in
from upstash_middleware.core.ratelimit.rules import rule_from_mapping as rate_limit_rule
from upstash_middleware.errors import ConfigurationError, named_part
from upstash_middleware.messages import Discreet

if TYPE_CHECKING:
    from upstash_middleware.core.cache import CacheRule, Purge
    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit.charges import Match
    from upstash_middleware.core.ratelimit.decision import OnDenied
    from upstash_middleware.core.ratelimit.rules import AnyLease, AnyLimits, Lease
    from upstash_middleware.core.sessions import SessionSettings
    from upstash_middleware.events import Observer

A = TypeVar("A")

ENABLED_VARIABLE = "UPSTASH_MIDDLEWARE_ENABLED"
_SECRETS = frozenset({"cache_debug", "cache_keys", "purge_token", "token", "redis", "secret"})
_WITH_FIELDS = {
    "rate_limits": "rate_limits",
    "default_limit": "rate_limits",
    "cache": "cache",
    "sessions": "sessions",
}
DOCUMENTATION = (
    "https://github.com/upstash-middleware/upstash-middleware/blob/main/docs/settings.md"
)
"""The page with an anchor for each setting and for each field of a rule."""
LEASE_VARIABLE = "UPSTASH_MIDDLEWARE_LEASE"
FIELDS_VARIABLES = {
    "credential_fields": "UPSTASH_MIDDLEWARE_CREDENTIAL_FIELDS",
    "reflected_fields": "UPSTASH_MIDDLEWARE_REFLECTED_FIELDS",
}
"""Environment variables with comma-separated field names, which are added to the settings."""
WITHOUT_EFFECT_ON_SESSIONS = (
    "rate_limits",
    "default_limit",
    "match",
    "remember_denials",
    "lease",
    "deny_list",
    "on_denied",
    "cache",
    "cdn",
    "on_purge",
    "purge_directories",
    "purge_path",
    "purge_token",
)
"""Settings that have no effect on sessions; using them for sessions alone is an error."""


class Arguments(TypedDict, total=False):
    """The settings as keys of a mapping; ``WithSettings`` documents them."""

    config: str | PathLike[str]
    enabled: bool
    rate_limits: Sequence[RateLimitRule | Mapping[str, Any]]
    default_limit: AnyLimits | RateLimitRule | Mapping[str, Any] | None
    cache: Sequence[CacheRule | Mapping[str, Any]]
    match: Match
    remember_denials: Duration
    lease: AnyLease | None
    client_ip: int | str | Sequence[str] | AnyExtractor | None
    deny_list: str
    analytics: str
    on_denied: OnDenied
    cache_profile: str
    cache_max_body: int
    cache_grace: Duration
    cache_max_keep: Duration
    cache_targets: Sequence[str]
    cache_groups: bool
    cache_ignore_cookies: Sequence[str] | None
    cache_refresh: bool
    cache_collapse: Duration
    cache_lock: bool
    cache_store_first: bool
    cache_max_variants: int
    cache_l1_bytes: int
    cache_l1_seconds: Duration
    cache_version: str
    cache_previous_version: str
    cache_status_key: bool
    cache_debug: str
    cache_keys: Sequence[str]
    cache_encrypt: bool
    data_l1_bytes: int
    data_l1_seconds: Duration
    credential_fields: Sequence[str]
    reflected_fields: Sequence[str]
    cdn: str
    on_purge: Callable[[Purge], Any]
    purge_directories: bool
    purge_path: str
    purge_token: str
    url: str
    token: str
    redis: Any
    transport: Any
    sessions: bool | Mapping[str, Any] | SessionSettings | None
    prefix: str
    secret: str
    deadline: Duration
    cache_deadline: Duration
    breaker: bool
    breaker_slow: Duration
    observers: Sequence[Observer]


class WithSettings(Generic[A]):
    """Takes an application and settings, and passes the given arguments to ``_configure``."""

    @passing_to("_configure")
    def __init__(  # noqa: PLR0913 - explicit for editors and type checkers
        self,
        app: A,
        *,
        config: str | PathLike[str] | None = None,
        enabled: bool = True,
        rate_limits: Sequence[RateLimitRule | Mapping[str, Any]] = (),
        default_limit: AnyLimits | RateLimitRule | Mapping[str, Any] | None = None,
        cache: Sequence[CacheRule | Mapping[str, Any]] = (),
        match: Match = "first",
        remember_denials: Duration = 60.0,
        lease: AnyLease | None = None,
        client_ip: int | str | Sequence[str] | AnyExtractor | None = None,
        deny_list: str | None = None,
        analytics: str | None = None,
        on_denied: OnDenied | None = None,
        cache_profile: str = "safe",
        cache_max_body: int = 1024 * 1024,
        cache_grace: Duration = 3600.0,
        cache_max_keep: Duration = 7 * 24 * 3600.0,
        cache_targets: Sequence[str] = ("CDN-Cache-Control",),
        cache_groups: bool = True,
        cache_ignore_cookies: Sequence[str] | None = None,
        cache_refresh: bool = True,
        cache_collapse: Duration = 5.0,
        cache_lock: bool = False,
        cache_store_first: bool | None = None,
        cache_max_variants: int = 100,
        cache_l1_bytes: int = 0,
        cache_l1_seconds: Duration = 5.0,
        cache_version: str | None = None,
        cache_previous_version: str | None = None,
        cache_status_key: bool = False,
        cache_debug: str | None = None,
        cache_keys: Sequence[str] = (),
        cache_encrypt: bool = False,
        data_l1_bytes: int = 0,
        data_l1_seconds: Duration = 5.0,
        credential_fields: Sequence[str] = (),
        reflected_fields: Sequence[str] = (),
        cdn: str | None = None,
        on_purge: Callable[[Purge], Any] | None = None,
        purge_directories: bool = False,
        purge_path: str | None = None,
        purge_token: str | None = None,
        url: str | None = None,
        token: str | None = None,
        redis: Any = None,
        transport: Any = None,
        sessions: bool | Mapping[str, Any] | SessionSettings | None = None,
        prefix: str = "upstash-middleware",
        secret: str | None = None,
        deadline: Duration = 1.0,
        cache_deadline: Duration = 0.25,
        breaker: bool = True,
        breaker_slow: Duration | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            config: The path of a rule file: these settings in TOML. A setting in the file must not
                also be an argument.
            enabled: False disables the middleware, as does the variable
                UPSTASH_MIDDLEWARE_ENABLED=0. Django's session engine still needs Upstash.
            rate_limits: Rules for selected requests; the first rule that matches a request applies.
            default_limit: The limit for requests that no rule matches, such as ``"100/minute"``;
                None for no limit. Required if ``rate_limits`` is set.
            cache: Rules that select the responses to store; the first rule that matches a request
                applies.
            match: ``"first"``, the default, applies the first of the rate_limits that matches a
                request; ``"all"`` applies all that match, and charges the request to all of them or
                to none.
            remember_denials: The longest time in seconds for which this process repeats a denial
                without a call to Upstash; default 60, 0 to always call. Denials by rules with
                ``settle`` are not remembered.
            lease: Reserve quota for busy identifiers, so that this process decides most of their
                requests without a call. The value is the duration, in seconds or as ``"1s"``, a
                Lease, or a mapping of its fields. It applies to rules without ``lease`` whose
                quotas are all at least 100, except ``Concurrency`` and limiters of
                ``upstash_ratelimit``. Default None: no leases, unless UPSTASH_MIDDLEWARE_LEASE is
                set, for instance to ``1s``.
            client_ip: How to find the client's address. Give the number of trusted proxies in front
                (0: use the connection's address), their networks (``"10.0.0.0/8"``, or a list), or
                a platform's name (``"vercel"``); or ``client_ip(...)``, or a function of the
                request. Rules without their own setting use it, and so does every fallback.
                Default: the platform's method if the platform is certain, or the connection's
                address.
            deny_list: The prefix of a JavaScript upstash-ratelimit, which is
                ``"@upstash/ratelimit"`` by default. Clients on its deny list on Redis get a 403.
                This costs one additional command for each decision.
            analytics: The prefix of the counts for the Rate Limit dashboard in Upstash's console.
                Counts are sent every ten seconds as a part of another call, and at
                shutdown.
            on_denied: A function of request and Decision, sync or async, that returns the response
                to a denied request: status, header fields and body; None for the default response.
                ``decision.settled_by`` distinguishes a 403 (``"deny list"``) and a 503
                (``"closed"``) from a 429.
            cache_profile: ``"safe"``, the default, does not store responses that are likely to be
                private; ``"conforming"`` stores all responses that RFC 9111 permits, and sends the
                stored Date, so the server must not add its own Date.
            cache_max_body: The largest body that is stored, in bytes; default 1 MiB.
            cache_grace: Seconds for which a stale response is kept for revalidation; default one
                hour.
            cache_max_keep: The longest time in seconds for which a response is kept, including its
                grace; default 7 days. Use the same value in every process that purges, because the
                record of a purge must outlive the responses.
            cache_targets: Targeted fields (RFC 9213) that apply to this cache, the most specific
                first; default ``("CDN-Cache-Control",)``.
            cache_groups: Whether Cache-Groups and Cache-Group-Invalidation (RFC 9875) apply;
                default True. If parties that do not trust each other share an origin, each of them
                could invalidate the others' responses.
            cache_ignore_cookies: Cookies that do not affect cached responses, and that are removed
                from requests for them: names, or patterns such as ``visitor_*``, for rules without
                their own ``ignore_cookies``. Profile ``"safe"`` also ignores analytics cookies,
                unless the list is empty, which ignores none; default None: only these.
            cache_refresh: Whether a response that was used under stale-while-revalidate is
                revalidated in the background after it has been sent; default True. Otherwise the
                next request waits for the new response.
            cache_collapse: The longest time in seconds for which a request waits for another
                request of this process that fetches the same response; default 5, 0 to never wait.
            cache_lock: Whether requests also wait for other processes, through a lock that costs
                each miss one additional round trip and command; default False.
            cache_store_first: Whether a response is stored before its last byte is sent, so that
                every process finds it as soon as the client has it; this delays the last byte by
                one round trip. Default False, or True in profile ``"conforming"``. Otherwise the
                response is stored right after its last byte.
            cache_max_variants: The largest number of stored variants (RFC 9111 §4.1) of a resource;
                default 100. A new variant replaces the least recently used one.
            cache_l1_bytes: Memory of this process for responses that were read from Upstash, in
                bytes. A hit in memory needs no round trip and no command; default 0: none.
            cache_l1_seconds: Seconds for which responses in memory are used; default 5. A purge or
                a new response takes effect at once in this process, and within this time in
                others.
            cache_version: The application's version, such as ``"2026-11-23"``. It is part of every
                stored response's key, so that a new deployment does not use responses of the old
                one; default None.
            cache_previous_version: The previous version, whose stored responses are used until they
                are fetched again. This costs one more read for each miss; default None.
            cache_status_key: Whether Cache-Status includes the cache key, for debugging;
                default False.
            cache_debug: A secret of at least 32 characters. If a request has it in the field
                ``Upstash-Cache-Debug``, this field of the response names the rule, the key, the
                outcome and the reason, and the response is not stored. Default None.
            cache_keys: Keys that sign stored responses: the first key signs, and every key
                verifies. A response that no key verifies is a miss. Keys have at least 32
                characters and are the same in every process; default none: a checksum only detects
                damage.
            cache_encrypt: Whether stored responses are encrypted with these keys instead of signed;
                default False. Needs ``pip install upstash-middleware[encryption]``.
            data_l1_bytes: Memory of this process for values of ``data`` that were read from
                Upstash, in bytes. Reading a value from memory needs no round trip and no command;
                default 0: none.
            data_l1_seconds: Seconds for which values in memory are used; default 5. A change takes
                effect in other processes within this time, and in this one at once. A value may be
                used for this long after its TTL.
            credential_fields: Request fields that identify a user, such as
                ``("X-Company-Token",)``, in addition to the known ones such as X-Api-Key. Profile
                ``"safe"`` does not share the response to a request with such a field, as with
                Authorization. Also UPSTASH_MIDDLEWARE_CREDENTIAL_FIELDS, separated by commas.
            reflected_fields: Request fields whose value the application may copy into a page or a
                redirect, such as ``("X-Brand",)``, in addition to the known ones such as
                X-Forwarded-Host. Each value has separate stored responses. Also
                UPSTASH_MIDDLEWARE_REFLECTED_FIELDS, separated by commas.
            cdn: The CDN in front: ``"cloudflare"``, ``"fastly"``, ``"vercel"``, ``"netlify"`` or
                ``"akamai"``. Stored responses get their tags in the header field that this CDN
                reads, so that ``on_purge`` can purge them there too; default None.
            on_purge: A function, sync or async, that is called with each Purge after it was carried
                out on Redis, for instance to pass its ``cdn_tags`` to a CDN; default None. If it
                raises, ``purge`` raises PurgeNotPassedOn. It is not called for the invalidation by
                an unsafe request (RFC 9111 §4.4).
            purge_directories: Whether whole directories and rules can be purged; default False.
                The command of each lookup then also reads the purges of up to four directories and
                of the rule, about 50 bytes each. Use the same value in every process: responses
                that were stored without it are not used with it.
            purge_path: The path of an endpoint for purging with ``POST ?url=…&tag=…``, such as
                ``"/internal/purge"``; default None.
            purge_token: The bearer token that this endpoint requires, at least 16 characters.
            url: The database's REST URL; default UPSTASH_REDIS_REST_URL, then KV_REST_API_URL.
            token: The REST token; default UPSTASH_REDIS_REST_TOKEN, then KV_REST_API_TOKEN.
            redis: A client of this package or of upstash_redis, sync or async, whose URL and token
                are used instead; or a LocalUpstash, which is called without a socket.
            transport: The HTTP client: ``"sockets"``, or ``"httpx"``, which is the default if a
                proxy is configured; or an httpx.Client (Flask, WSGI, Django) or httpx.AsyncClient
                (ASGI) of the application, or a tuple of both, for instance for mutual TLS. The
                middleware does not close such a client, and applies its own deadlines.
            sessions: Sessions for handlers, in ``UpstashMiddleware`` for ASGI: True,
                SessionSettings, or a mapping of its fields, such as ``{"https_only": True}``;
                default None: no sessions. Flask has its own session settings; so has Django, except
                ``max_size``, ``on_error`` and ``read_from``.
            prefix: The prefix of every key on Redis; use a different one for each application.
                Default ``upstash-middleware``. Applications with the same prefix share purges, the
                quotas of rules with the same name, and stored responses of the same URLs.
            secret: The key that hashes identifiers made from secrets; use the same in every
                process. Default: derived from the token.
            deadline: Seconds that a call with rate limits may take in total; default 1.
            cache_deadline: Seconds that a call only for the cache may take in total; default 0.25.
            breaker: Whether a circuit breaker stops calls to Upstash if half of the recent ones
                fail; default True.
            breaker_slow: Seconds after which the circuit breaker counts a call as failed; default
                half of ``deadline``.
            observers: Functions that are called with every event, in addition to the log.

        Raises:
            ConfigurationError: A setting is wrong; the message names it, its value and the remedy.
        """


class Settings(Discreet, Struct, frozen=True, kw_only=True):
    """The checked settings; WithSettings documents each of them."""

    config: str | None
    enabled: bool
    rate_limits: tuple[RateLimitRule, ...]
    default_limit: RateLimitRule | None
    cache: tuple[CacheRule, ...]
    match: Match
    remember_denials: float
    lease: Lease | None
    client_ip: AnyExtractor | None
    deny_list: str | None
    analytics: str | None
    on_denied: OnDenied | None
    cache_profile: str
    cache_max_body: int
    cache_grace: float
    cache_max_keep: float
    cache_targets: tuple[str, ...]
    cache_groups: bool
    cache_ignore_cookies: tuple[str, ...] | None
    cache_refresh: bool
    cache_collapse: float
    cache_lock: bool
    cache_store_first: bool | None
    cache_max_variants: int
    cache_l1_bytes: int
    cache_l1_seconds: float
    cache_version: str | None
    cache_previous_version: str | None
    cache_status_key: bool
    cache_debug: str | None
    cache_keys: tuple[str, ...]
    cache_encrypt: bool
    data_l1_bytes: int
    data_l1_seconds: float
    credential_fields: tuple[str, ...]
    reflected_fields: tuple[str, ...]
    cdn: str | None
    on_purge: Callable[[Purge], Any] | None
    purge_directories: bool
    purge_path: str | None
    purge_token: str | None
    url: str | None
    token: str | None
    redis: Any
    transport: Any
    sessions: SessionSettings | None
    prefix: str
    secret: str | None
    deadline: float
    cache_deadline: float
    breaker: bool
    breaker_slow: float | None
    observers: tuple[Observer, ...]
    platform: str | None = None
    """The detected platform, if ``client_ip`` is not set."""
    unset: frozenset[str] = frozenset()
    """The settings without a value."""

    def __repr__(self) -> str:
        shown = [name for name in self.__struct_fields__ if name not in _SECRETS]
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def same_database(self, other: Settings) -> bool:
        """Whether both settings use the same database and client, so that they can share calls."""
        mine = (self.url, self.token, self.redis, self.transport)
        return mine == (other.url, other.token, other.redis, other.transport)


def settings_from(
    arguments: Mapping[str, Any], environ: Mapping[str, str], *, source: str = ""
) -> Settings:
    """Check arguments and return Settings.

    ``source`` is put before each setting's name in errors: ``UPSTASH_MIDDLEWARE`` in Django. Raises
    ConfigurationError.
    """
    _refuse_unknown(arguments, source)
    file, from_file = _rule_file(arguments, source)
    given = {**from_file, **arguments}
    value = dict(DEFAULTS)
    for name, read in _SETTINGS.items():
        if name in given:
            try:
                value[name] = read(
                    _full_name(file if name in from_file else source, name), given[name]
                )
            except ConfigurationError as error:
                error.add_note(f"See {DOCUMENTATION}#{_anchor(name, str(error))}")
                raise
    if value["enabled"]:
        value["enabled"] = _enabled_by(environ)
    if "lease" not in given and environ.get(LEASE_VARIABLE):
        value["lease"] = _lease(LEASE_VARIABLE, environ[LEASE_VARIABLE])
    for name, variable in FIELDS_VARIABLES.items():
        named = [text.strip() for text in environ.get(variable, "").split(",")]
        value[name] += _SETTINGS[name](variable, [text for text in named if text])
    value["platform"] = detected_platform(environ) if value["client_ip"] is None else None
    settings = Settings(**value, unset=frozenset(_SETTINGS.keys() - given.keys()))
    _check_together(settings, given, source)
    return settings


def _anchor(name: str, message: str) -> str:
    """Return the documentation's anchor for a setting, or for a field of its rules."""
    field = re.search(rf"\b{name}(?:'\])?(?:\[\d+\])?(?:\.|\[')(\w+)", message)
    if field is None or name not in _WITH_FIELDS or "there is no such setting" in message:
        return name
    return f"{_WITH_FIELDS[name]}-{field[1]}"


def _rule_file(arguments: Mapping[str, Any], source: str) -> tuple[str, Mapping[str, Any]]:
    """Return the rule file's path and contents; both empty if there is none."""
    file = _file_path(_full_name(source, "config"), arguments.get("config"))
    if file is None:
        return "", {}

    from_file = read_rule_file(file)
    _refuse_unknown(from_file, file)
    for name in from_file:
        if name in arguments:
            raise ConfigurationError(
                f"{_full_name(source, name)}: given here and in {file} too; leave out one of them"
            )
    return file, from_file


def _full_name(source: str, name: str) -> str:
    return f"{source}[{name!r}]" if source else name


def _refuse_unknown(arguments: Mapping[str, Any], source: str) -> None:
    for name in arguments:
        if name not in _SETTINGS:
            import difflib  # noqa: PLC0415 - only for an unknown name

            close = difflib.get_close_matches(str(name), _SETTINGS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_SETTINGS)}"
            if name in {"path", "limits", "methods", "by", "ttl", "tags"}:
                rule = "{'path': '/api/generate', 'limits': '10/10s'}"
                if name in {"ttl", "tags"}:
                    rule = "{'path': '/products/{id}', 'ttl': 60}"
                hint = f"it belongs to a rule of rate_limits or cache, such as {rule}"
            raise ConfigurationError(
                f"{_full_name(source, name)}: there is no such setting; {hint}"
            )


def _enabled_by(environ: Mapping[str, str]) -> bool:
    text = environ.get(ENABLED_VARIABLE, "1").strip().lower()
    if text in {"1", "true", "yes", "on", ""}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ConfigurationError(f"{ENABLED_VARIABLE}={text!r}: should be 1 or 0")


def _check_together(settings: Settings, arguments: Mapping[str, Any], source: str) -> None:
    check_rules_together(settings.rate_limits, settings.default_limit)
    if settings.redis is not None and (settings.url or settings.token):
        raise ConfigurationError(
            f"{_full_name(source, 'redis')}: it has its own URL and token; leave out url and token"
        )
    if (settings.url is None) != (settings.token is None):
        missing = "url" if settings.url is None else "token"
        raise ConfigurationError(
            f"{_full_name(source, missing)}: it is missing; url and token go together"
        )
    if (settings.purge_path is None) != (settings.purge_token is None):
        missing = "purge_path" if settings.purge_path is None else "purge_token"
        raise ConfigurationError(
            f"{_full_name(source, missing)}: it is missing; purge_path and purge_token go together"
        )
    _check_encryption(settings, source)
    for index, rule in enumerate(settings.cache):
        if rule.downstream_cdn is not None and settings.cdn is None:
            named = named_part(f"{_full_name(source, 'cache')}[{index}]", "downstream_cdn")
            raise ConfigurationError(
                f"{named}: it needs the setting cdn, such as 'fastly', which says in which field"
            )
    if settings.cache_previous_version and settings.cache_version in (
        None,
        settings.cache_previous_version,
    ):
        raise ConfigurationError(
            f"{_full_name(source, 'cache_previous_version')}: {settings.cache_previous_version!r} "
            "should differ from cache_version, which has to be given too"
        )
    if settings.rate_limits and "default_limit" not in arguments:
        raise ConfigurationError(
            f"{_full_name(source, 'default_limit')}: missing, so requests that match none of the "
            "rate_limits would not be limited; give a limit for them, such as '100/minute', or "
            "None if that is intended"
        )


def _check_encryption(settings: Settings, source: str) -> None:
    if not settings.cache_encrypt:
        return
    if not settings.cache_keys:
        raise ConfigurationError(
            f"{_full_name(source, 'cache_encrypt')}: it needs cache_keys to encrypt with"
        )
    from importlib.util import find_spec  # noqa: PLC0415 - only if used

    if find_spec("cryptography") is None:
        raise ConfigurationError(
            f"{_full_name(source, 'cache_encrypt')}: the package cryptography is missing; "
            "pip install 'upstash-middleware[encryption]'"
        )


def check_kept_cookies(settings: Settings, kept: Mapping[str, str], source: str) -> None:
    """Reject cache rules that ignore a cookie which the application needs on every path.

    Args:
        settings: The settings of the middleware.
        kept: The names of such cookies, each with the setting that defines the name.
        source: The text before a setting's name in errors.

    Raises ConfigurationError.
    """
    if not settings.cache:
        return
    from upstash_middleware.core.cache.http.cookies import (  # noqa: PLC0415 - only with a cache
        ignored_cookie_pattern,
        ignored_cookies,
    )
    from upstash_middleware.core.cache.rules import profile_named  # noqa: PLC0415

    profile = profile_named(settings.cache_profile)
    for index, rule in enumerate(settings.cache):
        for pattern in ignored_cookies(rule, settings.cache_ignore_cookies, profile):
            ignored = ignored_cookie_pattern([pattern], rule.vary_cookies or ())
            for name, setting in kept.items():
                if ignored is None or not ignored.fullmatch(name):
                    continue
                where = _full_name(source, "cache_ignore_cookies")
                if rule.ignore_cookies is not None:
                    where = named_part(f"{_full_name(source, 'cache')}[{index}]", "ignore_cookies")
                raise ConfigurationError(
                    f"{where}: {pattern!r} matches {name!r}, the cookie of {setting}: the "
                    "application needs it; name only cookies on which no page depends; if the "
                    "pages are the same for all users, give the cache rule vary_cookies=() instead"
                )


def read_rule_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the settings in a rule file. Raises ConfigurationError if it cannot be read."""
    import tomllib  # noqa: PLC0415 - slow to import, as pathlib
    from pathlib import Path  # noqa: PLC0415

    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"the rule file {str(path)!r} cannot be read: {reason}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the rule file {str(path)!r} is not TOML: {error}") from None


# One reader for each kind of setting. A reader gets a setting's name and value, and returns the
# normalized value, or raises ConfigurationError with both. The table below assigns the readers.

_MAX_SECONDS = 400 * 24 * 3600.0
_MAX_BODY = 9 * 1024 * 1024
_MAX_VARIANTS = 1000
_FIELD_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"

_Reader = Callable[[str, Any], Any]


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}: {value!r} should be True or False")
    return value


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        # The value may be a token, so it is not repeated.
        raise ConfigurationError(f"{name}: should be text that is not empty")
    return value


def _secret(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value.strip()) < 16):
        raise ConfigurationError(f"{name}: should be text of at least 16 characters")
    return value


def _debug_secret(name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and re.fullmatch("[!-~]{32,}", value)):
        raise ConfigurationError(
            f"{name}: should be text of at least 32 characters, in ASCII and without spaces, such "
            "as the output of secrets.token_urlsafe(32)"
        )
    return value


def _keys(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f'{name}: should be a list of keys such as ("new key", "old key")')
    if any(len(key.strip()) < 32 for key in value):
        raise ConfigurationError(
            f"{name}: each key should have at least 32 characters, such as the output of "
            "secrets.token_urlsafe(32)"
        )
    return tuple(value)


def _file_path(name: str, value: Any) -> str | None:
    return _text(name, fspath(value) if isinstance(value, PathLike) else value)


def _matching(pattern: str, should_be: str) -> _Reader:
    def read(name: str, value: Any) -> str | None:
        if value is not None and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise ConfigurationError(f"{name}: {value!r} should be {should_be}")
        return value

    return read


def _prefix(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or value.strip(": \t\r\n") != value:
        raise ConfigurationError(
            f"{name}: {value!r} should be text such as 'shop:production', without colons or "
            "white space at its ends"
        )
    return value


def _duration(least: float = 0, most: float = _MAX_SECONDS, *, above: bool = False) -> _Reader:
    def read(name: str, value: Any) -> float:
        seconds = seconds_in(value)
        if seconds is None or not least <= seconds <= most or (above and seconds == least):
            bound = f"above {least:g} and at most" if above else f"from {least:g} to"
            raise ConfigurationError(
                f"{name}: {value!r} should be a number of seconds {bound} {most:.0f}, a timedelta, "
                "or text such as '60s' or '5 minutes'"
            )
        return float(seconds)

    return read


def _integer(least: int, most: float, should_be: str) -> _Reader:
    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigurationError(f"{name}: {value!r} should be a whole number {should_be}")
        return value

    return read


def _one_of(*choices: str) -> _Reader:
    def read(name: str, value: Any) -> str:
        if value not in choices:
            raise ConfigurationError(
                f"{name}: {value!r} should be {' or '.join(map(repr, choices))}"
            )
        return str(value)

    return read


def _field_names(example: str) -> _Reader:
    def read(name: str, value: Any) -> tuple[str, ...]:
        for field_name in _items(name, value, f"field names such as {example!r}"):
            if not isinstance(field_name, str) or not re.fullmatch(_FIELD_NAME, field_name):
                raise ConfigurationError(
                    f"{name}: {field_name!r} should be a field name such as {example!r}"
                )
        return tuple(value)

    return read


def _cookie_patterns(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    from upstash_middleware.core.cache.rules import check_cookie_pattern  # noqa: PLC0415 - if any

    for pattern in _items(name, value, "cookies such as '_ga*'"):
        check_cookie_pattern(name, pattern)
    return tuple(value)


def _function(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name}: {value!r} should be a function of request and decision")
    if value is not None and not takes(value, 2):
        raise ConfigurationError(
            f"{name}: {value!r} is called with request and decision; write for instance "
            "'lambda request, decision: …'"
        )
    return value


def _on_purge(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name}: {value!r} should be a function of one Purge")
    return value


def _cdn(name: str, value: Any) -> str | None:
    if value is None:
        return None
    from upstash_middleware.core.cache.cdn import CDNS  # noqa: PLC0415 - only with a CDN

    cdn: str = _one_of(*CDNS)(name, value)
    return cdn


def _lease(name: str, value: Any) -> Lease | None:
    try:
        return None if value is None else lease_in(value) or None
    except ConfigurationError as error:
        raise ConfigurationError(f"{name} = {value!r}: {error}") from None


def _observers(name: str, value: Any) -> tuple[Observer, ...]:
    for observer in _items(name, value, "functions of one event"):
        if not callable(observer):
            raise ConfigurationError(f"{name}: {observer!r} should be a function of one event")
    return tuple(value)


def _transport(name: str, value: Any) -> Any:
    httpx = sys.modules.get("httpx")  # already imported if the value is one of its clients
    kinds = () if httpx is None else (httpx.Client, httpx.AsyncClient)
    clients = value if isinstance(value, tuple | list) else [value]
    if value is None or (isinstance(value, str) and value in {"sockets", "httpx"}):
        return value
    if clients and all(isinstance(client, kinds) for client in clients):
        return value
    raise ConfigurationError(
        f"{name}: {value!r} should be 'httpx', 'sockets', an httpx.Client or httpx.AsyncClient, or "
        "a tuple of both"
    )


def _sessions(name: str, value: Any) -> SessionSettings | None:
    if value is None or value is False:
        return None
    from upstash_middleware.core.sessions import session_settings  # noqa: PLC0415 - if any

    found = session_settings(value, name)
    if found is not None and any(len(key.strip()) < 16 for key in found.secret_key):
        raise ConfigurationError(
            f"{named_part(found.setting, 'secret_key')}: should be text of at least 16 characters, "
            "such as the output of secrets.token_urlsafe(32)"
        )
    return found


def _anything(_name: str, value: Any) -> Any:
    return value


def _items(name: str, value: Any, item: str) -> Sequence[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name}: {value!r} should be a list of {item}")
    return value


def _rate_limits(name: str, value: Any) -> tuple[RateLimitRule, ...]:
    items = "rules such as {'path': '/api/generate', 'limits': '10/10s'}, or RateLimitRule"
    return tuple(
        rule if isinstance(rule, RateLimitRule) else rate_limit_rule(rule, setting=f"{name}[{i}]")
        for i, rule in enumerate(_items(name, value, items))
    )


def _default_limit(name: str, value: Any) -> RateLimitRule | None:
    if value is None or isinstance(value, RateLimitRule):
        return value
    mapping = value if isinstance(value, Mapping) else {"limits": value}
    return rate_limit_rule({"name": "default", **mapping}, setting=name)


def _cache_rules(name: str, value: Any) -> tuple[CacheRule, ...]:
    if not value and isinstance(value, list | tuple):
        return ()
    from upstash_middleware.core.cache import CacheRule  # noqa: PLC0415 - only with a cache
    from upstash_middleware.core.cache import rule_from_mapping as cache_rule  # noqa: PLC0415

    items = "rules such as {'path': '/products/{id}', 'ttl': 60}, or CacheRule"
    return tuple(
        rule if isinstance(rule, CacheRule) else cache_rule(rule, setting=f"{name}[{i}]")
        for i, rule in enumerate(_items(name, value, items))
    )


_version = _matching(
    r"[A-Za-z0-9._-]{1,64}",
    "text such as '2026-11-23', at most 64 letters, digits, dots, hyphens and underscores",
)

_SETTINGS: dict[str, _Reader] = {
    "config": _file_path,
    "enabled": _boolean,
    "rate_limits": _rate_limits,
    "default_limit": _default_limit,
    "cache": _cache_rules,
    "match": _one_of("first", "all"),
    "remember_denials": _duration(most=60),
    "lease": _lease,
    "client_ip": address_setting,
    "deny_list": _text,
    "analytics": _text,
    "on_denied": _function,
    "cache_profile": _one_of("safe", "conforming"),
    "cache_max_body": _integer(
        1,
        _MAX_BODY,
        f"of bytes, at most {_MAX_BODY}, which is what one request to Upstash can carry",
    ),
    "cache_grace": _duration(),
    "cache_max_keep": _duration(60),
    "cache_targets": _field_names("CDN-Cache-Control"),
    "cache_groups": _boolean,
    "cache_ignore_cookies": _cookie_patterns,
    "cache_refresh": _boolean,
    "cache_collapse": _duration(most=60),
    "cache_lock": _boolean,
    "cache_store_first": _boolean,
    "cache_max_variants": _integer(
        1, _MAX_VARIANTS, f"from 1 to {_MAX_VARIANTS}: each makes a lookup longer"
    ),
    "cache_l1_bytes": _integer(0, math.inf, "of bytes such as 64 * 1024 * 1024, or 0"),
    "cache_l1_seconds": _duration(most=60, above=True),
    "cache_version": _version,
    "cache_previous_version": _version,
    "cache_status_key": _boolean,
    "cache_debug": _debug_secret,
    "cache_keys": _keys,
    "cache_encrypt": _boolean,
    "data_l1_bytes": _integer(0, math.inf, "of bytes such as 16 * 1024 * 1024, or 0"),
    "data_l1_seconds": _duration(most=60, above=True),
    "credential_fields": _field_names("X-Company-Token"),
    "reflected_fields": _field_names("X-Brand"),
    "cdn": _cdn,
    "on_purge": _on_purge,
    "purge_directories": _boolean,
    "purge_path": _matching(r"/[^?#%{}]*", "a path such as '/internal/purge'"),
    "purge_token": _secret,
    "url": _text,
    "token": _text,
    "redis": _anything,
    "transport": _transport,
    "sessions": _sessions,
    "prefix": _prefix,
    "secret": _text,
    "deadline": _duration(most=60, above=True),
    "cache_deadline": _duration(most=60, above=True),
    "breaker": _boolean,
    "breaker_slow": _duration(most=60, above=True),
    "observers": _observers,
}
"""The reader of each setting."""


def read_setting(name: str, value: Any) -> Any:
    """Return the value of a setting in its one form. Raises ConfigurationError."""
    return _SETTINGS[name](name, value)


DEFAULTS = defaults_of(WithSettings.__init__)
"""The default of each setting; tests may set other defaults."""
