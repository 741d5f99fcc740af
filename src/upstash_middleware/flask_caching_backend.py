"""The backend of Flask-Caching: ``CACHE_TYPE="upstash_middleware.flask.caching_backend"``.

``cache.cached``, ``cache.memoize`` and all other functions of Flask-Caching then store values in
the database of the application's middleware. Only ``flask.py`` imports this module, when
Flask-Caching needs the backend, so that Flask-Caching is optional.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flask_caching.backends.base import BaseCache
from markupsafe import Markup
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, default_exceptions
from werkzeug.wrappers import Response

from upstash_middleware.core.data import MAX_TTL, MISSING, kind_of
from upstash_middleware.core.pickles import SignedPickles
from upstash_middleware.core.values import Codec, Form
from upstash_middleware.errors import ConfigurationError, NotStorable, UpstashError, unknown_name
from upstash_middleware.events import UpstashFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from flask import Flask

    from upstash_middleware.core.data import DataStore
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.runtime import Runtime

__all__ = ["UpstashBackend"]

T = TypeVar("T")

_OPTIONS = ("default_timeout", "ignore_delete_many_errors", "serializer", "strict")


class UpstashBackend(BaseCache):
    """Flask-Caching's cache on Upstash, with all its methods; see ``flask.caching_backend``.

    A timeout of 0 keeps a value for 400 days; a negative timeout stores nothing.
    ``CACHE_KEY_PREFIX`` is part of the keys, and ``clear()`` invalidates the keys with this prefix.
    """

    def __init__(  # noqa: PLR0913 - each is a separate setting
        self,
        app: Flask,
        find: Callable[[], Runtime],
        key_prefix: str = "",
        *,
        default_timeout: int = 300,
        serializer: str = "json",
        strict: bool = False,
    ) -> None:
        """Create the backend of an application; this opens no connection.

        ``find`` is called for each operation and returns the runtime. Raises ConfigurationError.
        """
        super().__init__(default_timeout)
        if serializer not in {"json", "signed-pickle"}:
            raise ConfigurationError(
                f"CACHE_OPTIONS['serializer']: {serializer!r} should be 'json' or 'signed-pickle'"
            )
        is_json = serializer == "json"
        self._codec: Codec = FlaskCodec() if is_json else _signed_pickles(app)
        self._kind = kind_of("flask" if is_json else "flask-pickle", key_prefix)
        self._find = find
        self._strict = strict

    @classmethod
    def of(
        cls,
        app: Flask,
        find: Callable[[], Runtime],
        config: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> UpstashBackend:
        """Return a backend for Flask-Caching's config. Raises ConfigurationError."""
        for name in options:
            if name not in _OPTIONS:
                raise unknown_name("CACHE_OPTIONS", name, ("serializer", "strict"))
        given = {name: options[name] for name in _OPTIONS if name in options}
        given.pop("ignore_delete_many_errors", None)  # a missing key counts as deleted
        return cls(app, find, config.get("CACHE_KEY_PREFIX") or "", **given)

    def get(self, key: str) -> Any:
        """Return a value, or None if there is none. One command."""
        return self._run(lambda store: store.get(str(key)), None)

    def has(self, key: str) -> bool:
        """Whether a value exists; the value may be None."""
        return self._run(lambda store: store.get(str(key), MISSING), MISSING) is not MISSING

    def get_many(self, *keys: str) -> list[Any]:
        """Return values in the order of their keys, with None for missing values."""
        names = [str(key) for key in keys]
        values: dict[str, Any] = self._run(lambda store: store.get_many(names), {}) if names else {}
        return [values.get(name) for name in names]

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value, and return whether this succeeded."""
        return bool(self.set_many({key: value}, timeout))

    def set_many(
        self, mapping: dict[str, Any], timeout: int | timedelta | None = None
    ) -> list[Any]:
        """Store values in one call, and return their keys; an empty list if this failed."""
        seconds = self._seconds(timeout)

        def make(store: DataStore) -> Flow[bool]:
            payloads = {str(key): _encode(store, value) for key, value in mapping.items()}
            if seconds < 0:
                return store.discard(*payloads, strict=self._strict)
            if len(payloads) == 1:
                ((name, payload),) = payloads.items()
                return store.set(name, payload, seconds, strict=self._strict)
            return store.set_many(payloads, seconds, strict=self._strict)

        return list(mapping) if not mapping or self._run(make, False) else []

    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value if the key has none, and return whether it was stored."""
        seconds = self._seconds(timeout)
        if seconds < 0:
            return not self.has(key)
        return self._run(
            lambda store: store.add(str(key), _encode(store, value), seconds, strict=self._strict),
            False,
        )

    def delete(self, key: str) -> bool:
        """Delete a value, and return whether it existed.

        A value that ``clear()`` has invalidated counts as existing until it expires.
        """
        return self._run(lambda store: store.delete(str(key), strict=self._strict), False)

    def delete_many(self, *keys: str) -> list[Any]:
        """Delete values with one command, and return their keys; an empty list if this failed."""
        names = list(map(str, keys))
        if not names or self._run(lambda store: store.discard(*names, strict=self._strict), True):
            return list(keys)
        return []

    def unlink(self, *keys: str) -> list[Any]:
        """Delete values, like ``delete_many``."""
        return self.delete_many(*keys)

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to an integer atomically and return the sum; None if Upstash fails.

        A new counter begins at 0 with the default timeout. An existing counter keeps its timeout.
        """
        ttl = max(self._seconds(None), 0.001)
        return self._run(lambda store: store.incr(str(key), delta, ttl, strict=self._strict), None)

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract from an integer; see ``inc``."""
        return self.inc(key, -delta)

    def clear(self) -> bool:
        """Invalidate all values with this prefix, with one command; return whether it succeeded."""
        return self._run(self._clear, False)

    async def _clear(self, store: DataStore) -> bool:
        try:
            await store.purge_everything()
        except UpstashError as error:
            self._find().observe(UpstashFailed("data write", error))
            if self._strict:
                raise
            return False
        return True

    def _seconds(self, timeout: int | timedelta | None) -> float:
        seconds = self._normalize_timeout(timeout)
        return min(seconds, MAX_TTL) if seconds else MAX_TTL

    def _run(self, make: Callable[[DataStore], Flow[T]], disabled: T) -> T:
        runtime = self._find()
        flow = make(runtime.data(self._kind, self._codec))
        if runtime.enabled:
            return runtime.perform(flow)
        flow.close()
        return disabled


