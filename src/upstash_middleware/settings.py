"""Settings: keyword arguments, a mapping or a rule file, and the environment, as one frozen value.

Everything that can be wrong is found here, when the middleware is constructed, but for missing
credentials: those are asked for when they are first needed, so that imports, tests and
management commands work without them. Every error names the setting and the value it got.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from upstash_middleware import setting_values as read
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from upstash_middleware.core.cache import CacheRule
    from upstash_middleware.core.ratelimit import RateLimitRule
    from upstash_middleware.core.ratelimit.answering import OnDenied
    from upstash_middleware.core.ratelimit.asking import Match
    from upstash_middleware.events import Observer

ENABLED_VARIABLE = "UPSTASH_MIDDLEWARE_ENABLED"


class Arguments(TypedDict, total=False):
    """The settings as keyword arguments of every middleware class, and as a mapping's keys."""

    config: str | PathLike[str]
    """The path of a rule file: these settings in TOML. What stands there is not given here too."""
    enabled: bool
    """Whether to do anything at all; also off with UPSTASH_MIDDLEWARE_ENABLED=0."""
    rate_limits: Sequence[RateLimitRule | Mapping[str, Any]]
    """Rules for chosen requests; the first that matches decides."""
    default_limit: Any
    """The limit for every request that no rule matches, ``"100/minute"``; None for no limit."""
    cache: Sequence[CacheRule | Mapping[str, Any]]
    """Which responses to store; the first rule that matches decides."""
    match: Match
    """``"first"``: the first of the rate_limits that covers a request decides, the default;
    ``"all"``: all that cover it, and then all are charged or none."""
    remember_denials: float
    """Seconds for which this process remembers at most that somebody is denied, without asking
    again; default 60, 0 to ask each time."""
    deny_list: str
    """Prefix of a JavaScript upstash-ratelimit, ``"@upstash/ratelimit"`` by its default, whose
    deny list on Redis is obeyed with a 403; one more command for each decision."""
    analytics: str
    """Prefix of one, so that the Rate Limit dashboard of Upstash's console shows this traffic;
    counts are sent every ten seconds with a call that is made anyway, and at shutdown."""
    on_denied: OnDenied
    """A function of request and Decision, sync or async, that puts a denial into words: status,
    header fields and body; None for this package's own. ``decision.settled_by`` tells a 403
    (``"deny list"``) and a 503 (``"closed"``) from a 429."""
    cache_profile: str
    """``"safe"``, the default, refuses to store what in practice leaks; ``"conforming"`` stores
    whatever RFC 9111 permits and replays the stored Date: run the server without its own."""
    cache_max_body: int
    """Bytes of the largest body that is stored; default 1 MiB."""
    cache_grace: float
    """Seconds for which a response is kept after it has become stale, to be validated; default
    one hour."""
    cache_max_keep: float
    """Seconds for which a response is kept at most, grace included; default 7 days. All who
    purge must be told the same, since what a purge leaves behind has to outlive what it kills."""
    cache_targets: Sequence[str]
    """Targeted fields (RFC 9213) that this cache obeys, the most specific first; default
    ``("CDN-Cache-Control",)``."""
    cache_refresh: bool
    """Whether a response used under stale-while-revalidate is fetched anew once it has been
    sent; default True. Otherwise the request that finds it stale waits for the new one."""
    cache_collapse: float
    """Seconds for which a request waits at most for another one that is on its way for the same
    response; default 5, 0 for not at all."""
    cache_lock: bool
    """Whether it waits for other processes' requests too, by a lock that costs each miss one
    more round trip and command; default False."""
    cache_store_first: bool
    """Whether a response is stored just before its last byte goes out, so that who has it finds
    it stored in whichever process, at one round trip's wait; default False, and True in profile
    ``"conforming"``. Otherwise it is stored right after that byte."""
    cache_max_variants: int
    """How many variants (RFC 9111 §4.1) of one resource are kept at a time; default 100."""
    cache_l1_bytes: int
    """Bytes of this process's memory for what lookups have found, so that the next hit costs no
    round trip and no command; default 0, none."""
    cache_l1_seconds: float
    """Seconds for which that is used without asking; default 5. What another process purges or
    stores is heard of within them, what this process does at once."""
    cache_version: str
    """The application's version, ``"2026-11-23"``, a part of each stored response's key, so that
    a deploy uses nothing of the one before; default None, no part."""
    cache_previous_version: str
    """The version before: what that has stored is used while it is fetched anew, at one more read
    for each miss; default None, nothing of it."""
    cache_status_key: bool
    """Whether Cache-Status tells the key of each response too, for debugging; default False."""
    cache_keys: Sequence[str]
    """Keys under which what is stored is signed: the first signs, each is taken when reading, and
    what is under none of them is a miss. 32 characters at least, the same in every process;
    default none, and then a checksum finds damage only."""
    cache_encrypt: bool
    """Whether it is encrypted under these keys in place of signed; default False. It takes
    ``pip install upstash-middleware[encryption]``."""
    purge_path: str
    """Where ``POST ?url=…&tag=…`` purges, ``"/internal/purge"``; default None, nowhere."""
    purge_token: str
    """The bearer token that this takes; 16 characters at least."""
    url: str
    """The database's REST URL; default UPSTASH_REDIS_REST_URL, then KV_REST_API_URL."""
    token: str
    """Its token; default UPSTASH_REDIS_REST_TOKEN, then KV_REST_API_TOKEN."""
    redis: Any
    """The application's own upstash_redis.Redis, sync or async, in place of URL and token; or a
    LocalUpstash, which is then reached without a socket."""
    prefix: str
    """What every key begins with; default ``upstash-middleware``."""
    secret: str
    """Key for hashing identifiers made from secrets; the same in every process. Default: derived
    from the token."""
    deadline: float
    """Seconds that a call with limits in it may take in all; default 1."""
    cache_deadline: float
    """Seconds that a call for the cache alone may take in all; default 0.25."""
    breaker: bool
    """Whether to stop asking Upstash for a while when half of the latest calls fail; default
    True."""
    breaker_slow: float
    """Seconds from which on a call counts as failed for that; default half of ``deadline``."""
    observers: Sequence[Observer]
    """Functions to be told of every event, beside the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an engine and its client are made from; see Arguments for each name."""

    config: str | None
    enabled: bool
    rate_limits: tuple[RateLimitRule, ...]
    default_limit: RateLimitRule | None
    cache: tuple[CacheRule, ...]
    match: Match
    remember_denials: float
    deny_list: str | None
    analytics: str | None
    on_denied: OnDenied | None
    cache_profile: str
    cache_max_body: int
    cache_grace: float
    cache_max_keep: float
    cache_targets: tuple[str, ...]
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
    cache_keys: tuple[str, ...] = field(repr=False)
    cache_encrypt: bool
    purge_path: str | None
    purge_token: str | None = field(repr=False)
    url: str | None
    token: str | None = field(repr=False)
    redis: Any = field(repr=False)
    prefix: str
    secret: str | None = field(repr=False)
    deadline: float
    cache_deadline: float
    breaker: bool
    breaker_slow: float | None
    observers: tuple[Observer, ...]

    def same_database(self, other: Settings) -> bool:
        """Whether one HTTP call can serve both."""
        mine = (self.url, self.token, self.redis)
        return mine == (other.url, other.token, other.redis)


