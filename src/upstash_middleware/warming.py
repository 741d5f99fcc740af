"""Filling the cache: requests to the application in this process, without a visitor.

Each request is a GET that passes through the whole application and its middleware, as on a server,
so responses are stored as usual. No limit counts it, and its session has no client.
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from msgspec import Struct

from upstash_middleware.messages import PATH_SAFE, split_list
from upstash_middleware.runtime import BACKGROUND_REQUEST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

_QUERY_SAFE: Final = "%!$&'()*+,;=:@/?-._~[]"
_DETAIL: Final = re.compile(r'; detail="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")
_PORTS: Final = {"http": 80, "https": 443}


class Warmed(Struct, frozen=True):
    """The result of warming one URL."""

    url: str
    """The URL."""
    outcome: str
    """``"stored"``, ``"hit"`` if it was already stored, ``"not stored"`` or ``"failed"``."""
    why: str = ""
    """The reason why it was not stored, or the error."""
    status: int | None = None
    """The response's status; None if there was no response."""

    @property
    def is_stored(self) -> bool:
        """Whether the next request will be a cache hit."""
        return self.outcome in {"stored", "hit"}


class _Request(Struct, frozen=True):
    """A GET of one URL, in the form in which applications receive it."""

    url: str
    scheme: str
    host: str
    path: str
    """The path as sent, with the prefix under which the application is mounted."""
    root_path: str
    query: str
    headers: tuple[tuple[str, str], ...]


class _Answer(Struct):
    """The status and Cache-Status of a response."""

    status: int | None = None
    cache_status: str = ""


async def awarm(  # noqa: PLR0913 - keyword arguments
    app: Any,
    urls: Iterable[str],
    *,
    headers: Mapping[str, str] | None = None,
    concurrency: int = 8,
    deadline: float = 60.0,
    root_path: str = "",
) -> list[Warmed]:
    """Request URLs from an application in this process, so that their responses are stored.

    The application must be running: for an ASGI application, its lifespan has started.

    Args:
        app: The ASGI or WSGI application, with the middleware.
        urls: Whole URLs, as the application receives them: pages are stored per scheme and host.
        headers: Header fields of each request, such as those that select a variant.
        concurrency: The number of concurrent requests.
        deadline: Seconds after which a request counts as failed.
        root_path: The prefix under which the application is mounted; all paths begin with it.

    Returns:
        The result for each URL, in order.

    Raises:
        ValueError: A URL is not absolute, or does not begin with the prefix.
    """
    import anyio  # noqa: PLC0415 - only needed on an event loop

    requests = _requests(urls, headers, root_path)
    results: dict[int, Warmed] = {}
    waiting = iter(enumerate(requests))
    threads = anyio.CapacityLimiter(_check_concurrency(concurrency))
    is_asgi = _is_asgi(app)

    async def work() -> None:
        for place, request in waiting:
            if is_asgi:
                results[place] = await _warm_asgi(app, request, deadline)
            else:
                function = partial(_warm_wsgi, app, request, deadline)
                results[place] = await anyio.to_thread.run_sync(function, limiter=threads)

    async with anyio.create_task_group() as tasks:
        for _ in range(min(concurrency, len(requests))):
            tasks.start_soon(work)
    return [results[place] for place in sorted(results)]


def warm(  # noqa: PLR0913 - keyword arguments
    app: Any,
    urls: Iterable[str],
    *,
    headers: Mapping[str, str] | None = None,
    concurrency: int = 8,
    deadline: float = 60.0,
    root_path: str = "",
) -> list[Warmed]:
    """Do the same as ``awarm`` without an event loop; for a WSGI application, in threads.

    For an ASGI application, this runs an event loop and the application's lifespan.

    Args:
        app: The ASGI or WSGI application, with the middleware.
        urls: Whole URLs, as the application receives them.
        headers: Header fields of each request, such as those that select a variant.
        concurrency: The number of concurrent requests.
        deadline: Seconds after which a request counts as failed.
        root_path: The prefix under which the application is mounted; all paths begin with it.
    """
    urls = list(urls)
    requests = _requests(urls, headers, root_path)
    if _is_asgi(app):
        import anyio  # noqa: PLC0415 - for ASGI applications only

        work = partial(
            awarm,
            urls=urls,
            headers=headers,
            concurrency=_check_concurrency(concurrency),
            deadline=deadline,
            root_path=root_path,
        )
        return anyio.run(_with_lifespan, app, work)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to import

    with ThreadPoolExecutor(_check_concurrency(concurrency)) as threads:
        return list(threads.map(lambda request: _warm_wsgi(app, request, deadline), requests))


def _check_concurrency(concurrency: int) -> int:
    if concurrency < 1:
        raise ValueError(f"warm: concurrency = {concurrency!r} should be 1 or more")
    return concurrency


def _is_asgi(app: Any) -> bool:
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(
        getattr(app, "__call__", None)  # noqa: B004 - not whether it can be called, but how
    )


def _requests(
    urls: Iterable[str], headers: Mapping[str, str] | None, root_path: str
) -> list[_Request]:
    prefix, fields = root_path.rstrip("/"), tuple((headers or {}).items())
    requests = []
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.netloc:
            raise ValueError(
                f"cannot warm {url!r}: pages are stored per scheme and host, so give the whole URL "
                "as the application gets it, such as 'https://shop.example/products/7'"
            )
        path = quote(parts.path or "/", safe=f"{PATH_SAFE}%")
        if prefix and not path.startswith(f"{prefix}/"):
            raise ValueError(f"cannot warm {url!r}: its path does not begin with {prefix!r}")
        query = quote(parts.query, safe=_QUERY_SAFE)
        request = _Request(url, parts.scheme, parts.netloc, path, prefix, query, fields)
        requests.append(request)
    return requests


