"""The setting ``transport``: the application's own httpx client, or a library by name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from flask import Flask

from tests.upstash.raw_server import answer, raw_server
from tests.upstash.support import pipeline
from upstash_middleware import AsyncRedis, ConfigurationError, RateLimitRule, Redis
from upstash_middleware.asgi import RateLimitMiddleware as AsgiRateLimitMiddleware
from upstash_middleware.errors import ConnectionLost
from upstash_middleware.flask import RateLimitMiddleware as FlaskRateLimit
from upstash_middleware.starlette import RateLimitMiddleware as StarletteRateLimitMiddleware
from upstash_middleware.upstash import AsyncClient, Client, Credentials
from upstash_middleware.wsgi import RateLimitMiddleware

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

GET = pipeline(("GET", "k"), deadline=20.0)


class Recorded:
    """A mock of Upstash that answers each call with 1, and notes what was sent."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.sync = httpx.Client(transport=httpx.MockTransport(self.answer))
        self.asynchronous = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        head = {"Content-Type": "application/octet-stream", "Upstash-Sync-Token": "seen"}
        return httpx.Response(200, headers=head, content=b":1\r\n")


def test_calls_go_over_the_applications_client_which_stays_open():
    recorded = Recorded()
    credentials = Credentials("https://db.example/base", "t0ken")
    client = Client(credentials, transport=recorded.sync)
    assert [client.execute(GET), client.execute(GET)] == [[1], [1]]
    client.close()
    assert client.execute(GET) == [1]
    client.close()
    assert not recorded.sync.is_closed

    async def main() -> list[Any]:
        client = AsyncClient(credentials, transport=recorded.asynchronous)
        replies = await client.execute(GET)
        await client.aclose()
        return replies

    assert asyncio.run(main()) == [1]
    assert not recorded.asynchronous.is_closed
    first, second, *_ = recorded.requests
    assert first.url == "https://db.example/base/"
    assert first.headers["authorization"] == "Bearer t0ken"
    assert "upstash-sync-token" not in first.headers
    assert second.headers["upstash-sync-token"] == "seen"


def test_redis_and_async_redis_take_one():
    recorded = Recorded()
    redis = Redis("https://db.example", "t", transport=recorded.sync)
    assert redis.incr("n") == 1

    async def main() -> int:
        redis = AsyncRedis("https://db.example", "t", transport=recorded.asynchronous)
        return await redis.incr("n")

    assert asyncio.run(main()) == 1
    assert len(recorded.requests) == 2


def test_a_proxy_of_the_applications_client_is_used():
    with raw_server(answer(b":1\r\n")) as proxy, httpx.Client(proxy=proxy.url) as own:
        client = Client(Credentials("http://db.example", "t"), transport=own)
        assert client.execute(GET) == [1]
        assert proxy.requests[0][0].startswith(b"POST http://db.example/ HTTP/1.1")


def test_the_middleware_takes_one(upstash: LocalUpstash):
    """Under WSGI an httpx.Client, under ASGI an httpx.AsyncClient, and a tuple of both."""
    with httpx.Client() as sync:
        asynchronous = httpx.AsyncClient()
        own: Any = (sync, asynchronous)
        options: Any = {"url": upstash.url, "token": upstash.token, "default_limit": "1/minute"}

        def wsgi(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b"ok"]

        for transport in (sync, own):
            app = RateLimitMiddleware(
                wsgi, **options, transport=transport, prefix=f"{id(transport)}"
            )
            with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://x") as browser:
                assert [browser.get("/").status_code for _ in range(2)] == [200, 429]

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

        options["prefix"] = "asgi"

        async def main() -> None:
            app = AsgiRateLimitMiddleware(asgi, **options, transport=asynchronous)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as browser:
                assert [(await browser.get("/")).status_code for _ in range(2)] == [200, 429]
            await asynchronous.aclose()

        asyncio.run(main())
        assert not sync.is_closed


def _raise_for_status(response: httpx.Response) -> None:
    response.raise_for_status()


async def _araise_for_status(response: httpx.Response) -> None:
    response.raise_for_status()


def _broken(own: Any, *, closed: bool) -> Any:
    """An own client of the class whose calls raise what is no TransportError."""
    hook = _raise_for_status if own is httpx.Client else _araise_for_status
    answers = httpx.MockTransport(lambda _: httpx.Response(500, text="down"))
    client = own(transport=answers, event_hooks={"response": [hook]})
    if closed:
        client.close() if own is httpx.Client else asyncio.run(client.aclose())
    return client


@pytest.mark.parametrize("closed", [False, True])
def test_whatever_it_raises_is_an_upstash_error_and_a_closed_rule_denies(closed):
    credentials = Credentials("https://db.example", "t")
    lost = "the application's httpx client raised " + ("RuntimeError" if closed else "HTTPStatus")
    options: Any = {
        "url": "https://db.example",
        "token": "t",
        "default_limit": RateLimitRule(None, "1/minute", on_error="closed"),
    }
    own = _broken(httpx.Client, closed=closed)
    with pytest.raises(ConnectionLost, match=lost):
        Client(credentials, transport=own).execute(GET)

    app = RateLimitMiddleware(lambda *_: [], **options, transport=own)
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://x") as browser:
        assert browser.get("/").status_code == 503

    own = _broken(httpx.AsyncClient, closed=closed)

    async def main() -> None:
        with pytest.raises(ConnectionLost, match=lost):
            await AsyncClient(credentials, transport=own).execute(GET)

        async def nothing(*_: Any) -> None:
            raise AssertionError("the request passed")

        transport = httpx.ASGITransport(AsgiRateLimitMiddleware(nothing, **options, transport=own))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as browser:
            assert (await browser.get("/")).status_code == 503

    asyncio.run(main())


def test_a_middleware_with_a_client_of_the_other_kind_only_cannot_be_created():
    limit: Any = {"default_limit": "1/minute"}
    own = httpx.AsyncClient()
    with pytest.raises(ConfigurationError, match=r"an httpx\.Client"):
        RateLimitMiddleware(lambda *_: [], **limit, transport=own)
    with pytest.raises(ConfigurationError, match=r"an httpx\.Client"):
        FlaskRateLimit(Flask("x"), **limit, transport=own)
    app: Any = None  # which is not called
    with httpx.Client() as sync:
        for middleware in (AsgiRateLimitMiddleware, StarletteRateLimitMiddleware):
            with pytest.raises(ConfigurationError, match=r"an httpx\.AsyncClient"):
                middleware(app, **limit, transport=sync)
            middleware(app, **limit, transport=(sync, own))


def test_a_client_of_the_other_kind_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match=r"an httpx\.Client"):
        Redis("https://db.example", "t", transport=httpx.AsyncClient())
    with httpx.Client() as own, pytest.raises(ConfigurationError, match=r"an httpx\.AsyncClient"):
        AsyncRedis("https://db.example", "t", transport=own)


@pytest.mark.parametrize("wrong", ["requests", 1, [], httpx.Client, ("httpx", "sockets")])
def test_anything_else_is_a_configuration_error_that_names_the_setting(wrong):
    with pytest.raises(ConfigurationError, match=r"^transport: .* should be 'httpx'"):
        RateLimitMiddleware(lambda *_: [], default_limit="1/minute", transport=wrong)
    with pytest.raises(ConfigurationError, match="transport is"):
        Redis("https://db.example", "t", transport=wrong)