def settings_from(
    arguments: Mapping[str, Any], environ: Mapping[str, str], *, source: str = ""
) -> Settings:
    """Check arguments and make Settings of them.

    ``source`` stands before each setting's name in errors, ``UPSTASH_MIDDLEWARE`` for Django's.
    Raises ConfigurationError.
    """
    _refuse_unknown(arguments, source)
    file, held = _rule_file(arguments, source)
    given = {**held, **arguments}
    value = {
        name: read(_named(file if name in held else source, name), given[name])
        if name in given
        else default
        for name, (read, default) in _SETTINGS.items()
    }
    if value["enabled"]:
        value["enabled"] = _enabled_by(environ)
    settings = Settings(**value)
    _check_together(settings, given, source)
    return settings


def _rule_file(arguments: Mapping[str, Any], source: str) -> tuple[str, Mapping[str, Any]]:
    """Return the rule file's path and what it holds; both empty where none is given."""
    file = read.file_path(_named(source, "config"), arguments.get("config"))
    if file is None:
        return "", {}
    from upstash_middleware.rule_file import read_rule_file  # noqa: PLC0415 - TOML, if it is used

    held = read_rule_file(file)
    _refuse_unknown(held, file)
    for name in held:
        if name in arguments:
            raise ConfigurationError(
                f"{_named(source, name)}: given here and in {file} too; leave out one of them"
            )
    return file, held


def _named(source: str, name: str) -> str:
    return f"{source}[{name!r}]" if source else name


def _refuse_unknown(arguments: Mapping[str, Any], source: str) -> None:
    for name in arguments:
        if name not in _SETTINGS:
            import difflib  # noqa: PLC0415 - for a mistake only

            close = difflib.get_close_matches(str(name), _SETTINGS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_SETTINGS)}"
            raise ConfigurationError(f"{_named(source, name)}: there is no such setting; {hint}")


