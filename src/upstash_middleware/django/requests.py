"""Converts Django's requests and responses to this package's values, and back.

It uses Django's view of a request: ``META``, in which Django joins repeated fields with commas;
``path_info``, which selects the view; the scheme from ``SECURE_PROXY_SSL_HEADER``; the host from
``USE_X_FORWARDED_HOST``.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.cookies import CookieError, Morsel
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from django.conf import settings
from django.conf.urls.i18n import is_language_prefix_patterns_used
from django.http import HttpRequest, HttpResponse, parse_cookie
from django.middleware.locale import LocaleMiddleware
from django.urls import Resolver404, get_resolver
from django.utils import timezone, translation
from django.utils.module_loading import import_string

from upstash_middleware.core.identify import USERS, Identifier
from upstash_middleware.decorators import REROUTED, exempt_types, is_exempt, is_exempt_class
from upstash_middleware.events import SettingDoubted
from upstash_middleware.messages import (
    PATH_SAFE,
    Headers,
    HTTPRequest,
    RequestBody,
    ResponseHead,
)
from upstash_middleware.wsgi import ReadAhead, SwappedFields, field_names, variable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Container, Iterable, Iterator

    from django.http.response import HttpResponseBase

    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Response

REQUEST_END = "_upstash_middleware"
"""The attribute of a request, response or context with the object that ends the request."""
_LAST_READ_RESPONSE = "_upstash_middleware_answered_by"
"""The attribute of a request with the id of the response whose head was read last."""
_CHANGED_FIELDS = "_upstash_middleware_changed"
"""The attribute of a response with the changed fields, each with its old and new value."""
# Empty if the field is absent: in WSGI servers, and for cookies in Django's test client.
_EMPTY_IF_ABSENT = {"CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_COOKIE"}


def request_from(request: HttpRequest) -> HTTPRequest:
    """Return the request's head as a value."""
    meta = request.META
    root_path = meta.get("SCRIPT_NAME", "").rstrip("/")
    lines = []
    for name, (key, value) in zip(field_names(meta), meta.items(), strict=True):
        if name and (value or key not in _EMPTY_IF_ABSENT):
            lines.append((name, str(value).encode("latin-1", "backslashreplace")))
    # get_host would raise its error (a 400) here, and not where the project calls it.
    raw_host: str = cast("Any", request)._get_raw_host()  # noqa: SLF001
    raw_path = getattr(request, "scope", {}).get("raw_path")  # from an ASGI server
    return HTTPRequest(
        request.method or "GET",
        request.path_info,
        Headers(lines),
        meta.get("QUERY_STRING", ""),
        request.scheme or "http",
        raw_host.lower(),
        meta.get("REMOTE_ADDR") or None,
        _sent_path(request, raw_path.decode("latin-1"), root_path) if raw_path else "",
        root_path,
        request,
    )


class DjangoBody(RequestBody):
    """A request's body, which Django may already have read and parsed."""

    __slots__ = ("_request",)

    def __init__(self, request: HttpRequest) -> None:
        self._request: Any = request  # only private attributes tell how much has been read

    def read(self, limit: int) -> bytes | None:
        """Read the body, and put it back for Django and the views; see RequestBody."""
        request = self._request
        if (known := getattr(request, "_body", None)) is not None:
            return known if len(known) <= limit else None
        if request._read_started:  # noqa: SLF001
            return None
        stream = request._stream  # noqa: SLF001
        if stream.seekable():  # an ASGI server's stream, which is completely received
            data: bytes = stream.read(limit + 1)
            stream.seek(0)
            return data if len(data) <= limit else None
        if not isinstance(stream, ReadAhead):
            stream = request._stream = ReadAhead(stream)  # noqa: SLF001
            if "wsgi.input" in request.META:  # for WSGI applications that a view calls
                request.META["wsgi.input"] = stream
        return stream.whole(limit)

    def parsed(self, name: str) -> list[Any] | None:
        """Return a parsed form's values; CSRF protection parses it before the view runs."""
        if not hasattr(self._request, "_post"):
            return None
        return [*self._request.POST.getlist(name), *self._request.FILES.getlist(name)]

    def is_available(self, *, waits: bool) -> bool:  # noqa: ARG002 - Django has received it
        """See RequestBody."""
        request = self._request
        if hasattr(request, "_body") or not request._read_started:  # noqa: SLF001
            return True
        return hasattr(request, "_post") and request.content_type == "multipart/form-data"


