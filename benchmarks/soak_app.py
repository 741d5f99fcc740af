"""The application of the soak test, for gunicorn: pages that prove themselves, limits that count.

Every page carries the digest of what it should be, so that a wrong byte from the cache shows.
With SOAK_CALLS_BEFORE_FORK the parent uses its client before it forks workers.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from upstash_middleware import CacheRule, RateLimitRule, SlidingLog
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.wsgi import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

DEADLINE = float(os.environ.get("SOAK_DEADLINE", "0.5"))
"""Seconds for a call to Upstash."""
WORKERS = 4
WINDOW = 10.0
"""Seconds."""
CLOSED_QUOTA = 100
"""Requests that `/closed` lets through in any such stretch of time, whatever the faults."""
LOCAL_QUOTA = 200
"""The same for `/local`, and again as much in a bad one, of which each worker counts its share."""


def page_of(path: str) -> bytes:
    """Return a page: its digest, and what that is of."""
    content = (path.encode() + b"\n") * 200
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def proves_itself(path: str, body: bytes) -> bool:
    """Whether a body is the page of this path, to the last byte."""
    return body == page_of(path)


def _application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))])
    return [page_of(path)]


app = UpstashMiddleware(
    _application,
    rate_limits=[
        RateLimitRule("/closed", SlidingLog(CLOSED_QUOTA, WINDOW), on_error="closed"),
        RateLimitRule(
            "/local", SlidingLog(LOCAL_QUOTA, WINDOW), on_error="local", local_share=1 / WORKERS
        ),
    ],
    default_limit="1000000/minute",
    cache=[CacheRule("/pages/{name}", ttl=2)],
    deadline=DEADLINE,
    cache_deadline=DEADLINE,
    prefix="soak",
)

if os.environ.get("SOAK_CALLS_BEFORE_FORK"):
    _begun = app.runtime.begin(HTTPRequest("GET", "/before", peer="192.0.2.1"))
    app.runtime.finish(_begun, complete=True)
