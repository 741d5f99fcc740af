"""The way in without a socket: an httpx transport, for code that brings its own httpx client."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from upstash_redis import Redis
from upstash_redis.asyncio import Redis as AsyncRedis

from upstash_middleware import asgi, wsgi
from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Iterator

PING: dict[str, Any] = {"json": ["PING"]}


@pytest.fixture(scope="module")
def unheard() -> Iterator[LocalUpstash]:
    """A server that does not listen."""
    with LocalUpstash(listen=False) as upstash:
        yield upstash


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def headers(upstash: LocalUpstash) -> dict[str, str]:
    return {"Authorization": f"Bearer {upstash.token}"}


@pytest.mark.usefixtures("no_network")
def test_a_sync_client_reaches_it_without_a_socket(unheard: LocalUpstash):
    unheard.reset_bill()
    with httpx.Client(transport=unheard.transport, headers=headers(unheard)) as client:
        assert client.post(unheard.url, **PING).json() == {"result": "PONG"}
        assert client.get(f"{unheard.url}/set/a%2Fb/v?EX=9").json() == {"result": "OK"}
        assert client.get(f"{unheard.url}/get/a%2Fb").json() == {"result": "v"}
        head = client.head(f"{unheard.url}/get/a%2Fb")
        assert (head.content, head.headers["content-length"]) == (b"", "14")
        assert client.get(f"{unheard.url}/-/bill").json()["requests"] == 4


@pytest.mark.anyio
@pytest.mark.usefixtures("no_network")
async def test_an_async_client_reaches_it_without_a_socket(unheard: LocalUpstash):
    async with httpx.AsyncClient(transport=unheard.transport, headers=headers(unheard)) as client:
        assert (await client.post(unheard.url, **PING)).json() == {"result": "PONG"}


@pytest.mark.usefixtures("no_network")
def test_the_sdks_client_can_be_given_the_transport(unheard: LocalUpstash):
    redis = Redis(unheard.url, unheard.token)
    redis._http._client = httpx.Client(transport=unheard.transport)
    with redis:
        assert redis.set("k", "v")
        assert redis.get("k") == "v"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_sdks_async_client_can_be_given_the_transport(unheard: LocalUpstash):
    redis = AsyncRedis(unheard.url, unheard.token)
    redis._http._client = httpx.AsyncClient(transport=unheard.transport)
    async with redis:
        batch = redis.pipeline()
        batch.set("k", 1)
        batch.incr("k")
        assert await batch.exec() == [True, 2]


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.anyio
@pytest.mark.usefixtures("no_network")
async def test_an_asgi_application_under_test_needs_no_socket(unheard: LocalUpstash):
    unheard.flush()
    app = asgi.RateLimitMiddleware(hello, redis=unheard, default_limit="2/hour")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert [(await client.get("/")).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.usefixtures("no_network")
def test_a_wsgi_application_under_test_needs_no_socket(unheard: LocalUpstash):
    def greet(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    unheard.flush()
    app = wsgi.RateLimitMiddleware(greet, redis=unheard, default_limit="2/hour")
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://x") as client:
        assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("fault", "exception"),
    [
        ("refuse", httpx.ConnectError),
        ("drop-before", httpx.RemoteProtocolError),
        ("drop-after", httpx.RemoteProtocolError),
        ("truncate", httpx.RemoteProtocolError),
        ("stall", httpx.ReadTimeout),
        ("trickle", httpx.ReadTimeout),
    ],
)
def test_faults_show_as_httpx_exceptions(
    unheard: LocalUpstash, fault: str, exception: type[httpx.HTTPError]
):
    with httpx.Client(transport=unheard.transport, headers=headers(unheard)) as client:
        with unheard.faults(fault=fault), pytest.raises(exception):
            client.post(unheard.url, **PING)
        assert client.post(unheard.url, **PING).is_success


def test_streams_need_the_socket(unheard: LocalUpstash):
    with (
        httpx.Client(transport=unheard.transport, headers=headers(unheard)) as client,
        pytest.raises(httpx.UnsupportedProtocol),
    ):
        client.post(f"{unheard.url}/subscribe/chat")