def _sent_path(request: HttpRequest, sent: str, root_path: str) -> str:
    """Return the path of the client's URL as it was sent.

    If outer middleware has rewritten the path, the sent path names another resource, and two
    resources must never share a stored response.
    """
    for url in dict.fromkeys((sent, quote(root_path, safe=PATH_SAFE) + sent)):
        if unquote(url) == root_path + request.path_info:
            return url
    return ""


def user(request: HTTPRequest) -> Identifier | Awaitable[Identifier | None] | None:
    """Identify clients by the user of ``django.contrib.auth``: ``by=user``.

    The identifier is the primary key. For anonymous visitors it is None, so the address is used.

    Args:
        request: The request.

    Raises:
        LookupError: AuthenticationMiddleware is not above the limit.
    """
    native = request.native
    if not hasattr(native, "user"):
        raise LookupError("by=user: AuthenticationMiddleware should be above the limit")

    def identified(user: Any) -> Identifier | None:
        return Identifier("user", str(user.pk)) if user.is_authenticated else None

    async def auser() -> Identifier | None:
        return identified(await native.auser())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return identified(native.user)
    return auser()


USERS.append((lambda native: isinstance(native, HttpRequest), user))


@contextmanager
def forwarding(request: HttpRequest, came: Headers, wanted: Headers) -> Iterator[None]:
    """Give the application other header fields while it runs.

    Outer middleware reads ``META`` afterwards and needs the client's fields: otherwise
    ConditionalGetMiddleware would answer our validator with a 304.
    """
    try:
        with SwappedFields(request.META, came, wanted):
            vars(request).pop("headers", None)  # a cached property over META
            with _without_removed_cookies(request, came, wanted):
                yield
    finally:
        vars(request).pop("headers", None)


@contextmanager
def _without_removed_cookies(
    request: HttpRequest, came: Headers, wanted: Headers
) -> Iterator[None]:
    """Remove the cookies from the application's request that its fields no longer contain.

    Changes by outer middleware in ``COOKIES`` are kept.
    """
    before, after = came.lines("cookie"), wanted.lines("cookie")
    if before == after:
        yield
        return
    gone = parse_cookie("; ".join(before)).keys() - parse_cookie("; ".join(after)).keys()
    cookies = request.COOKIES
    try:
        request.COOKIES = {name: cookies[name] for name in cookies if name not in gone}
        yield
    finally:
        request.COOKIES = cookies


def head_from(request: HttpRequest, response: HttpResponseBase) -> ResponseHead:
    """Return the response's head; cookies are Set-Cookie lines at the end, as Django sends them.

    If a view returns the same response object again, the changes for the earlier request are undone
    first.
    """
    if vars(request).get(_LAST_READ_RESPONSE) != id(response):
        vars(request)[_LAST_READ_RESPONSE] = id(response)
        for name, (before, ours) in vars(response).pop(_CHANGED_FIELDS, {}).items():
            if response.headers.get(name) == ours:
                _set_field(response, name, before)
    fields = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.items()
    ]
    fields += [
        (b"Set-Cookie", cookie.output(header="").strip().encode("latin-1", "backslashreplace"))
        for cookie in response.cookies.values()
    ]
    return ResponseHead(response.status_code, Headers(fields))


def change_head(response: HttpResponseBase, was: ResponseHead, now: ResponseHead) -> None:
    """Apply the differences between two heads to the response; its cookies do not change."""
    if now is was:
        return
    response.status_code = now.status
    changes: dict[str, str | None] | None = _added_fields(was.headers, now.headers)
    if changes is None:
        removed = (name for name in was.headers.names() if name not in now.headers)
        changes = {name: None for name in removed if name != "set-cookie"}
        for name, joined in _join_fields(now.headers):
            if was.headers.combined(name.lower()) != joined:
                changes[name] = joined
    changed = vars(response).setdefault(_CHANGED_FIELDS, {})
    for name, value in changes.items():
        before, _ = changed.get(name, (response.headers.get(name), None))
        _set_field(response, name, value)
        changed[name] = before, value


def _added_fields(was: Headers, now: Headers) -> dict[str, str | None] | None:
    """Return the fields that were appended; None if there are other differences."""
    count = len(was.raw)
    if now.raw[:count] != was.raw:
        return None
    lines = now.raw[count:]
    added: dict[str, str | None] = {
        name.decode("latin-1"): value.decode("latin-1") for name, value in lines
    }
    names = {name.lower() for name in added}
    alone = len(names) == len(lines) and names.isdisjoint(was.names())
    return added if alone and "set-cookie" not in names else None


