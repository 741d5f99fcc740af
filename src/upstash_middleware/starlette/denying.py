"""A denial as Starlette's exception, and the handler that the application has for it, if any."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from upstash_middleware import messages

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

    from upstash_middleware.core.ratelimit import Decision

Handler = Callable[[HTTPRequest, Any], Any]

_OF_THE_BODY = frozenset({"content-type", "content-length"})
_FRAMEWORKS_OWN = frozenset({"starlette.middleware.exceptions", "fastapi.exception_handlers"})


class RequestDenied(HTTPException):
    """A limit has stopped a request: 429, or 403 by a deny list, or 503 where nothing can count.

    Raised in front of a handler, so that the application's exception handlers for this class, for
    its status or for HTTPException answer. Where there are none, ``denial`` is the answer.
    """

    def __init__(self, denial: messages.Response, decision: Decision) -> None:
        head = denial.head
        fields = head.headers.without(*_OF_THE_BODY).raw
        text = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
        super().__init__(head.status, headers=text)
        self.denial = denial
        self.decision = decision


async def give_denial(_request: HTTPRequest, error: RequestDenied) -> Response:
    """Answer as this package does by itself: an exception handler for RequestDenied."""
    response = Response(error.denial.body, error.denial.head.status)
    response.raw_headers = [(name.lower(), value) for name, value in error.denial.head.headers.raw]
    return response


def answer_by_default(scope: Scope) -> None:
    """Have RequestDenied answered by ``give_denial`` where the application has no handler for it.

    Starlette and FastAPI have one for every HTTPException, which would answer otherwise.
    """
    by_class, by_status = scope.get("starlette.exception_handlers", ({}, {}))
    if own_handler({**by_class, **by_status}, 429) is None:
        by_class[RequestDenied] = give_denial


def own_handler(handlers: Mapping[Any, Handler], status: int) -> Handler | None:
    """Return the application's own handler for RequestDenied, by status or class."""
    for key in (status, RequestDenied, HTTPException):
        if (handler := handlers.get(key)) is not None:
            return None if handler.__module__ in _FRAMEWORKS_OWN else handler
    return None


async def handled(
    handler: Handler, scope: Scope, receive: Receive, error: RequestDenied
) -> messages.Response:
    """Return what an exception handler of the application's answers, as a value.

    It gets the denial's fields where it has none of those names. Raises what the handler raises.
    """
    request = HTTPRequest(scope, receive)
    if inspect.iscoroutinefunction(handler):
        response = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
    start, body = await _collected(response, scope, receive)
    headers = messages.Headers(start["headers"])
    missing = [
        (name.lower(), value)
        for name, value in error.denial.head.headers.without(*_OF_THE_BODY).raw
        if name.decode("latin-1").lower() not in headers
    ]
    return messages.Response(messages.ResponseHead(start["status"], headers.adding(*missing)), body)


async def _collected(response: Response, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await response(scope, receive, send)
    return sent[0], b"".join(message.get("body", b"") for message in sent[1:])
