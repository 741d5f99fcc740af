"""System checks for the setting and for the order of ``MIDDLEWARE``.

A check yields messages and never raises. Other middleware is recognized by the dotted names of its
class and base classes, so the checks import only modules that the project's settings name.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import msgspec
from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from upstash_middleware.core.identify import application_address, framework_user
from upstash_middleware.django.conf import (
    DENIED_VIEW,
    SETTING,
    is_upstash_engine,
    kept_cookies,
    mapping_set,
)
from upstash_middleware.django.middleware import Middleware, adds_nothing
from upstash_middleware.django.requests import chooses_language_itself, user
from upstash_middleware.errors import ConfigurationError, MissingCredentials
from upstash_middleware.routes import django_resolves, django_routes, never_served
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.settings import Settings, settings_from

if TYPE_CHECKING:
    from collections.abc import Iterator

_PERSONAL = {
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
}
_GZIP = {"django.middleware.gzip.GZipMiddleware"}
_DJANGO_CACHE_MIDDLEWARE = {
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
}
_UPSTASH_CACHE = "upstash_middleware.django.cache.UpstashCache"
_CACHED_SESSIONS = {
    "django.contrib.sessions.backends.cache",
    "django.contrib.sessions.backends.cached_db",
}
_AUTHENTICATION = {
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.RemoteUserMiddleware",
}
_SESSIONS = {"django.contrib.sessions.middleware.SessionMiddleware"}
_UPSTASH_SESSIONS = {"upstash_middleware.django.sessions.SessionMiddleware"}
_CORS = {"corsheaders.middleware.CorsMiddleware"}


class _Layer(msgspec.Struct, frozen=True):
    """One entry of ``MIDDLEWARE``."""

    path: str
    lineage: frozenset[str]
    """The dotted names of the class and its bases."""
    features: Features
    """The features that it enables, if it is this package's middleware."""
    chooses_language: bool
    """Whether it is a LocaleMiddleware that chooses the language with its own code."""
    adds_nothing: bool
    """Whether views get the same request without it."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def is_any_of(self, names: set[str]) -> bool:
        return not self.lineage.isdisjoint(names)


def _layers() -> list[_Layer]:
    layers = []
    for path in settings.MIDDLEWARE:
        try:
            middleware = import_string(path)
        except Exception:  # noqa: BLE001 - Django reports the error when it loads the module
            middleware = None
        bases = inspect.getmro(middleware) if inspect.isclass(middleware) else ()
        names = {f"{base.__module__}.{base.__qualname__}" for base in bases}
        features = middleware.features if Middleware in bases else Features(0)
        chooses_language = settings.USE_I18N and chooses_language_itself(middleware)
        every, passive = frozenset({path, *names}), adds_nothing(middleware)
        layers.append(_Layer(path, every, features, chooses_language, passive))
    return layers


def _settings() -> Settings | None:
    """Return the project's settings; None if they are wrong, which E001 reports."""
    try:
        return settings_from(mapping_set(), os.environ, source=SETTING)
    except ConfigurationError:
        return None


