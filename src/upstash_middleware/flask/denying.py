"""A denial as Werkzeug's exception, and as the response that Flask's error handling makes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flask import current_app, g
from werkzeug.exceptions import Forbidden, ServiceUnavailable, TooManyRequests

from upstash_middleware.flask.signals import send_rate_limited
from upstash_middleware.messages import Response
from upstash_middleware.wsgi.environ import fields_of, head_of

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

    from flask import Flask
    from flask.wrappers import Response as FlaskResponse
    from werkzeug.exceptions import HTTPException

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.gateway import Gateway

_OF_THE_BODY = frozenset({"content-type", "content-length"})


class RateLimitExceeded(TooManyRequests):
    """A limit has stopped a request; for ``errorhandler(429)`` or one for this class.

    ``decision`` tells which and for how long. Where the application has no handler, the
    ``response`` of this package is the answer.
    """

    def __init__(self, response: FlaskResponse, decision: Decision) -> None:
        wait = None if decision.retry_after is None else math.ceil(decision.retry_after)
        super().__init__(response=response, retry_after=wait)
        self.decision = decision


def denied(denial: Response, decision: Decision) -> HTTPException:
    """Return the exception for a denial: 429, or 403 by a deny list, or 503 if nothing can count.

    Needs an application context.
    """
    status = denial.head.status
    response = current_app.response_class(denial.body, status, fields_of(denial.head.headers))
    if status == 403:
        return Forbidden(response=response)
    if status == 503:
        return ServiceUnavailable(response=response)
    return RateLimitExceeded(response, decision)


def complete(response: FlaskResponse, denial: Response) -> None:
    """Add what a denial tells, to an error handler's response that does not tell it."""
    for name, value in fields_of(denial.head.headers):
        if name.lower() not in _OF_THE_BODY and name not in response.headers:
            response.headers.add(name, value)


def answered_by(
    app: Flask,
    environ: WSGIEnvironment,
    denial: Response,
    decision: Decision,
    gateway: Gateway,
) -> Response:
    """Return what the application makes of a denial outside of it, as of an error inside.

    Its error handlers answer, its ``after_request`` functions see the answer, as those that
    add the fields of CORS; ``before_request`` functions are not called. Raises what they raise.
    """
    with app.request_context(environ):
        g.rate_limit = decision
        send_rate_limited(app, gateway, decision)
        handled = app.handle_http_exception(denied(denial, decision))
        response = app.finalize_request(handled, from_error_handler=True)
        complete(response, denial)
        with response:
            head = head_of(response.status, response.headers.to_wsgi_list())
            return Response(head, response.get_data())
