"""The Starlette and FastAPI rows, as factories of an ASGI application."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.apps import common

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def answer(request: Request) -> Response:
    """Return the body that the path stands for."""
    return Response(
        common.BODIES.get(request.url.path, common.KILOBYTE),
        media_type="text/plain",
    )


async def bare(request: Request) -> Response:
    """Answer."""
    return answer(request)


def starlette(handler: Any, **arguments: Any) -> Starlette:
    """Return an application with one handler for every path."""
    paths = ("/", "/1k", "/pages/{name}")
    return Starlette(routes=[Route(path, handler) for path in paths], **arguments)


def with_ours() -> Starlette:
    """Return the application behind this package."""
    from upstash_middleware.starlette import UpstashMiddleware  # noqa: PLC0415

    app = starlette(bare)
    app.add_middleware(UpstashMiddleware, **common.ours())
    return app


def with_sessions() -> Starlette:
    """Return the application whose handler reads its session, behind this package."""
    from upstash_middleware.starlette import UpstashMiddleware  # noqa: PLC0415

    app = reading_sessions()
    app.add_middleware(UpstashMiddleware, **common.ours())
    return app


def reading_sessions() -> Starlette:
    """Return an application that stores a session's entries once, and reads one afterwards."""

    async def log_in(request: Request) -> Response:
        request.session.update(common.SESSION)
        return answer(request)

    async def read(request: Request) -> Response:
        assert request.session["name"] == common.SESSION["name"]
        return answer(request)

    return Starlette(routes=[Route("/login", log_in), Route("/", read)])


def with_data() -> Starlette:
    """Return the application whose handler reads a value through this package."""
    from upstash_middleware.starlette import UpstashMiddleware  # noqa: PLC0415

    async def store(request: Request) -> Response:
        await request.state.data.set("profile", common.SESSION, ttl=3600)
        response = answer(request)
        response.set_cookie("stored", "1")
        return response

    async def read(request: Request) -> Response:
        assert (await request.state.data.get("profile"))["name"] == common.SESSION["name"]
        return answer(request)

    app = Starlette(routes=[Route("/login", store), Route("/", read)])
    app.add_middleware(UpstashMiddleware, **common.ours())
    return app


def with_redis_get() -> Starlette:
    """Return the application whose handler reads a value as JSON on Redis over TCP."""
    import redis.asyncio  # noqa: PLC0415

    client = redis.asyncio.Redis.from_url(common.REDIS_URL)

    async def store(request: Request) -> Response:
        await client.set("profile", json.dumps(common.SESSION), ex=3600)
        response = answer(request)
        response.set_cookie("stored", "1")
        return response

    async def read(request: Request) -> Response:
        assert json.loads(await client.get("profile"))["name"] == common.SESSION["name"]
        return answer(request)

    return Starlette(routes=[Route("/login", store), Route("/", read)])


def with_starsessions() -> Any:
    """Return the application with starsessions on Redis over TCP, and its autoload."""
    import redis.asyncio  # noqa: PLC0415
    from starsessions import SessionAutoloadMiddleware, SessionMiddleware  # noqa: PLC0415
    from starsessions.stores.redis import RedisStore  # noqa: PLC0415

    app = reading_sessions()
    store = RedisStore(connection=redis.asyncio.Redis.from_url(common.REDIS_URL))
    app.add_middleware(SessionAutoloadMiddleware)
    app.add_middleware(
        SessionMiddleware, store=store, lifetime=14 * 24 * 3600, cookie_https_only=False
    )
    return app


def with_redis_hgetall() -> Starlette:
    """Return the application whose handler reads a session's hash on Redis over TCP."""
    import redis.asyncio  # noqa: PLC0415

    client = redis.asyncio.Redis.from_url(common.REDIS_URL)

    async def log_in(request: Request) -> Response:
        fields = {name: json.dumps(value) for name, value in common.SESSION.items()}
        await client.hset("sessions:1", mapping=fields)  # type: ignore[misc]
        response = answer(request)
        response.set_cookie("session", "1")
        return response

    async def read(request: Request) -> Response:
        fields = await client.hgetall(f"sessions:{request.cookies['session']}")  # type: ignore[misc]
        assert json.loads(fields[b"name"]) == common.SESSION["name"]
        return answer(request)

    return Starlette(routes=[Route("/login", log_in), Route("/", read)])


def with_upstash_ratelimit() -> Starlette:
    """Return the application whose handler awaits upstash_ratelimit."""
    from upstash_ratelimit.asyncio import Ratelimit, SlidingWindow  # noqa: PLC0415
    from upstash_redis.asyncio import Redis  # noqa: PLC0415

    limiter = Ratelimit(
        redis=Redis(**common.UPSTASH),
        limiter=SlidingWindow(max_requests=common.QUOTA, window=common.WINDOW),
    )

    async def limited(request: Request) -> Response:
        assert request.client is not None
        response = await limiter.limit(request.client.host)
        return answer(request) if response.allowed else Response(status_code=429)

    return starlette(limited)


def with_upstash_redis_cache() -> Starlette:
    """Return the application whose handler caches by hand on upstash-redis."""
    from upstash_redis.asyncio import Redis  # noqa: PLC0415

    redis = Redis(**common.UPSTASH)

    async def cached(request: Request) -> Response:
        key = f"page:{request.url.path}"
        body = await redis.get(key)
        if body is None:
            body = bytes(answer(request).body).decode()
            await redis.set(key, body, ex=3600)
        return Response(body, media_type="text/plain")

    return starlette(cached)


