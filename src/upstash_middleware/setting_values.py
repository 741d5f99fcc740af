"""One reader for each kind of setting: what was given in, what is meant out.

Each takes the setting's name and its value, and raises ConfigurationError naming both. Which
setting is read by which, and what they mean together, is in ``settings``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.core.ratelimit.mapping import rule_from_mapping as rate_limit_rule
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from upstash_middleware.core.cache import CacheRule
    from upstash_middleware.events import Observer

_DAY = 24 * 3600.0
_LONGEST_KEEP = 400 * _DAY
_MOST_VARIANTS = 1000
_LARGEST_BODY = 9 * 1024 * 1024
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}: {value!r} should be True or False")
    return value


def text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        # The value may be a token, so it is not repeated.
        raise ConfigurationError(f"{name}: should be text that is not empty")
    return value


def url_path(name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"/[^?#%{}]*", value)):
        raise ConfigurationError(f"{name}: {value!r} should be a path such as '/internal/purge'")
    return value


def long_text(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value.strip()) < 16):
        # The value is a secret, so it is not repeated.
        raise ConfigurationError(f"{name}: should be text of 16 characters at least")
    return value


def keys(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or not all(isinstance(key, str) for key in value):
        # The values are secrets, so they are not repeated.
        raise ConfigurationError(f'{name}: should be a list of keys such as ("new key", "old key")')
    if any(len(key.strip()) < 32 for key in value):
        raise ConfigurationError(
            f"{name}: each key should have 32 characters at least, such as those that "
            "secrets.token_urlsafe(32) makes"
        )
    return tuple(value)


def file_path(name: str, value: Any) -> str | None:
    return text(name, fspath(value) if isinstance(value, PathLike) else value)


def prefix(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or value.strip(": \t\r\n") != value:
        raise ConfigurationError(
            f"{name}: {value!r} should be text such as 'shop:production', without colons or "
            "white space at its ends"
        )
    return value


def seconds(name: str, value: Any) -> float:
    return _at_least(0, name, value, strictly=True, at_most=60)


def some_seconds(name: str, value: Any) -> float:
    return _at_least(0, name, value)


def minute_at_most(name: str, value: Any) -> float:
    return _at_least(0, name, value, at_most=60)


def keep(name: str, value: Any) -> float:
    return _at_least(60, name, value, at_most=_LONGEST_KEEP)


def _at_least(
    least: float, name: str, value: Any, *, strictly: bool = False, at_most: float = _LONGEST_KEEP
) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= at_most or (strictly and value == least):
        bound = f"above {least:g}" if strictly else f"from {least:g}"
        raise ConfigurationError(
            f"{name}: {value!r} should be seconds {bound}, {at_most:g} at most"
        )
    return float(value)


def byte_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_BODY:
        raise ConfigurationError(
            f"{name}: {value!r} should be a whole number of bytes, {_LARGEST_BODY} at most, which "
            "is what one request to Upstash can carry"
        )
    return value


def version(name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and _VERSION.fullmatch(value)):
        raise ConfigurationError(
            f"{name}: {value!r} should be text such as '2026-11-23', at most 64 letters, digits, "
            "dots, hyphens and underscores"
        )
    return value


def room(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(
            f"{name}: {value!r} should be a whole number of bytes such as 64 * 1024 * 1024, or 0"
        )
    return value


def count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_VARIANTS:
        raise ConfigurationError(
            f"{name}: {value!r} should be a whole number from 1 to {_MOST_VARIANTS}: each makes "
            "what a lookup reads longer"
        )
    return value


def one_of(*choices: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if value not in choices:
            raise ConfigurationError(
                f"{name}: {value!r} should be {' or '.join(map(repr, choices))}"
            )
        return str(value)

    return read


def field_names(name: str, value: Any) -> tuple[str, ...]:
    for field_name in _items(name, value, "field names such as 'CDN-Cache-Control'"):
        if not isinstance(field_name, str) or not _FIELD_NAME.fullmatch(field_name):
            raise ConfigurationError(
                f"{name}: {field_name!r} should be a field name such as 'CDN-Cache-Control'"
            )
    return tuple(value)


def function(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name}: {value!r} should be a function of request and decision")
    return value


def anything(_name: str, value: Any) -> Any:
    return value


def _items(name: str, value: Any, item: str) -> Sequence[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name}: {value!r} should be a list of {item}")
    return value


def rate_limits(name: str, value: Any) -> tuple[RateLimitRule, ...]:
    return tuple(
        rule if isinstance(rule, RateLimitRule) else rate_limit_rule(rule, setting=f"{name}[{i}]")
        for i, rule in enumerate(_items(name, value, "RateLimitRule"))
    )


def default_limit(name: str, value: Any) -> RateLimitRule | None:
    if value is None or isinstance(value, RateLimitRule):
        return value
    mapping = value if isinstance(value, Mapping) else {"limits": value}
    return rate_limit_rule({"name": "default", **mapping}, setting=name)


def cache_rules(name: str, value: Any) -> tuple[CacheRule, ...]:
    if not value and isinstance(value, list | tuple):
        return ()
    from upstash_middleware.core.cache import CacheRule  # noqa: PLC0415 - where anything is cached
    from upstash_middleware.core.cache import rule_from_mapping as cache_rule  # noqa: PLC0415

    return tuple(
        rule if isinstance(rule, CacheRule) else cache_rule(rule, setting=f"{name}[{i}]")
        for i, rule in enumerate(_items(name, value, "CacheRule"))
    )


def observers(name: str, value: Any) -> tuple[Observer, ...]:
    for observer in _items(name, value, "functions of one event"):
        if not callable(observer):
            raise ConfigurationError(f"{name}: {observer!r} should be a function of one event")
    return tuple(value)
