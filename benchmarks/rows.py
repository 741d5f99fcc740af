"""What is measured: one application under one server per row, and which rows are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Server = Literal["uvicorn", "gunicorn"]


@dataclass(frozen=True, slots=True)
class Row:
    """An application, and one request to it, sent over and over.

    ``name`` is ``FRAMEWORK: WHAT``. Rows of one application share a process.
    """

    name: str
    app: str
    """What ``benchmarks.apps`` calls it, without the framework."""
    path: str = "/"
    status: int = 200
    login: str = ""
    """The path whose response sets the cookie that the request then has."""
    latency: int = 0
    """Milliseconds for which the stand-in of Upstash waits before it answers a call."""

    @property
    def framework(self) -> str:
        """The framework's name."""
        return self.name.partition(":")[0]

    @property
    def server(self) -> Server:
        """The server that is usual for the framework."""
        return "gunicorn" if self.framework in {"Flask", "Django WSGI"} else "uvicorn"

    @property
    def bare(self) -> str:
        """The row of the same application with nothing around it."""
        size = ", 1 KB" if self.framework == "Starlette" and self.path != "/" else ""
        return f"{self.framework}: bare{size}"


ROWS = (
    Row("Starlette: bare", "bare"),
    Row("Starlette: bare, 1 KB", "bare", "/1k"),
    Row("Starlette: one limit", "one limit"),
    Row("Starlette: one limit with a lease", "one limit with a lease"),
    Row("Starlette: one limit, 5 ms", "one limit", latency=5),
    Row("Starlette: one limit with a lease, 5 ms", "one limit with a lease", latency=5),
    Row("Starlette: three limits", "three limits"),
    Row("Starlette: remembered denial", "blocked", status=429),
    Row("Starlette: hit, 1 KB", "cache", "/1k"),
    Row("Starlette: hit from L1, 1 KB", "cache with L1", "/1k"),
    Row("Starlette: miss and store", "cache", "/pages/{n}"),
    Row("Starlette: limit and hit", "limit and cache", "/1k"),
    Row("Starlette: upstash_ratelimit", "upstash_ratelimit"),
    Row("Starlette: redis.asyncio EVALSHA", "redis.asyncio EVALSHA"),
    Row("Starlette: slowapi", "slowapi"),
    Row("Starlette: upstash-redis cache, hit", "upstash-redis cache", "/1k"),
    Row("Starlette: hishel, hit", "hishel", "/1k"),
    Row("Starlette: session load", "session", login="/login"),
    Row("Starlette: limit and session load", "limit and session", login="/login"),
    Row("Starlette: redis.asyncio HGETALL", "redis.asyncio HGETALL", login="/login"),
    Row("Starlette: starsessions", "starsessions", login="/login"),
    Row("Starlette: data.get", "data", login="/login"),
    Row("Starlette: redis.asyncio GET", "redis.asyncio GET", login="/login"),
    Row("FastAPI: bare", "bare"),
    Row("FastAPI: one limit", "one limit"),
    Row("FastAPI: hit, 1 KB", "cache", "/1k"),
    Row("FastAPI: fastapi-limiter", "fastapi-limiter"),
    Row("FastAPI: fastapi-cache2, hit", "fastapi-cache2", "/1k"),
    Row("Flask: bare", "bare"),
    Row("Flask: one limit", "one limit"),
    Row("Flask: one limit with a lease", "one limit with a lease"),
    Row("Flask: hit, 1 KB", "cache", "/1k"),
    Row("Flask: upstash_ratelimit", "upstash_ratelimit"),
    Row("Flask: Flask-Limiter", "Flask-Limiter"),
    Row("Flask: flask-caching, hit", "flask-caching", "/1k"),
    Row("Flask: session load", "session", login="/login"),
    Row("Flask: Flask-Session", "Flask-Session", login="/login"),
    Row("Django WSGI: bare", "bare"),
    Row("Django WSGI: one limit", "one limit"),
    Row("Django WSGI: hit, 1 KB", "cache", "/1k"),
    Row("Django WSGI: upstash_ratelimit", "upstash_ratelimit"),
    Row("Django WSGI: cache middleware, hit", "cache middleware", "/1k"),
    Row("Django WSGI: cache.get", "cache.get", "/1k"),
    Row("Django WSGI: RedisCache's cache.get", "RedisCache", "/1k"),
    Row("Django ASGI: bare", "bare"),
    Row("Django ASGI: one limit", "one limit"),
    Row("Django ASGI: hit, 1 KB", "cache", "/1k"),
)

USUAL = 16
"""The connections with which every row is measured."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rows whose requests per second are divided, at each number of connections."""

    ours: str
    other: str
    note: str
    connections: tuple[int, ...] = (USUAL,)


_EVALSHA = "a script called by hand, Redis over TCP"
COMPARISONS = (
    Comparison(
        "Starlette: one limit", "Starlette: redis.asyncio EVALSHA", _EVALSHA, (1, USUAL, 64)
    ),
    Comparison("Starlette: limit and hit", "Starlette: redis.asyncio EVALSHA", _EVALSHA),
    Comparison("Starlette: hit, 1 KB", "Starlette: redis.asyncio EVALSHA", _EVALSHA, (USUAL, 64)),
    Comparison("Starlette: one limit", "Starlette: slowapi", "Redis over TCP"),
    Comparison(
        "Starlette: one limit",
        "Starlette: upstash_ratelimit",
        "in the handler, Upstash over HTTP",
        (USUAL, 64),
    ),
    Comparison(
        "Starlette: session load",
        "Starlette: redis.asyncio HGETALL",
        "a session's hash read by hand, Redis over TCP",
        (1, USUAL, 64),
    ),
    Comparison("Starlette: session load", "Starlette: starsessions", "Redis over TCP"),
    Comparison(
        "Starlette: data.get",
        "Starlette: redis.asyncio GET",
        "a value as JSON read by hand, Redis over TCP",
        (1, USUAL, 64),
    ),
    Comparison("Starlette: one limit with a lease", "Starlette: bare", "no package"),
    Comparison("Starlette: one limit with a lease", "Starlette: one limit", "without a lease"),
    Comparison(
        "Starlette: one limit with a lease, 5 ms",
        "Starlette: one limit, 5 ms",
        "without a lease, calls take 5 ms longer",
        (1, USUAL),
    ),
    Comparison("Starlette: remembered denial", "Starlette: bare", "no package"),
    Comparison("Starlette: hit from L1, 1 KB", "Starlette: bare, 1 KB", "no package"),
    Comparison("Flask: one limit with a lease", "Flask: bare", "no package"),
    Comparison("Flask: one limit with a lease", "Flask: one limit", "without a lease"),
    Comparison("Flask: one limit", "Flask: Flask-Limiter", "Redis over TCP"),
    Comparison("Flask: one limit", "Flask: upstash_ratelimit", "in the view, Upstash over HTTP"),
    Comparison("Flask: session load", "Flask: Flask-Session", "Redis over TCP"),
    Comparison("Django WSGI: hit, 1 KB", "Django WSGI: cache middleware, hit", "Redis over TCP"),
    Comparison("Django WSGI: cache.get", "Django WSGI: RedisCache's cache.get", "Redis over TCP"),
)
