"""The halves of an engine as settings want them, each loaded where it is used; no client here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.cache import Cache
    from upstash_middleware.core.ratelimit import RateLimiter, RateLimitRule
    from upstash_middleware.events import Observer
    from upstash_middleware.settings import Settings


class SystemClock:
    """The machine's clocks."""

    wall: Callable[[], float] = staticmethod(time.time)
    monotonic: Callable[[], float] = staticmethod(time.monotonic)


def limiter_of(
    settings: Settings,
    rules: tuple[RateLimitRule, ...],
    default: RateLimitRule | None,
    secret: Callable[[], bytes],
    observe: Observer,
) -> RateLimiter:
    """Return a rate limit by these rules. Raises ConfigurationError for two of one name."""
    from upstash_middleware.core.ratelimit import RateLimiter  # noqa: PLC0415

    return RateLimiter(
        rules,
        default,
        prefix=settings.prefix,
        secret=secret,
        clock=SystemClock,
        observe=observe,
        deadline=settings.deadline,
        match=settings.match,
        remember_denials=settings.remember_denials,
        deny_list=settings.deny_list,
        analytics=settings.analytics,
    )


def cache_of(
    settings: Settings, secret: Callable[[], bytes], observe: Observer, *, refreshes: bool
) -> Cache:
    """Return the cache; ``refreshes`` says that somebody takes over what is to be fetched anew."""
    from upstash_middleware.core.cache import Cache  # noqa: PLC0415
    from upstash_middleware.core.cache.directives import FROM_HANDLERS  # noqa: PLC0415

    return Cache(
        settings.cache,
        prefix=settings.prefix,
        secret=secret,
        clock=SystemClock,
        observe=observe,
        deadline=settings.cache_deadline,
        profile=settings.cache_profile,
        max_body=settings.cache_max_body,
        grace=settings.cache_grace,
        max_keep=settings.cache_max_keep,
        targets=(FROM_HANDLERS, *settings.cache_targets),
        background_refresh=refreshes and settings.cache_refresh,
        collapse=settings.cache_collapse,
        lock=settings.cache_lock,
        max_variants=settings.cache_max_variants,
        l1_bytes=settings.cache_l1_bytes,
        l1_seconds=settings.cache_l1_seconds,
        version=settings.cache_version or "",
        previous_version=settings.cache_previous_version or "",
        tells_keys=settings.cache_status_key,
        keys=settings.cache_keys,
        encrypt=settings.cache_encrypt,
    )


def stores_first(settings: Settings) -> bool:
    """Whether a response is stored just before its last byte goes out."""
    if settings.cache_store_first is not None or not settings.cache:
        return bool(settings.cache_store_first)
    from upstash_middleware.core.cache.profiles import profile_named  # noqa: PLC0415

    return profile_named(settings.cache_profile).stores_first
