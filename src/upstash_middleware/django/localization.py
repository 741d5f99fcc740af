"""The language and time zone of a page, which select a stored response as in Django's own cache.

Django's cache middleware is the innermost, and reads the active language and time zone. Ours is
outside LocaleMiddleware, so it determines beforehand which language that will activate, and checks
afterwards. A page in another language or time zone is not stored.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from django.conf import settings
from django.conf.urls.i18n import is_language_prefix_patterns_used
from django.http import HttpRequest, parse_cookie
from django.middleware.locale import LocaleMiddleware
from django.utils import timezone, translation
from django.utils.module_loading import import_string

from upstash_middleware.wsgi import variable

if TYPE_CHECKING:
    from upstash_middleware.messages import HTTPRequest

_EXPECTED = "_upstash_middleware_expected"
"""On a Django request: the expected language and time zone."""


class _LeftActive(threading.local):
    """What an earlier request of this thread has activated inside of us and not deactivated."""

    language: str | None = None
    zone: str | None = None


_left_active = _LeftActive()


def localized(request: HTTPRequest) -> str | None:
    """Return the language and time zone of the page for a request, as a part of its key.

    Empty for those of the project's settings. None where they cannot be known: then the request
    bypasses the cache.
    """
    native = request.native if isinstance(request.native, HttpRequest) else _django_request(request)
    zone = default_zone = ""
    if settings.USE_TZ:
        default_zone = timezone.get_default_timezone_name()
        zone = timezone.get_current_timezone_name()
    if zone == default_zone:
        _left_active.zone = None
    language = language_of(native)
    if language is None or zone == _left_active.zone:
        return None
    vars(native)[_EXPECTED] = language, zone
    if zone == default_zone and language == _normal(settings.LANGUAGE_CODE):
        return ""
    return f"language={language};time zone={zone}"


def expected(request: HttpRequest) -> tuple[str, str] | None:
    """Return the language and time zone by which a request was looked up, None if it was not."""
    return cast("tuple[str, str] | None", vars(request).get(_EXPECTED))


def active() -> tuple[str, str]:
    """Return the active language and time zone."""
    zone = timezone.get_current_timezone_name() if settings.USE_TZ else ""
    return _normal(translation.get_language() or ""), zone


def unexpected(request: HttpRequest, before: tuple[str, str]) -> str:
    """Return why the page that a view has made is not the one that was looked up, or "".

    ``before`` is what was active when the request arrived.
    """
    language, zone = active()
    if language != before[0]:
        _left_active.language = language
    if zone != before[1]:
        _left_active.zone = zone
    if (selected := expected(request)) is None:
        return ""
    code = _normal(getattr(request, "LANGUAGE_CODE", None) or language)
    if settings.USE_I18N and {language, code} != {selected[0]}:
        return f"its language is {code}, and it was looked up under {selected[0]}"
    if zone != selected[1]:
        return f"its time zone is {zone}, and it was looked up under {selected[1]}"
    return ""


def with_language(request: HttpRequest, selected: tuple[str, str]) -> None:
    """Have LocaleMiddleware activate the language that another request has selected."""
    language, _ = selected
    if settings.USE_I18N and language_of(request) != language:
        request.COOKIES = {**request.COOKIES, settings.LANGUAGE_COOKIE_NAME: language}
    vars(request)[_EXPECTED] = selected


def language_of(request: HttpRequest) -> str | None:
    """Return the language that a request's page will have, None where that cannot be known."""
    default = _normal(settings.LANGUAGE_CODE)
    if not settings.USE_I18N:
        return default
    if chosen := getattr(request, "LANGUAGE_CODE", None):  # by a middleware outside of us
        return _normal(chosen)
    inside = _locale_middleware(tuple(settings.MIDDLEWARE))
    if not inside:
        language = _normal(translation.get_language() or "")
        if language == default:
            _left_active.language = None
        return None if language == _left_active.language else language
    if any(map(chooses_language_itself, inside)):
        return None
    # As LocaleMiddleware.process_request has it.
    urlconf = getattr(request, "urlconf", settings.ROOT_URLCONF)
    uses_prefixes, prefixes_default = is_language_prefix_patterns_used(urlconf)
    unprefixed = uses_prefixes and not prefixes_default
    if unprefixed and not translation.get_language_from_path(request.path_info):
        return default
    return _normal(translation.get_language_from_request(request, check_path=uses_prefixes))


def chooses_language_itself(middleware: object) -> bool:
    """Whether this is a LocaleMiddleware that chooses the language with its own code."""
    if not isinstance(middleware, type) or not issubclass(middleware, LocaleMiddleware):
        return False
    return middleware.process_request is not LocaleMiddleware.process_request


def _normal(language: str) -> str:
    """Return a language's code as Django writes it where it is active."""
    return language.lower().replace("_", "-")


@lru_cache(maxsize=8)
def _locale_middleware(paths: tuple[str, ...]) -> tuple[type[LocaleMiddleware], ...]:
    entries: list[Any] = [import_string(path) for path in paths]
    return tuple(
        entry
        for entry in entries
        if isinstance(entry, type) and issubclass(entry, LocaleMiddleware)
    )


def _django_request(request: HTTPRequest) -> HttpRequest:
    """Return a request as Django would have made it, for one that comes from a command line."""
    made = HttpRequest()
    made.method, made.path, made.path_info = request.method, request.path, request.path
    for name in request.headers.names():
        made.META[variable(name)] = request.headers.combined(name)
    made.COOKIES = parse_cookie(request.headers.combined("cookie") or "")
    return made
