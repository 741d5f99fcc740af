"""Django's requests and responses as this package's values, and back; no decisions here.

Django's own reading of a request is what counts: ``META`` (where Django has joined repeated
fields by commas), ``path_info`` (by which it finds views), the scheme by
``SECURE_PROXY_SSL_HEADER``, the host by ``USE_X_FORWARDED_HOST``.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import lru_cache
from http.cookies import CookieError, Morsel
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from django.http import HttpResponse

from upstash_middleware.messages import Headers, Request, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from upstash_middleware.messages import Response

# WSGI's variables (PEP 3333) for the two fields that have no HTTP_ before their names.
_UNPREFIXED = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
# Empty where there is none: so say WSGI servers, and of cookies Django's test client.
_NONE_IF_EMPTY = {*_UNPREFIXED, "HTTP_COOKIE"}


def request_from(request: HttpRequest) -> Request:
    """Return the request's head as a value."""
    meta = request.META
    path = meta.get("SCRIPT_NAME", "").rstrip("/") + request.path_info
    return Request(
        request.method or "GET",
        path,
        Headers(_fields(meta)),
        meta.get("QUERY_STRING", ""),
        request.scheme or "http",
        _host(request),
        meta.get("REMOTE_ADDR") or None,
        _sent_path(request, path),
        request,
    )


def _fields(meta: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    return [
        (name, str(value).encode("latin-1", "backslashreplace"))
        for key, value in meta.items()
        if (name := _name(key)) and (value or key not in _NONE_IF_EMPTY)
    ]


@lru_cache(maxsize=512)
def _name(key: str) -> bytes | None:
    """Return the name of the header field that a key stands for; None if it is none."""
    if key.startswith("HTTP_"):
        return key[5:].replace("_", "-").lower().encode("latin-1", "backslashreplace")
    return _UNPREFIXED.get(key)


def _host(request: Any) -> str:
    # Without get_host's check, which would answer 400 here and not where the project has it.
    raw_host: str = request._get_raw_host()  # noqa: SLF001 - there is no public name for it
    return raw_host.lower()


def _sent_path(request: HttpRequest, path: str) -> str:
    """Return the path as sent, where the server tells (WSGI knows it not) and it is still true.

    Middleware outside may have rewritten the path; what was sent is then about another resource,
    and two resources must never share a stored response.
    """
    scope: Mapping[str, Any] = getattr(request, "scope", {})
    sent = (scope.get("raw_path") or b"").decode("latin-1")
    return sent if sent and unquote(sent) == path else ""


class _StoredCookie(Morsel[str]):
    """A Set-Cookie line that goes out as it came; to read it would be to write it otherwise."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line
        name, _, value = line.partition(";")[0].partition("=")
        with suppress(CookieError):
            self.set(name.strip(), value.strip(), value.strip())

    def output(self, attrs: Container[str] | None = None, header: str = "Set-Cookie:") -> str:
        """Return the line, as Django's handlers ask for it."""
        del attrs
        return f"{header} {self._line}"


@contextmanager
def forwarding(request: HttpRequest, came: Headers, wanted: Headers) -> Iterator[None]:
    """Show the application the fields that are wanted for as long as it runs.

    What stands further out reads ``META`` after that, too, and must find what the client sent:
    ConditionalGetMiddleware would else answer a validator of ours with a 304.
    """
    changed = [name for name in {*came.names(), *wanted.names()} if _differ(name, came, wanted)]
    if not changed:
        yield
        return
    before = {key: request.META.get(key) for key in map(_variable, changed)}
    _set_variables(request, {_variable(name): wanted.combined(name) for name in changed})
    try:
        yield
    finally:
        _set_variables(request, before)


def _differ(name: str, one: Headers, other: Headers) -> bool:
    return one.lines(name) != other.lines(name)


def _variable(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in _UNPREFIXED else f"HTTP_{key}"


def _set_variables(request: HttpRequest, variables: Mapping[str, Any]) -> None:
    for key, value in variables.items():
        if value is None:
            request.META.pop(key, None)
        else:
            request.META[key] = value
    vars(request).pop("headers", None)  # a cached property over META


def head_from(response: HttpResponseBase) -> ResponseHead:
    """Return the response's head; its cookies are Set-Cookie lines at the end, as Django sends."""
    fields = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.items()
    ]
    fields += [
        (b"Set-Cookie", cookie.output(header="").strip().encode("latin-1", "backslashreplace"))
        for cookie in response.cookies.values()
    ]
    return ResponseHead(response.status_code, Headers(fields))


def change_head(response: HttpResponseBase, was: ResponseHead, shall_be: ResponseHead) -> None:
    """Bring to the response what differs between the two heads; its cookies stay."""
    if shall_be is was:
        return
    response.status_code = shall_be.status
    added = _added(was.headers, shall_be.headers)
    if added is not None:
        _set_fields(response, added)
        return
    for name in was.headers.names():
        if name not in shall_be.headers and name != "set-cookie":
            del response.headers[name]
    _set_fields(response, {n: v for n, v in _joined(shall_be.headers) if _new(n, v, was.headers)})


def _added(was: Headers, shall_be: Headers) -> dict[str, str] | None:
    """Return what stands after all that was there, None where that is not the whole difference."""
    count = len(was.raw)
    if shall_be.raw[:count] != was.raw:
        return None
    lines = shall_be.raw[count:]
    added = {name.decode("latin-1"): value.decode("latin-1") for name, value in lines}
    names = {name.lower() for name in added}
    alone = len(names) == len(lines) and names.isdisjoint(was.names())
    return added if alone and "set-cookie" not in names else None


def _new(name: str, value: str, was: Headers) -> bool:
    return was.combined(name.lower()) != value


def _joined(headers: Headers) -> Iterable[tuple[str, str]]:
    """Give each field once, in its spelling, as Django can hold it (RFC 9110 §5.2)."""
    spelling = {name.lower(): name for name, _ in reversed(headers.raw)}
    for name in headers.names():
        if name != "set-cookie":
            yield spelling[name.encode("latin-1")].decode("latin-1"), headers.combined(name) or ""


def _set_fields(response: HttpResponseBase, fields: Mapping[str, str]) -> None:
    for name, value in fields.items():
        response.headers[name] = value


def response_from(answer: Response, *, without_body: bool) -> HttpResponse:
    """Return a response of ours as Django's; without the body where the request was a HEAD."""
    response = HttpResponse(b"" if without_body else answer.body)
    response.status_code = answer.head.status
    del response.headers["Content-Type"]  # Django's default; the head says what is right
    _set_fields(response, dict(_joined(answer.head.headers)))
    for line in answer.head.headers.lines("set-cookie"):
        cookie = _StoredCookie(line)
        # One name may stand on several lines, with a path or domain of its own on each.
        name = line if cookie.key in response.cookies else cookie.key
        dict.__setitem__(response.cookies, name, cookie)
    return response


def stand_in(answer: Response, replaced: HttpResponseBase, *, without_body: bool) -> HttpResponse:
    """Return a response of ours in the place of the application's, which it closes with itself."""
    response = response_from(answer, without_body=without_body)
    closers = cast("Any", replaced)._resource_closers  # noqa: SLF001 - Django has no other name
    cast("Any", response)._resource_closers.extend(closers)  # noqa: SLF001 - likewise
    return response