def _enabled_by(environ: Mapping[str, str]) -> bool:
    text = environ.get(ENABLED_VARIABLE, "1").strip().lower()
    if text in {"1", "true", "yes", "on", ""}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ConfigurationError(f"{ENABLED_VARIABLE}={text!r}: should be 1 or 0")


def _check_together(settings: Settings, arguments: Mapping[str, Any], source: str) -> None:
    names = [rule.name for rule in settings.rate_limits if rule.parsed is not None]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"{_named(source, 'rate_limits')}: two rules are named {name!r} and would share "
                "their counters; give one of them another name="
            )
    if settings.redis is not None and (settings.url or settings.token):
        raise ConfigurationError(
            f"{_named(source, 'redis')}: it brings its own URL and token; leave out url and token"
        )
    if (settings.url is None) != (settings.token is None):
        missing = "url" if settings.url is None else "token"
        raise ConfigurationError(
            f"{_named(source, missing)}: url and token go together, and it is missing"
        )
    if (settings.purge_path is None) != (settings.purge_token is None):
        missing = "purge_path" if settings.purge_path is None else "purge_token"
        raise ConfigurationError(
            f"{_named(source, missing)}: purge_path and purge_token go together, and it is missing"
        )
    _check_encryption(settings, source)
    if settings.cache_previous_version and settings.cache_version in (
        None,
        settings.cache_previous_version,
    ):
        raise ConfigurationError(
            f"{_named(source, 'cache_previous_version')}: {settings.cache_previous_version!r} "
            "should be another one than cache_version, which has to be given too"
        )
    if settings.rate_limits and "default_limit" not in arguments:
        raise ConfigurationError(
            f"{_named(source, 'default_limit')}: missing, so that requests which match none of "
            "the rate_limits would pass unlimited; give a limit for them, such as '100/minute', "
            "or None if that is meant"
        )


def _check_encryption(settings: Settings, source: str) -> None:
    if not settings.cache_encrypt:
        return
    if not settings.cache_keys:
        raise ConfigurationError(
            f"{_named(source, 'cache_encrypt')}: it takes cache_keys too, under which to encrypt"
        )
    from importlib.util import find_spec  # noqa: PLC0415 - only where it is asked for

    if find_spec("cryptography") is None:
        raise ConfigurationError(
            f"{_named(source, 'cache_encrypt')}: the package cryptography is missing; "
            "pip install 'upstash-middleware[encryption]'"
        )


_SETTINGS: dict[str, tuple[Callable[[str, Any], Any], Any]] = {
    "config": (read.file_path, None),
    "enabled": (read.boolean, True),
    "rate_limits": (read.rate_limits, ()),
    "default_limit": (read.default_limit, None),
    "cache": (read.cache_rules, ()),
    "match": (read.one_of("first", "all"), "first"),
    "remember_denials": (read.minute_at_most, 60.0),
    "deny_list": (read.text, None),
    "analytics": (read.text, None),
    "on_denied": (read.function, None),
    "cache_profile": (read.one_of("safe", "conforming"), "safe"),
    "cache_max_body": (read.byte_count, 1024 * 1024),
    "cache_grace": (read.some_seconds, 3600.0),
    "cache_max_keep": (read.keep, 7 * 24 * 3600.0),
    "cache_targets": (read.field_names, ("CDN-Cache-Control",)),
    "cache_refresh": (read.boolean, True),
    "cache_collapse": (read.minute_at_most, 5.0),
    "cache_lock": (read.boolean, False),
    "cache_store_first": (read.boolean, None),
    "cache_max_variants": (read.count, 100),
    "cache_l1_bytes": (read.room, 0),
    "cache_l1_seconds": (read.seconds, 5.0),
    "cache_version": (read.version, None),
    "cache_previous_version": (read.version, None),
    "cache_status_key": (read.boolean, False),
    "cache_keys": (read.keys, ()),
    "cache_encrypt": (read.boolean, False),
    "purge_path": (read.url_path, None),
    "purge_token": (read.long_text, None),
    "url": (read.text, None),
    "token": (read.text, None),
    "redis": (read.anything, None),
    "prefix": (read.prefix, "upstash-middleware"),
    "secret": (read.text, None),
    "deadline": (read.seconds, 1.0),
    "cache_deadline": (read.seconds, 0.25),
    "breaker": (read.boolean, True),
    "breaker_slow": (read.seconds, None),
    "observers": (read.observers, ()),
}