def _join_fields(headers: Headers) -> Iterable[tuple[str, str]]:
    """Return each field once, in its spelling, because Django stores one value (RFC 9110 §5.2)."""
    fields: dict[bytes, tuple[str, str]] = {}
    for line_name, line in headers.raw:
        key, name, value = line_name.lower(), line_name.decode("latin-1"), line.decode("latin-1")
        if key in fields:
            name, before = fields[key]
            value = f"{before}, {value}"
        if key != b"set-cookie":
            fields[key] = name, value
    return fields.values()


def _set_field(response: HttpResponseBase, name: str, value: str | None) -> None:
    if value is None:
        del response.headers[name]
    else:
        response.headers[name] = value


def response_from(answer: Response, *, without_body: bool) -> HttpResponse:
    """Return this package's response as an HttpResponse; for HEAD without its body."""
    response = HttpResponse(b"" if without_body else answer.body)
    response.status_code = answer.head.status
    del response.headers["Content-Type"]  # Django's default
    for name, value in _join_fields(answer.head.headers):
        response.headers[name] = value
    if 300 <= response.status_code < 400 and "Location" in response.headers:
        response.url = response.headers["Location"]  # type: ignore[attr-defined]  # like a redirect
    for line in answer.head.headers.lines("set-cookie"):
        cookie = _StoredCookie(line)
        # A name may occur on several lines with different paths or domains.
        key = line if cookie.key in response.cookies else cookie.key
        dict.__setitem__(response.cookies, key, cookie)
    return response


class _StoredCookie(Morsel[str]):
    """A Set-Cookie line that is sent exactly as stored; Morsel would format it differently."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line
        name, _, value = line.partition(";")[0].partition("=")
        with suppress(CookieError):
            self.set(name.strip(), value.strip(), value.strip())

    def output(self, attrs: Container[str] | None = None, header: str = "Set-Cookie:") -> str:
        """Return the line; Django's handlers call this."""
        del attrs
        return f"{header} {self._line}"


def replacement(
    answer: Response, replaced: HttpResponseBase, *, without_body: bool
) -> HttpResponse:
    """Return our response in place of the application's; closing it closes both."""
    response: Any = response_from(answer, without_body=without_body)
    response._resource_closers.extend(cast("Any", replaced)._resource_closers)  # noqa: SLF001 - Django has no other name
    return cast("HttpResponse", response)


# ------------------------------------------------------------------------------------------------
# The language and time zone of a page are part of its cache key, as in Django's own cache
# middleware. That middleware is the innermost, so it reads the active values. Ours is outside
# LocaleMiddleware, so it predicts the language that LocaleMiddleware will activate, and checks it
# afterwards.

_EXPECTED_LOCALIZATION = "_upstash_middleware_expected"
"""The attribute of a request with the expected language and time zone."""


class _LeftoverLocalization(threading.local):
    """The localization that an earlier request in this thread has left active."""

    language: str | None = None
    zone: str | None = None


_left_active = _LeftoverLocalization()


def localized(request: HTTPRequest) -> str | None:
    """Return the language and time zone of a request's page, as a part of its cache key.

    The result is empty for those of the project's settings, and None if they cannot be known; then
    the request bypasses the cache.
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
    vars(native)[_EXPECTED_LOCALIZATION] = language, zone
    if zone == default_zone and language == _normal_language(settings.LANGUAGE_CODE):
        return ""
    return f"language={language};time zone={zone}"


def active_localization() -> tuple[str, str]:
    """Return the active language and time zone."""
    zone = timezone.get_current_timezone_name() if settings.USE_TZ else ""
    return _normal_language(translation.get_language() or ""), zone


def unexpected_localization(request: HttpRequest, before: tuple[str, str]) -> str:
    """Return why a page's localization differs from the expected one; empty if it is the same.

    ``before`` is the active localization when the request arrived.
    """
    language, zone = active_localization()
    if language != before[0]:
        _left_active.language = language
    if zone != before[1]:
        _left_active.zone = zone
    selected: tuple[str, str] | None = vars(request).get(_EXPECTED_LOCALIZATION)
    if selected is None:
        return ""
    code = _normal_language(getattr(request, "LANGUAGE_CODE", None) or language)
    if settings.USE_I18N and {language, code} != {selected[0]}:
        return f"its language is {code}, but {selected[0]} was expected"
    if zone != selected[1]:
        return f"its time zone is {zone}, but {selected[1]} was expected"
    return ""


def select_as(request: HttpRequest, other: HttpRequest) -> None:
    """Make LocaleMiddleware activate the language that another request has selected."""
    selected: tuple[str, str] | None = vars(other).get(_EXPECTED_LOCALIZATION)
    if selected is None:
        return
    if settings.USE_I18N and language_of(request) != selected[0]:
        request.COOKIES = {**request.COOKIES, settings.LANGUAGE_COOKIE_NAME: selected[0]}
    vars(request)[_EXPECTED_LOCALIZATION] = selected


def language_of(request: HttpRequest) -> str | None:
    """Return the language that a request's page will have; None if it cannot be known."""
    default = _normal_language(settings.LANGUAGE_CODE)
    if not settings.USE_I18N:
        return default
    if chosen := getattr(request, "LANGUAGE_CODE", None):  # set by outer middleware
        return _normal_language(chosen)
    inside = _locale_middleware(tuple(settings.MIDDLEWARE))
    if not inside:
        language = _normal_language(translation.get_language() or "")
        if language == default:
            _left_active.language = None
        return None if language == _left_active.language else language
    if any(map(chooses_language_itself, inside)):
        return None
    # The same steps as LocaleMiddleware.process_request.
    urlconf = getattr(request, "urlconf", settings.ROOT_URLCONF)
    uses_prefixes, prefixes_default = is_language_prefix_patterns_used(urlconf)
    unprefixed = uses_prefixes and not prefixes_default
    if unprefixed and not translation.get_language_from_path(request.path_info):
        return default
    return _normal_language(
        translation.get_language_from_request(request, check_path=uses_prefixes)
    )