def with_redis_evalsha() -> Starlette:
    """Return the application whose handler calls a script on Redis over TCP."""
    import redis.asyncio  # noqa: PLC0415

    client = redis.asyncio.Redis.from_url(common.REDIS_URL)
    sha = ""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        nonlocal sha
        sha = await client.script_load(common.FIXED_WINDOW)
        yield
        await client.aclose()

    async def limited(request: Request) -> Response:
        assert request.client is not None
        key = f"limit:{request.client.host}"
        count = await client.evalsha(sha, 1, key, str(common.WINDOW))  # type: ignore[misc]
        return answer(request) if count <= common.QUOTA else Response(status_code=429)

    return starlette(limited, lifespan=lifespan)


def with_slowapi() -> Starlette:
    """Return the application with slowapi's decorator, its limits on Redis over TCP."""
    from slowapi import Limiter  # noqa: PLC0415
    from slowapi.util import get_remote_address  # noqa: PLC0415

    limiter = Limiter(key_func=get_remote_address, storage_uri=common.REDIS_URL)

    @limiter.limit(common.LIMIT)
    async def limited(request: Request) -> Response:
        return answer(request)

    app = starlette(limited)
    app.state.limiter = limiter
    return app


def with_hishel() -> Any:
    """Return the application behind hishel's ASGI cache on Redis over TCP."""
    import redis.asyncio  # noqa: PLC0415
    from hishel import AsyncRedisStorage  # noqa: PLC0415
    from hishel.asgi import ASGICacheMiddleware  # noqa: PLC0415

    async def cacheable(request: Request) -> Response:
        response = answer(request)
        response.headers["cache-control"] = "max-age=3600"
        return response

    storage = AsyncRedisStorage(redis.asyncio.Redis.from_url(common.REDIS_URL))
    return ASGICacheMiddleware(starlette(cacheable), storage=storage)


def fastapi_bare() -> Any:
    """Return the FastAPI application."""
    from fastapi import FastAPI  # noqa: PLC0415

    app = FastAPI()
    for path in common.BODIES:
        app.get(path)(_endpoint)
    return app


async def _endpoint(request: Request) -> Response:
    return answer(request)


def fastapi_with_ours() -> Any:
    """Return the FastAPI application behind this package."""
    from upstash_middleware.starlette import UpstashMiddleware  # noqa: PLC0415

    app = fastapi_bare()
    app.add_middleware(UpstashMiddleware, **common.ours())
    return app


def fastapi_with_fastapi_limiter() -> Any:
    """Return the FastAPI application with fastapi-limiter's dependency, on Redis over TCP."""
    import redis.asyncio  # noqa: PLC0415
    from fastapi import Depends, FastAPI  # noqa: PLC0415
    from fastapi_limiter.depends import RateLimiter  # noqa: PLC0415
    from pyrate_limiter import Duration, Limiter, Rate, RedisBucket  # noqa: PLC0415

    client = redis.asyncio.Redis.from_url(common.REDIS_URL)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Its bucket keeps an entry per request; what falls out of the window it prunes itself.
        rate = Rate(common.QUOTA, Duration.SECOND)
        bucket = await RedisBucket.init([rate], client, "fastapi-limiter")
        limiter = RateLimiter(limiter=Limiter(bucket))
        app.get("/", dependencies=[Depends(limiter)])(_endpoint)
        yield
        await client.aclose()

    return FastAPI(lifespan=lifespan)


def fastapi_with_fastapi_cache() -> Any:
    """Return the FastAPI application with fastapi-cache2's decorator, on Redis over TCP."""
    import redis.asyncio  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415
    from fastapi_cache import FastAPICache  # noqa: PLC0415
    from fastapi_cache.backends.redis import RedisBackend  # noqa: PLC0415
    from fastapi_cache.decorator import cache  # noqa: PLC0415

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        FastAPICache.init(RedisBackend(redis.asyncio.Redis.from_url(common.REDIS_URL)), prefix="f")
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/1k")
    @cache(expire=3600)
    async def page() -> str:
        return common.KILOBYTE.decode()

    return app


FACTORIES: dict[str, Callable[[], Any]] = {
    "Starlette: bare": lambda: starlette(bare),
    "Starlette: upstash_ratelimit": with_upstash_ratelimit,
    "Starlette: redis.asyncio EVALSHA": with_redis_evalsha,
    "Starlette: slowapi": with_slowapi,
    "Starlette: upstash-redis cache": with_upstash_redis_cache,
    "Starlette: hishel": with_hishel,
    "Starlette: session": with_sessions,
    "Starlette: limit and session": with_sessions,
    "Starlette: redis.asyncio HGETALL": with_redis_hgetall,
    "Starlette: starsessions": with_starsessions,
    "Starlette: data": with_data,
    "Starlette: redis.asyncio GET": with_redis_get,
    "FastAPI: bare": fastapi_bare,
    "FastAPI: fastapi-limiter": fastapi_with_fastapi_limiter,
    "FastAPI: fastapi-cache2": fastapi_with_fastapi_cache,
}


def create() -> Any:
    """Return the row's application; what is not a peer's is this package's."""
    ours = fastapi_with_ours if common.ROW.startswith("FastAPI") else with_ours
    return FACTORIES.get(common.ROW, ours)()