# --- What came of it ----------------------------------------------------------------------------


def _result(request: _Request, answer: _Answer, *, again: bool) -> Warmed | None:
    """Return the result from a response's Cache-Status; None if another request is needed.

    For the second request, with ``again``, the result is never None.
    """
    members = split_list(answer.cache_status)
    ours = next((part for part in members if part.startswith("upstash-middleware;")), None)
    if ours is None:
        return Warmed(request.url, "not stored", "no cache rule covers it", answer.status)
    if ours.startswith("upstash-middleware; hit"):
        return Warmed(request.url, "stored" if again else "hit", "", answer.status)
    if "; stored" in ours:
        return Warmed(request.url, "stored", "", answer.status)
    if (detail := _DETAIL.search(ours)) is not None:
        return Warmed(request.url, "not stored", _ESCAPED.sub(r"\1", detail[1]), answer.status)
    if "; collapsed" in ours or again:
        why = "" if "; collapsed" in ours else "the store failed, or its body may not be stored"
        return Warmed(request.url, "not stored" if why else "hit", why, answer.status)
    return None


def _failed_warming(request: _Request, why: object, answer: _Answer) -> Warmed:
    if isinstance(why, BaseException):
        why = f"{type(why).__name__}: {why}"
    return Warmed(request.url, "failed", str(why), answer.status)


async def _warm_asgi(
    app: Any, request: _Request, deadline: float, *, again: bool = False
) -> Warmed:
    import anyio  # noqa: PLC0415 - only needed on an event loop

    answer = _Answer()
    try:
        with anyio.fail_after(deadline):
            await _get_asgi(app, request, answer)
    except TimeoutError:
        return _failed_warming(request, f"no whole response within {deadline:g} s", answer)
    except Exception as error:  # noqa: BLE001 - an exception of the application
        return _failed_warming(request, error, answer)
    result = _result(request, answer, again=again)
    return result or await _warm_asgi(app, request, deadline, again=True)


def _warm_wsgi(app: Any, request: _Request, deadline: float, *, again: bool = False) -> Warmed:
    answer = _Answer()
    try:
        _get_wsgi(app, request, answer, deadline)
    except Exception as error:  # noqa: BLE001 - an exception of the application
        return _failed_warming(request, error, answer)
    return _result(request, answer, again=again) or _warm_wsgi(app, request, deadline, again=True)


# --- Requests in this process -------------------------------------------------------------------


async def _get_asgi(app: Any, request: _Request, answer: _Answer) -> None:
    import anyio  # noqa: PLC0415 - only needed on an event loop

    fields = [("host", request.host), *request.headers]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": request.scheme,
        "path": unquote(request.path),
        "raw_path": request.path.encode("ascii"),
        "query_string": request.query.encode("ascii"),
        "root_path": request.root_path,
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in fields],
        "client": None,
        "server": None,
        "state": {},
        BACKGROUND_REQUEST: True,
    }
    requested, done = False, anyio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal requested
        if not requested:
            requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.cache_status = _cache_status(
                (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                for name, value in message.get("headers", ())
            )
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            done.set()

    await app(scope, receive, send)


def _get_wsgi(app: Any, request: _Request, answer: _Answer, deadline: float) -> None:
    name, _, port = request.host.partition(":")
    path = unquote_to_bytes(request.path.removeprefix(request.root_path)).decode("latin-1")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": request.root_path,
        "PATH_INFO": path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": name,
        "SERVER_PORT": port or str(_PORTS[request.scheme]),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "",
        "HTTP_HOST": request.host,
        **{f"HTTP_{k.upper().replace('-', '_')}": value for k, value in request.headers},
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        BACKGROUND_REQUEST: True,
    }

    def start_response(
        status: str, headers: Sequence[tuple[str, str]], _exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        answer.status, answer.cache_status = int(status[:3]), _cache_status(headers)
        return len

    end = time.monotonic() + deadline
    body = app(environ, start_response)
    try:
        for _ in body:
            if time.monotonic() > end:
                raise TimeoutError(f"no whole response within {deadline:g} s")
    finally:
        if (close := getattr(body, "close", None)) is not None:
            close()


def _cache_status(headers: Iterable[tuple[str, str]]) -> str:
    return ", ".join(value for name, value in headers if name.lower() == "cache-status")


async def _with_lifespan(app: Any, work: Callable[[Any], Awaitable[list[Warmed]]]) -> list[Warmed]:
    """Call ``work`` with an application while its lifespan runs, if it has one.

    Raises RuntimeError if the application cannot start.
    """
    import anyio  # noqa: PLC0415 - only needed on an event loop

    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    started, stopping = anyio.Event(), anyio.Event()
    failed: list[str] = []
    result: list[Warmed] = []

    async def receive() -> dict[str, str]:
        event = next(events)
        if event == "lifespan.shutdown":
            await stopping.wait()
        return {"type": event}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "lifespan.startup.failed":
            failed.append(message.get("message", ""))
        started.set()

    async def run() -> None:
        # In the ASGI specification, an application that raises here has no lifespan.
        with suppress(Exception):
            await app(scope, receive, send)
        started.set()

    async def running(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await app({**scope, "state": {**state}}, receive, send)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await started.wait()
        if not failed:
            result = await work(running)
        stopping.set()
    if failed:
        raise RuntimeError(f"the application cannot start: {failed[0]}")
    return result
