"""System checks: what is wrong with the setting, and with the places in ``MIDDLEWARE``.

A check answers messages and raises nothing. Middleware of others is known by its dotted name, a
subclass by its bases', so that nothing is imported which the project has not named itself.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import checks
from django.utils.module_loading import import_string

from upstash_middleware.django.configuration import SETTING, mapping_set
from upstash_middleware.django.denying import DENIED_VIEW
from upstash_middleware.django.identify import user
from upstash_middleware.django.middleware import Middleware
from upstash_middleware.errors import ConfigurationError, MissingCredentials
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.settings import settings_from
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

_PERSONAL = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
)
_GZIP = "django.middleware.gzip.GZipMiddleware"
_DJANGOS_CACHE = (
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
)
_AUTHENTICATION = (
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.RemoteUserMiddleware",
)
_CORS = ("corsheaders.middleware.CorsMiddleware",)
_HALF_NAMES = {Halves.RATE_LIMIT: "count each request", Halves.CACHE: "store each page"}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One entry of ``MIDDLEWARE``."""

    path: str
    lineage: frozenset[str]
    """The dotted names of the class and its bases."""
    halves: Halves
    """What it switches on, if it is one of ours."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def is_one_of(self, names: tuple[str, ...]) -> bool:
        return not self.lineage.isdisjoint(names)


def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Report the setting's first mistake, as E001; and as W001 that nothing reads it."""
    ours = [layer for layer in _layers() if layer.halves]
    try:
        mapping = mapping_set()
        settings_from(mapping, os.environ, source=SETTING)
        for layer in ours:
            Gateway.of(mapping, layer.halves, source=SETTING)
    except ConfigurationError as error:
        hint = f"Correct {SETTING} in the project's settings; without that no request is served."
        return [checks.Error(str(error), hint=hint, id="upstash_middleware.E001")]
    if ours or not hasattr(settings, SETTING):
        return []
    return [
        checks.Warning(
            f"{SETTING} is set, but none of its middleware stands in MIDDLEWARE: no limit holds "
            "and nothing is cached.",
            hint="Add 'upstash_middleware.django.UpstashMiddleware' to MIDDLEWARE, at its top.",
            id="upstash_middleware.W001",
        )
    ]


def check_middleware(**_: Any) -> list[checks.CheckMessage]:
    """Report places in ``MIDDLEWARE`` that would leak pages, count twice or work in vain."""
    layers = list(_layers())
    found = [*_doubled(layers)]
    for place, layer in enumerate(layers):
        if Halves.CACHE in layer.halves and _has_cache_rules():
            found += _above_the_cache(layer, layers[:place])
            found += _beside_the_cache(layer, layers)
        if Halves.RATE_LIMIT in layer.halves:
            found += _below_the_limit(layer, layers[place + 1 :])
    return found


def check_denied_view(**_: Any) -> list[checks.CheckMessage]:
    """Report a view for denials that cannot be found, as E006."""
    named = getattr(settings, DENIED_VIEW, None)
    try:
        view = import_string(named) if isinstance(named, str) else named
    except Exception as error:  # noqa: BLE001 - whatever the project's module raises
        return [_no_view(named, str(error))]
    return [] if view is None or callable(view) else [_no_view(named, "it is no view")]


def check_credentials(**_: Any) -> list[checks.CheckMessage]:
    """Report missing credentials, as E004; only where a deployment is checked."""
    try:
        if any(layer.halves for layer in _layers()):
            gateway = Gateway.of(mapping_set(), Halves.BOTH, source=SETTING)
            if gateway.enabled:
                gateway.check_credentials()
    except MissingCredentials as error:
        hint = "Set them where the servers run; every request asks for them."
        return [checks.Error(str(error), hint=hint, id="upstash_middleware.E004")]
    except ConfigurationError:
        pass  # E001 says it
    return []


def _layers() -> Iterator[_Layer]:
    for path in settings.MIDDLEWARE:
        try:
            middleware = import_string(path)
        except Exception:  # noqa: BLE001 - another's module; Django says it when it loads them
            middleware = None
        bases = inspect.getmro(middleware) if inspect.isclass(middleware) else ()
        names = {f"{base.__module__}.{base.__qualname__}" for base in bases}
        halves = middleware.halves if Middleware in bases else Halves(0)
        yield _Layer(path, frozenset({path, *names}), halves)