def chooses_language_itself(middleware: object) -> bool:
    """Whether this is a LocaleMiddleware that chooses the language with its own code."""
    if not isinstance(middleware, type) or not issubclass(middleware, LocaleMiddleware):
        return False
    return middleware.process_request is not LocaleMiddleware.process_request


def _normal_language(language: str) -> str:
    """Return a language code in the spelling of Django's active language."""
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
    """Return a Django request for a request from the command line."""
    made = HttpRequest()
    made.method, made.path, made.path_info = request.method, request.path, request.path
    for name in request.headers.names():
        made.META[variable(name)] = request.headers.combined(name)
    made.COOKIES = parse_cookie(request.headers.combined("cookie") or "")
    return made


# ------------------------------------------------------------------------------------------------
# Exempt views

_EXEMPTED = "_upstash_middleware_freed"
"""The attribute of a request that no limit of the middleware has counted."""
_rerouting: set[tuple[str, ...]] = set()
"""The values of MIDDLEWARE with which a request was routed to an unexpected view."""


def is_exempt_view(view: Any, method: str) -> bool:
    """Whether a view, its class, or the method of the class is exempt."""
    if is_exempt(view):
        return True
    if getattr(view, "__module__", "") == "ninja.operation":  # a path's view, for its operations
        cells = [cell.cell_contents for cell in view.__closure__ or ()]
        operations = [each for cell in cells for each in getattr(cell, "operations", ())]
        return any(is_exempt(each.view_func) for each in operations if method in each.methods)
    owner = getattr(view, "view_class", None) or getattr(view, "cls", None)
    actions = getattr(view, "actions", None) or {}  # for a ViewSet
    return is_exempt_class(owner, actions.get(method.lower(), method))


def is_exempt_request(request: HTTPRequest) -> bool:
    """Whether the view of a request is exempt, according to the URL configuration.

    If inner middleware has ever chosen another view, no request is exempt.
    """
    native = request.native
    resolver = get_resolver(getattr(native, "urlconf", None))
    _ = resolver.url_patterns  # imports the views, which marks exempt ones
    if not exempt_types:
        return False
    # Translated paths, and paths in i18n_patterns, depend on the request's language.
    language = language_of(native)
    languages = [language] if language else [code for code, _ in settings.LANGUAGES]
    for each in languages:
        try:
            with translation.override(each):
                found = resolver.resolve(native.path_info)
        except Resolver404:
            return False
        if not is_exempt_view(found.func, request.method):
            return False
    if not languages or tuple(settings.MIDDLEWARE) in _rerouting:
        return False
    vars(native)[_EXEMPTED] = True
    return True


def check_route(request: HttpRequest, observe: Observer) -> None:
    """Check that a request that was not counted has been routed to an exempt view."""
    match = request.resolver_match
    if _EXEMPTED not in vars(request) or match is None:
        return
    if not is_exempt_view(match.func, request.method or ""):
        _rerouting.add(tuple(settings.MIDDLEWARE))
        observe(SettingDoubted("exempt", REROUTED.format(f"view {match.view_name or match.func}")))