def check_settings(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report the first wrong setting as E001, and rules that nothing applies as W001."""
    ours = [layer for layer in _layers() if layer.features]
    try:
        mapping = mapping_set()
        found = settings_from(mapping, os.environ, source=SETTING)
        for layer in ours:
            Runtime.of(
                mapping,
                layer.features,
                source=SETTING,
                keeps_sessions=False,
                kept_cookies=kept_cookies(),
            )
        if is_upstash_engine(settings.SESSION_ENGINE):
            from upstash_middleware.django import sessions  # noqa: PLC0415 - if it is used

            sessions.check_settings(found.sessions)
    except ConfigurationError as error:
        hint = f"Correct {SETTING} in the project's settings; without that no request is served."
        yield checks.Error(str(error), hint=hint, id="upstash_middleware.E001")
        return
    if mapping.get("sessions") is True:
        yield checks.Error(
            f"{SETTING}['sessions']: True has no effect in Django",
            hint="Remove it, and set SESSION_ENGINE = 'upstash_middleware.django.sessions'.",
            id="upstash_middleware.E001",
        )
    # Without middleware, decorators and limiters may still use the other settings.
    elif not ours and (found.rate_limits or found.default_limit or found.cache):
        yield checks.Warning(
            f"{SETTING} has rules, but MIDDLEWARE contains no middleware of this package: they "
            "have no effect.",
            hint="Add 'upstash_middleware.django.UpstashMiddleware' to MIDDLEWARE, at its top.",
            id="upstash_middleware.W001",
        )


def check_middleware(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report an order of ``MIDDLEWARE`` that would leak pages, count twice or have no effect."""
    layers, known = _layers(), _settings()
    for feature, what in (
        (Features.RATE_LIMIT, "count each request"),
        (Features.CACHE, "store each page"),
    ):
        names = [layer.name for layer in layers if feature in layer.features]
        if len(names) > 1:
            yield checks.Error(
                f"{' and '.join(names)} are both in MIDDLEWARE and {what} twice.",
                hint="Keep UpstashMiddleware alone, or RateLimitMiddleware and CacheMiddleware.",
                id="upstash_middleware.E003",
            )
    for place, layer in enumerate(layers):
        above, below = layers[:place], layers[place + 1 :]
        if Features.CACHE in layer.features and known is not None and known.cache:
            yield from _check_around_cache(layer, above, below, known)
        if Features.RATE_LIMIT in layer.features:
            yield from _check_below_limit(layer, below, known)


def _check_around_cache(
    cache: _Layer, above: list[_Layer], below: list[_Layer], known: Settings
) -> Iterator[checks.CheckMessage]:
    # The cache must know the language that another middleware chooses with its own code.
    personal = [one for one in above if one.is_any_of(_PERSONAL) and not one.chooses_language]
    if personal:
        names = ", ".join(layer.name for layer in personal)
        yield checks.Error(
            f"{cache.name} is below {names} in MIDDLEWARE: it would store one visitor's pages "
            "and show them to others, since it cannot see the Vary and Set-Cookie added above it.",
            hint=f"Move {cache.path!r} above {personal[0].path!r}. A limit that needs to know the "
            "user goes below, as RateLimitMiddleware, with CacheMiddleware above.",
            id="upstash_middleware.E002",
        )
    for layer in above:
        if layer.is_any_of(_GZIP):
            yield checks.Warning(
                f"{cache.name} is below {layer.name} in MIDDLEWARE: a stored page is compressed "
                "again for each visitor.",
                hint=f"Move {cache.path!r} above {layer.path!r}; pages are then stored compressed, "
                "once for all visitors that accept the coding.",
                id="upstash_middleware.W003",
            )
    if djangos := [
        layer.name for layer in (*above, *below) if layer.is_any_of(_DJANGO_CACHE_MIDDLEWARE)
    ]:
        yield checks.Warning(
            f"MIDDLEWARE contains both {cache.name} and Django's own {' and '.join(djangos)}: "
            "pages are stored twice, and a purge reaches only one of the two.",
            hint="Remove Django's from MIDDLEWARE.",
            id="upstash_middleware.W002",
        )
    for layer in below:
        if layer.chooses_language:
            yield checks.Warning(
                f"{cache.name} is above {layer.name} in MIDDLEWARE, which chooses the language "
                "with its own code: the cache cannot know a page's language, and stores nothing.",
                hint=f"Move {layer.path!r} above {cache.path!r}.",
                id="upstash_middleware.W006",
            )
    adding = ", ".join(layer.name for layer in above if not layer.adds_nothing)
    if adding and any(rule.stale_while_revalidate for rule in known.cache) and known.cache_refresh:
        yield checks.Warning(
            f"{cache.name} is below {adding} in MIDDLEWARE, so visitors wait while a "
            "stale page is rendered, in spite of stale_while_revalidate: in the background, views "
            "would miss what is added above.",
            hint=f"Move {cache.path!r} above, or remove stale_while_revalidate.",
            id="upstash_middleware.W012",
        )


def _check_below_limit(
    limit: _Layer, below: list[_Layer], known: Settings | None
) -> Iterator[checks.CheckMessage]:
    rules = () if known is None else (*known.rate_limits, known.default_limit)
    by_user = any(rule is not None and _identifies_user(rule.extractor) for rule in rules)
    authentication = [layer for layer in below if layer.is_any_of(_AUTHENTICATION)]
    if authentication and by_user:
        yield checks.Error(
            f"{limit.name} is above {authentication[0].name} in MIDDLEWARE, and a limit counts "
            "by user, who is not known there: it counts by address.",
            hint=f"Move {limit.path!r} below {authentication[0].path!r}; with a cache, as "
            "RateLimitMiddleware, with CacheMiddleware above both. Or decorate the views.",
            id="upstash_middleware.E005",
        )
    for layer in below:
        if layer.is_any_of(_CORS):
            yield checks.Warning(
                f"{limit.name} is above {layer.name} in MIDDLEWARE: browsers hide the "
                "response to a denied request from scripts of other origins.",
                hint=f"Move {layer.path!r} above {limit.path!r}.",
                id="upstash_middleware.W004",
            )


def _identifies_user(extractor: object) -> bool:
    inside = getattr(extractor, "extractors", ())
    return extractor in {user, framework_user} or any(map(_identifies_user, inside))


def check_client_address(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report a proxy in front while limits count by its address, as W007."""
    known = _settings()
    limits = any(Features.RATE_LIMIT in layer.features for layer in _layers())
    if known is None or not limits or not settings.SECURE_PROXY_SSL_HEADER:
        return
    unset = application_address(known.client_ip, known.platform)[1]
    if unset and known.platform != "aws-lambda":
        value = 1 if known.platform is None else known.platform
        yield checks.Warning(
            "SECURE_PROXY_SSL_HEADER says that a proxy is in front, but limits count by the "
            "address of the proxy: all clients share one quota.",
            hint=f"Set {SETTING}['client_ip'], for instance to {value!r}.",
            id="upstash_middleware.W007",
        )


def check_paths(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report rules whose path no URL pattern serves, as W005."""
    features = Features(0)
    for layer in _layers():
        features |= layer.features
    try:
        served = django_routes()
    except Exception:  # noqa: BLE001 - Django's own URL checks report the error
        return
    if (known := _settings()) is None:
        return
    limits = known.rate_limits if Features.RATE_LIMIT in features else ()
    caches = known.cache if Features.CACHE in features else ()
    rules = [
        *((f"rate_limits'][{index}]", rule.pattern) for index, rule in enumerate(limits)),
        *((f"cache'][{index}]", rule.pattern) for index, rule in enumerate(caches)),
    ]
    for place, pattern in rules:
        if pattern is None:
            continue
        if (what := never_served(pattern, served, resolves=django_resolves)) is not None:
            yield checks.Warning(
                f"{SETTING}['{place}: the path is {pattern.text!r}, but {what}.",
                hint="Write the path as in the URL configuration, with {name} for a part that "
                "varies. If middleware serves it and no view does, silence this check.",
                id="upstash_middleware.W005",
            )


def check_sessions(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report a session engine and a session middleware that do not match, as W009 and W010.

    Also report session settings that no engine reads, as W011.
    """
    layers, is_ours = _layers(), is_upstash_engine(settings.SESSION_ENGINE)
    known = _settings()
    is_set = known is not None and known.sessions is not None
    if is_set and not is_ours and mapping_set()["sessions"] is not True:  # which is an error
        yield checks.Warning(
            f"{SETTING}['sessions'] has no effect: SESSION_ENGINE = {settings.SESSION_ENGINE!r} "
            "does not read it.",
            hint="Remove it, or set SESSION_ENGINE = 'upstash_middleware.django.sessions'.",
            id="upstash_middleware.W011",
        )
    ours = [layer.name for layer in layers if layer.is_any_of(_UPSTASH_SESSIONS)]
    if ours and not is_ours:
        yield checks.Warning(
            f"SESSION_ENGINE = {settings.SESSION_ENGINE!r}: with this engine, "
            "upstash_middleware.django.SessionMiddleware does what Django's own does.",
            hint="Set SESSION_ENGINE = 'upstash_middleware.django.sessions'.",
            id="upstash_middleware.W009",
        )
    djangos = [layer for layer in layers if layer.is_any_of(_SESSIONS)]
    if is_ours and djangos and not ours:
        yield checks.Warning(
            f"MIDDLEWARE contains {djangos[0].path!r}, and sessions are on Upstash: each request "
            "that uses its session takes a round trip for that, and during an outage a login or "
            "logout gets a 400 in place of a 503.",
            hint="Replace it with 'upstash_middleware.django.SessionMiddleware'.",
            id="upstash_middleware.W010",
        )


def check_denied_view(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report a view for denials that cannot be found or called, as E006."""
    named = getattr(settings, DENIED_VIEW, None)
    why = ""
    try:
        view = import_string(named) if isinstance(named, str) else named
    except Exception as error:  # noqa: BLE001 - any exception of the project's module
        view, why = None, str(error)
    if view is None:
        pass
    elif not callable(view):
        why = "it is not a view"
    elif inspect.isclass(view) and not issubclass(view, HttpResponseBase):
        why = "it is a class; name its as_view(), or an object of it"
    else:
        try:
            inspect.signature(view).bind("request", "decision")
        except TypeError as error:
            why = f"it cannot be called with the request and the decision: {error}"
        except ValueError:  # a callable in C, without a signature
            pass
    if why:
        yield checks.Error(
            f"{DENIED_VIEW} = {named!r}: {why}.",
            hint="Name a view by its dotted path: 'shop.views.slow_down'; it is called with the "
            "request and the decision.",
            id="upstash_middleware.E006",
        )


def check_caches(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report caches on Upstash with wrong settings as E007, or with sessions as W008."""
    for alias in settings.CACHES:
        if not _is_upstash_cache(settings.CACHES[alias].get("BACKEND")):
            continue
        try:
            caches.create_connection(alias)
        except ConfigurationError as error:
            yield checks.Error(
                f"CACHES[{alias!r}]: {error}",
                hint=f"Correct CACHES[{alias!r}] in the project's settings.",
                id="upstash_middleware.E007",
            )
        holds_sessions = settings.SESSION_ENGINE in _CACHED_SESSIONS
        if holds_sessions and alias == settings.SESSION_CACHE_ALIAS:
            yield checks.Warning(
                f"SESSION_ENGINE keeps sessions in CACHES[{alias!r}], which is on Upstash: "
                "session ids are then readable in the names of keys, overlapping requests of "
                "one session lose changes, and an outage ends sessions.",
                hint="Set SESSION_ENGINE = 'upstash_middleware.django.sessions'.",
                id="upstash_middleware.W008",
            )


def _is_upstash_cache(named: Any) -> bool:
    try:
        backend = import_string(named) if isinstance(named, str) else named
    except Exception:  # noqa: BLE001 - Django reports the error when it loads the module
        return False
    bases = inspect.getmro(backend) if inspect.isclass(backend) else ()
    return any(f"{each.__module__}.{each.__name__}" == _UPSTASH_CACHE for each in bases)


def check_credentials(**_: Any) -> Iterator[checks.CheckMessage]:
    """Report missing credentials as E004; only with ``check --deploy``."""
    try:
        if any(layer.features for layer in _layers()) or is_upstash_engine(settings.SESSION_ENGINE):
            runtime = Runtime.of(mapping_set(), Features(0), source=SETTING)
            if runtime.enabled:
                runtime.check_credentials()
    except MissingCredentials as error:
        hint = "Set them where the servers run; every request needs them."
        yield checks.Error(str(error), hint=hint, id="upstash_middleware.E004")
    except ConfigurationError:
        pass  # E001 reports it