def _has_cache_rules() -> bool:
    try:
        return bool(settings_from(mapping_set(), os.environ, source=SETTING).cache)
    except ConfigurationError:  # E001 says it
        return False


def _doubled(layers: list[_Layer]) -> Iterator[checks.CheckMessage]:
    for half, what in _HALF_NAMES.items():
        names = [layer.name for layer in layers if half in layer.halves]
        if len(names) > 1:
            yield checks.Error(
                f"{' and '.join(names)} stand in MIDDLEWARE together and {what} twice.",
                hint="Keep UpstashMiddleware alone, or RateLimitMiddleware and CacheMiddleware.",
                id="upstash_middleware.E003",
            )


def _above_the_cache(cache: _Layer, above: list[_Layer]) -> Iterator[checks.CheckMessage]:
    personal = [layer for layer in above if layer.is_one_of(_PERSONAL)]
    if personal:
        names = ", ".join(layer.name for layer in personal)
        yield checks.Error(
            f"{cache.name} stands below {names} in MIDDLEWARE: it would store one visitor's pages "
            "and show them to others, for it cannot see the Vary and Set-Cookie added above it.",
            hint=f"Move {cache.path!r} above {personal[0].path!r}. A limit that needs to know the "
            "user goes below, as RateLimitMiddleware, with CacheMiddleware above.",
            id="upstash_middleware.E002",
        )
    for layer in above:
        if layer.is_one_of((_GZIP,)):
            yield checks.Warning(
                f"{cache.name} stands below {layer.name} in MIDDLEWARE: a stored page is "
                "compressed anew for each visitor.",
                hint=f"Move {cache.path!r} above {layer.path!r}; pages are then stored compressed, "
                "one for each Accept-Encoding that Vary tells apart.",
                id="upstash_middleware.W003",
            )


def _below_the_limit(limit: _Layer, below: list[_Layer]) -> Iterator[checks.CheckMessage]:
    authentication = [layer for layer in below if layer.is_one_of(_AUTHENTICATION)]
    if authentication and _limits_by_user():
        yield checks.Error(
            f"{limit.name} stands above {authentication[0].name} in MIDDLEWARE, and a limit counts "
            "by user, who is not known there: it counts by address.",
            hint=f"Move {limit.path!r} below {authentication[0].path!r}; beside a cache, as "
            "RateLimitMiddleware, with CacheMiddleware above both. Or decorate the views.",
            id="upstash_middleware.E005",
        )
    for layer in below:
        if layer.is_one_of(_CORS):
            yield checks.Warning(
                f"{limit.name} stands above {layer.name} in MIDDLEWARE: a browser does not show "
                "scripts of other origins the response to a denied request.",
                hint=f"Move {layer.path!r} above {limit.path!r}.",
                id="upstash_middleware.W004",
            )


def _limits_by_user() -> bool:
    try:
        found = settings_from(mapping_set(), os.environ, source=SETTING)
    except ConfigurationError:  # E001 says it
        return False
    rules = (*found.rate_limits, found.default_limit)
    return any(rule is not None and _asks_for_the_user(rule.by) for rule in rules)


def _asks_for_the_user(extractor: object) -> bool:
    inside = getattr(extractor, "extractors", ())
    return extractor is user or any(_asks_for_the_user(each) for each in inside)


def _no_view(named: object, why: str) -> checks.CheckMessage:
    return checks.Error(
        f"{DENIED_VIEW} = {named!r}: {why}.",
        hint="Name a view by its dotted path: 'shop.views.slow_down'; it is called with the "
        "request and the decision.",
        id="upstash_middleware.E006",
    )


def _beside_the_cache(cache: _Layer, layers: list[_Layer]) -> Iterator[checks.CheckMessage]:
    names = [layer.name for layer in layers if layer.is_one_of(_DJANGOS_CACHE)]
    if names:
        yield checks.Warning(
            f"{cache.name} and Django's own {' and '.join(names)} stand in MIDDLEWARE together: "
            "pages are stored twice, and a purge reaches only one of the two.",
            hint="Take Django's out of MIDDLEWARE.",
            id="upstash_middleware.W002",
        )