def _encode(store: DataStore, value: object) -> bytes:
    try:
        return store.encode(value)
    except NotStorable as error:
        raise NotStorable(
            f"{error}. Or set CACHE_OPTIONS={{'serializer': 'signed-pickle'}}, which stores all "
            "values that can be pickled"
        ) from None


def _signed_pickles(app: Flask) -> SignedPickles:
    def secrets() -> list[str | bytes]:
        if not app.secret_key:
            raise ConfigurationError(
                "CACHE_OPTIONS['serializer']: 'signed-pickle' needs the config's SECRET_KEY, which "
                "signs the pickles"
            )
        return [app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())]

    return SignedPickles.under(b"upstash_middleware.flask.caching_backend", secrets)


# ------------------------------------------------------------------------------------------------
# Encoding the values of Flask-Caching

_RESPONSES = {
    ("werkzeug.wrappers.response", "Response"),
    ("flask.wrappers", "Response"),
    ("flask_caching", "CachedResponse"),
}
_STORED_ATTRIBUTES = (
    "headers",
    "response",
    "direct_passthrough",
    "_status",
    "_status_code",
    "_on_close",
)
_EXCEPTIONS: dict[str, type[HTTPException]] = {
    "HTTPException": HTTPException,
    **{cls.__name__: cls for cls in default_exceptions.values()},
}


class FlaskCodec(Codec):
    """Encodes and decodes values as JSON with tagged forms, including those of views."""

    def __init__(self) -> None:
        super().__init__(
            (
                # ``join`` converts it to plain text.
                Form("markup", Markup, lambda text: "".join((text,)), Markup),
                Form("response", Response, _pack_response, _unpack_response),
                Form("exception", HTTPException, _pack_exception, _unpack_exception),
            )
        )

    def form_of(self, kind: type) -> Form | None:
        """Return the form of a response or exception class of the framework."""
        if (kind.__module__, kind.__qualname__) in _RESPONSES:
            return Form("response", kind, _pack_response, _unpack_response)
        if _EXCEPTIONS.get(kind.__name__) is kind:
            return Form("exception", kind, _pack_exception, _unpack_exception)
        return None


def _pack_response(response: Response) -> list[Any]:
    if not response.is_sequence or response.direct_passthrough:
        raise NotStorable(
            "value: a response that streams cannot be stored; call its freeze() first, or leave "
            "its view uncached"
        )
    state = dict(vars(response))
    for name in _STORED_ATTRIBUTES:
        state.pop(name, None)
    kind = type(response)
    try:
        _check_state(kind, state)
    except ValueError as error:
        raise NotStorable(f"value: a {kind.__name__} with {error}") from None
    content = b"".join(response.iter_encoded())
    try:
        text: str | bytes = content.decode()
    except UnicodeDecodeError:
        text = content
    fields = [list(item) for item in response.headers]
    return [kind.__module__, kind.__qualname__, response.status, fields, text, state]


def _unpack_response(parts: Any) -> Response:
    module, name, status, fields, content, state = parts
    if (module, name) not in _RESPONSES:
        raise ValueError(f"a response of the class {module}.{name}")
    if not re.fullmatch(r"[1-9]\d\d( [^\r\n]*)?", status):  # TypeError if it is not text
        raise ValueError(f"a response with the status {status!r}")
    if not isinstance(content, str | bytes):
        raise TypeError(f"a response with the content {content!r}")
    cls = cast("type[Response]", getattr(import_module(module), name))
    _check_state(cls, state)
    response = cls.__new__(cls)
    vars(response).update(state)
    response.headers = Headers([(field, value) for field, value in fields])
    for text in (status, *(text for field in response.headers for text in field)):
        text.encode("latin-1")  # as a server will
    response.status = status
    response.response = [content.encode() if isinstance(content, str) else content]
    response.direct_passthrough = False
    response._on_close = []  # noqa: SLF001 - as in its constructor
    return response


def _check_state(cls: type[Response], state: dict[str, Any]) -> None:
    """Raise ValueError for attributes that replace methods of a response's class."""
    for name in state:
        if hasattr(cls, name) and name != "timeout":  # of Flask-Caching's own class
            raise ValueError(f"an attribute {name!r} in place of its class's")


def _pack_exception(error: HTTPException) -> list[Any]:
    return [type(error).__name__, dict(vars(error))]


def _unpack_exception(parts: Any) -> HTTPException:
    name, state = parts
    cls = _EXCEPTIONS[name]
    error = cls.__new__(cls)
    vars(error).update(state)
    if not isinstance(response := error.get_response(), Response):  # raises for a wrong state
        raise TypeError(f"an exception with the response {response!r}")
    if not 100 <= response.status_code <= 999:
        raise ValueError(f"an exception with the status {response.status!r}")
    return error
