"""Encodes Django's cached values: safe text, and responses with fields and cookies."""

from __future__ import annotations

import re
from http.cookies import Morsel, SimpleCookie
from importlib import import_module
from typing import Any, cast

from django.conf import settings
from django.http import HttpResponse
from django.http.response import ResponseHeaders
from django.template.response import SimpleTemplateResponse
from django.utils.safestring import SafeString

from upstash_middleware.core.pickles import SignedPickles
from upstash_middleware.core.values import Codec, Form
from upstash_middleware.django.requests import REQUEST_END
from upstash_middleware.errors import NotStorable

_RESPONSES = {
    **dict.fromkeys(
        (
            *("HttpResponse", "HttpResponseNotModified", "JsonResponse"),
            *("HttpResponseRedirect", "HttpResponsePermanentRedirect", "HttpResponseBadRequest"),
            *("HttpResponseForbidden", "HttpResponseNotFound", "HttpResponseNotAllowed"),
            *("HttpResponseGone", "HttpResponseServerError"),
        ),
        "django.http.response",
    ),
    "SimpleTemplateResponse": "django.template.response",
    "TemplateResponse": "django.template.response",
    "Response": "rest_framework.response",
}
"""The response classes that are stored, with their modules; decoding imports no others."""
_STORED_ATTRIBUTES = (
    "status_code",
    "_reason_phrase",
    "_charset",
    "headers",
    "cookies",
    "_container",
)
_RESET_ATTRIBUTES = ("_resource_closers", "_handler_class", "closed", "text", REQUEST_END)
"""Attributes of a response that are not stored and get new values."""


class DjangoCodec(Codec):
    """Encodes and decodes values as JSON with tagged forms, including Django's types."""

    def __init__(self) -> None:
        super().__init__(
            (
                # ``join`` converts it to plain text.
                Form("safe", SafeString, lambda text: "".join((text,)), SafeString),
                self._response_form(HttpResponse),
            )
        )

    def _response_form(self, kind: type[HttpResponse]) -> Form:
        """Return the tagged form of a class of responses."""
        return Form("response", kind, self._pack_response, _unpack_response)

    def form_of(self, kind: type) -> Form | None:
        """Return the form of a response class of Django or REST framework."""
        known = _RESPONSES.get(kind.__qualname__) == kind.__module__
        return self._response_form(kind) if known else None

    def _pack_response(self, response: HttpResponse) -> list[Any]:
        # As for a pickle, this raises ContentNotRenderedError for an unrendered template.
        state: dict[str, Any] = {**cast("dict[str, Any]", response.__getstate__())}
        status, reason, charset = (state.get(name) for name in _STORED_ATTRIBUTES[:3])
        content = b"".join(state["_container"])
        for name in (*_STORED_ATTRIBUTES, *_RESET_ATTRIBUTES):
            state.pop(name, None)
        if "data" in state and type(response).__name__ == "Response":
            state["data"] = self._storable_data(state["data"])
        try:
            _check_state(type(response), state, charset)
        except (ValueError, LookupError) as error:
            raise NotStorable(f"value: a {type(response).__name__} with {error}") from None
        return [
            type(response).__name__,
            status,
            reason,
            charset,
            [list(item) for item in response.headers.items()],
            [_pack_cookie(morsel) for morsel in response.cookies.values()],
            _text_or_bytes(content),
            state,
        ]

    def _storable_data(self, data: Any) -> Any:
        """Return REST framework's rendered data if it can be stored; the content is enough."""
        try:
            plain = _to_plain_types(data)
            self.tagged(plain)
        except (NotStorable, RecursionError):
            return None
        return plain


def _unpack_response(parts: Any) -> HttpResponse:
    name, status, reason, charset, fields, cookies, content, state = parts
    if not (status is None or (type(status) is int and 100 <= status <= 999)):
        raise ValueError(f"a response with the status {status!r}")
    for text in (reason, charset):
        if text is not None:
            _check_line(text)
    if not isinstance(content, str | bytes):
        raise TypeError(f"a response with the content {content!r}")
    cls: type[HttpResponse] = getattr(import_module(_RESPONSES[name]), name)
    _check_state(cls, state, charset)
    response = cls.__new__(cls)
    headers = ResponseHeaders({})
    for field, value in fields:
        headers[field] = value
    response.__dict__.update(
        state,
        headers=headers,
        cookies=_unpack_cookies(cookies),
        _charset=charset,
        _reason_phrase=reason,
        _container=[content.encode() if isinstance(content, str) else content],
        _resource_closers=[],
        _handler_class=None,
        closed=False,
    )
    if status is not None:
        response.status_code = status
    return response


def _check_state(cls: type[HttpResponse], state: dict[str, Any], charset: str | None) -> None:
    """Raise ValueError or LookupError for attributes that would break a response.

    Examples are an attribute that replaces a method, and a template that is not rendered.
    """
    for name in state:
        if hasattr(cls, name):
            raise ValueError(f"an attribute {name!r} in place of its class's")
    if issubclass(cls, SimpleTemplateResponse) and state.get("_is_rendered") is not True:
        raise ValueError("a template that is not rendered")
    if charset is not None:
        "".encode(charset)


def _text_or_bytes(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _pack_cookie(morsel: Morsel[str]) -> list[Any]:
    given = {name: value for name, value in morsel.items() if value != ""}
    return [morsel.key, morsel.value, morsel.coded_value, given]


def _unpack_cookies(cookies: Any) -> SimpleCookie:
    jar = SimpleCookie()
    for key, value, coded, attributes in cookies:
        morsel: Morsel[str] = Morsel()
        morsel.set(key, value, coded)
        morsel.update(attributes)
        _check_line(coded)
        _check_line(morsel.OutputString())
        dict.__setitem__(jar, key, morsel)
    return jar


def _check_line(text: Any) -> None:
    if re.search("[\r\n]", text):  # raises TypeError if it is not text
        raise ValueError(f"more than one line in a response's head: {text!r}")


def _to_plain_types(data: Any) -> Any:
    """Return data with REST framework's lists and dictionaries as plain ones, as for a pickle."""
    if isinstance(data, dict):
        return {key: _to_plain_types(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_to_plain_types(value) for value in data]
    return data


def signed_pickles() -> SignedPickles:
    """Return the codec for pickles that are signed with SECRET_KEY."""
    return SignedPickles.under(
        b"upstash_middleware.django.cache",
        lambda: [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS],
    )
