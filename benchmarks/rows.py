"""What is measured: each row's name, how it is served, what is asked of it, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Server = Literal["uvicorn", "granian", "gunicorn"]


@dataclass(frozen=True, slots=True)
class Row:
    """One application under one server, and one request to it, over and over.

    ``app`` is ``FRAMEWORK: WHAT``, as ``benchmarks.apps`` knows it; rows of one application and
    server share a process. ``bare`` is the row of the application without anything around it.
    """

    name: str
    app: str
    path: str = "/"
    server: Server = "uvicorn"
    headers: str = ""
    status: int = 200
    bare: str = ""
    sniffio: bool = True
    redis: bool = False
    """Whether it speaks to Redis over TCP, not to Upstash over HTTP."""

    @property
    def kind(self) -> str:
        """The framework."""
        return self.app.partition(":")[0]

    @property
    def process(self) -> str:
        """What rows that share a process have in common."""
        return f"{self.app} on {self.server}"


def _ours(name: str, app: str, path: str, **more: str | int) -> Row:
    bare = "Starlette: bare" + {"/1k": ", 1 KB", "/100k": ", 100 KB"}.get(path, "")
    values: dict[str, str | int] = {"bare": bare, **more}
    return Row(f"Starlette: {name}", f"Starlette: {app}", path, **values)  # type: ignore[arg-type]


_STARLETTE = (
    Row("Starlette: bare", "Starlette: bare"),
    Row("Starlette: bare, 1 KB", "Starlette: bare", "/1k"),
    Row("Starlette: bare, 100 KB", "Starlette: bare", "/100k"),
    Row("Starlette: upstash_ratelimit", "Starlette: upstash_ratelimit", bare="Starlette: bare"),
    Row(
        "Starlette: upstash_ratelimit, no sniffio",
        "Starlette: upstash_ratelimit, no sniffio",
        bare="Starlette: bare",
        sniffio=False,
    ),
    Row(
        "Starlette: redis.asyncio EVALSHA",
        "Starlette: redis.asyncio EVALSHA",
        bare="Starlette: bare",
        redis=True,
    ),
    Row("Starlette: slowapi", "Starlette: slowapi", bare="Starlette: bare", redis=True),
    _ours("one limit", "one limit", "/"),
    _ours("one limit, not coalesced", "one limit, not coalesced", "/"),
    _ours("three limits", "three limits", "/"),
    _ours("blocked", "blocked", "/", status=429),
    Row(
        "Starlette: upstash-redis cache, hit",
        "Starlette: upstash-redis cache",
        "/1k",
        bare="Starlette: bare, 1 KB",
    ),
    Row(
        "Starlette: hishel, hit",
        "Starlette: hishel",
        "/1k",
        bare="Starlette: bare, 1 KB",
        redis=True,
    ),
    _ours("hit, 1 KB", "cache", "/1k"),
    _ours("hit, 100 KB", "cache", "/100k"),
    _ours("hit from L1, 1 KB", "cache with L1", "/1k"),
    _ours("304", "cache", "/1k", headers='If-None-Match: "benchmark"\r\n', status=304),
    _ours("miss and store", "cache", "/pages/{n}", bare="Starlette: bare, 1 KB"),
    _ours("limit and hit", "limit and cache", "/1k"),
    Row("Starlette: bare, granian", "Starlette: bare", server="granian"),
    Row(
        "Starlette: one limit, granian",
        "Starlette: one limit",
        server="granian",
        bare="Starlette: bare, granian",
    ),
)

_FASTAPI = (
    Row("FastAPI: bare", "FastAPI: bare"),
    Row("FastAPI: fastapi-limiter", "FastAPI: fastapi-limiter", bare="FastAPI: bare", redis=True),
    Row("FastAPI: one limit", "FastAPI: one limit", bare="FastAPI: bare"),
    Row(
        "FastAPI: fastapi-cache2, hit",
        "FastAPI: fastapi-cache2",
        "/1k",
        bare="FastAPI: bare",
        redis=True,
    ),
    Row("FastAPI: hit, 1 KB", "FastAPI: cache", "/1k", bare="FastAPI: bare"),
)

_FLASK = (
    Row("Flask: bare", "Flask: bare", server="gunicorn"),
    Row(
        "Flask: upstash_ratelimit",
        "Flask: upstash_ratelimit",
        server="gunicorn",
        bare="Flask: bare",
    ),
    Row(
        "Flask: Flask-Limiter",
        "Flask: Flask-Limiter",
        server="gunicorn",
        bare="Flask: bare",
        redis=True,
    ),
    Row("Flask: one limit", "Flask: one limit", server="gunicorn", bare="Flask: bare"),
    Row(
        "Flask: flask-caching, hit",
        "Flask: flask-caching",
        "/1k",
        server="gunicorn",
        bare="Flask: bare",
        redis=True,
    ),
    Row("Flask: hit, 1 KB", "Flask: cache", "/1k", server="gunicorn", bare="Flask: bare"),
)


def _django(kind: str, server: Server) -> tuple[Row, ...]:
    bare = f"{kind}: bare"
    return (
        Row(bare, bare, server=server),
        Row(f"{kind}: upstash_ratelimit", f"{kind}: upstash_ratelimit", server=server, bare=bare),
        Row(f"{kind}: one limit", f"{kind}: one limit", server=server, bare=bare),
        Row(
            f"{kind}: cache middleware, hit",
            f"{kind}: cache middleware",
            "/1k",
            server=server,
            bare=bare,
            redis=True,
        ),
        Row(f"{kind}: hit, 1 KB", f"{kind}: cache", "/1k", server=server, bare=bare),
    )


ROWS = (
    *_STARLETTE,
    *_FASTAPI,
    *_FLASK,
    *_django("Django WSGI", "gunicorn"),
    *_django("Django ASGI", "uvicorn"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Under what a row is measured."""

    milliseconds: int
    """Network latency added to every round trip to the store."""
    connections: int


SETTINGS = tuple(Setting(ms, connections) for ms in (0, 5) for connections in (1, 16, 64))
