"""A limit on WebSocket handshakes: counted as requests, denied with a response or by closing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from fastapi import Depends, FastAPI
from fastapi import WebSocket as FastAPIWebSocket
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.asgi.fakes import FakeHalf, FakeRuntime, Server
from tests.asgi.serving import served_by_uvicorn
from upstash_middleware import HTTPRequest, RateLimitRule, fastapi
from upstash_middleware.asgi import Handshake
from upstash_middleware.starlette import CacheMiddleware, UpstashMiddleware, exempt, limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.websockets import WebSocket

    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.runtime import Runtime

pytestmark = pytest.mark.usefixtures("upstash")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept(headers=[(b"x-own", b"1")])
    decision = websocket.state.rate_limit
    await websocket.send_json({"remaining": decision and decision.remaining})
    if "charge" in websocket.query_params:
        decision.charge(int(websocket.query_params["charge"]))
    await websocket.close()


async def refuse(websocket: WebSocket) -> None:
    await websocket.receive()
    await websocket.close()


def application(middleware: Any = UpstashMiddleware, **arguments: Any) -> Starlette:
    app = Starlette(
        routes=[
            WebSocketRoute("/chat", echo),
            WebSocketRoute("/refused", refuse),
            WebSocketRoute("/free", exempt(_exempt_echo)),
            Route("/page", lambda _: None),
        ]
    )
    app.add_middleware(middleware, **arguments)
    return app


async def _exempt_echo(websocket: WebSocket) -> None:
    await echo(websocket)


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """Talk to an application with the settings of the test's parameter, or a limit of two."""
    arguments = getattr(request, "param", {"default_limit": "2/hour"})
    with TestClient(application(**arguments), client=("203.0.113.9", 50000)) as client:
        yield client


def remaining(client: TestClient, path: str = "/chat") -> int | None:
    """Make a handshake and return what the application saw to be left."""
    with client.websocket_connect(path) as websocket:
        found: int | None = websocket.receive_json()["remaining"]
        return found


def test_handshakes_are_counted_and_the_application_reads_the_decision(client: TestClient):
    assert [remaining(client), remaining(client)] == [1, 0]
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/chat"):
        pass
    denial = caught.value
    assert denial.status_code == 429
    assert int(denial.headers["retry-after"]) > 0
    assert denial.headers["content-type"] == "application/problem+json"
    assert denial.json()["type"].endswith("quota-exceeded")


def test_an_accepted_handshake_carries_the_limits_fields_beside_the_applications(
    client: TestClient,
):
    with client.websocket_connect("/chat") as websocket:
        headers: Any = dict(cast("Any", websocket.extra_headers))
    assert headers[b"x-own"] == b"1"
    assert headers[b"x-ratelimit-remaining"] == b"1"


@pytest.mark.parametrize("client", [{"default_limit": "1000/hour lease 1m"}], indirect=True)
def test_busy_clients_handshakes_are_decided_by_leases(client: TestClient, upstash: LocalUpstash):
    assert [remaining(client) for _ in range(60)] == [*range(999, 939, -1)]
    assert upstash.bill().requests < 30
    assert remaining(client, "/chat?charge=5") == 939
    assert remaining(client) == 933


def test_an_exempt_endpoint_is_free(client: TestClient):
    assert [remaining(client, "/free") for _ in range(3)] == [None] * 3


RULE = RateLimitRule("/chat", "10/hour")
REFUSED = RateLimitRule(
    "/refused", "2/hour", settle=lambda _, response: int(response.status == 403)
)


@pytest.mark.parametrize("client", [{"rate_limits": [RULE], "default_limit": None}], indirect=True)
def test_what_is_charged_is_settled_when_the_connection_ends(client: TestClient):
    assert remaining(client, "/chat?charge=4") == 9
    assert remaining(client) == 4, "10 - (1 + 4) - 1"


@pytest.mark.parametrize(
    "client", [{"rate_limits": [REFUSED], "default_limit": None}], indirect=True
)
def test_a_handshake_that_the_application_refuses_settles_as_the_403_that_it_is(
    client: TestClient,
):
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/refused"):
            pass
    with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/refused"):
        pass


@pytest.mark.anyio
async def test_messages_in_either_direction_renew_what_a_connection_holds():
    """A slot is held for as long as the connection stands."""
    renewed: list[str] = []
    half = FakeHalf(renews=lambda: renewed.append("renewed"))
    fake, server = FakeRuntime(half), Server({"type": "websocket.receive", "text": "tea?"})
    passing = Handshake(
        cast("Runtime", fake),
        await fake.abegin(HTTPRequest("GET", "/chat")),
        server.receive,
        server.send,
    )
    assert await passing.receive() == {"type": "websocket.receive", "text": "tea?"}
    assert len(renewed) == 1
    await passing.send({"type": "websocket.accept"})
    await passing.send({"type": "websocket.send", "text": "tea."})
    assert len(renewed) == 3
    assert server.sent[-1] == {"type": "websocket.send", "text": "tea."}


def test_a_cache_has_nothing_to_do_with_a_handshake(upstash: LocalUpstash):
    app = application(CacheMiddleware, cache=[{"path": "/{rest:path}", "ttl": 60}])
    with (
        TestClient(app) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/refused"),
    ):
        pass
    assert upstash.bill().requests == 0


@pytest.mark.anyio
@pytest.mark.parametrize("extensions", [{}, None])
async def test_a_server_that_cannot_send_a_response_closes_before_accepting(extensions: Any):
    app = application(default_limit="1/hour")
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    for _ in range(2):
        scope = {
            "type": "websocket",
            "path": "/refused",
            "headers": [],
            "client": ("203.0.113.9", 1),
            "extensions": extensions,
        }
        await app(scope, receive, send)
    assert sent == ["websocket.close", "websocket.close"]


@limit("1/hour")
async def limited_echo(websocket: WebSocket) -> None:
    await echo(websocket)


def by_decorator() -> Starlette:
    return Starlette(routes=[WebSocketRoute("/chat", limited_echo)])


def by_dependency() -> FastAPI:
    app = FastAPI()
    app.add_api_websocket_route(
        "/chat", echo_anything, dependencies=[Depends(fastapi.limit("1/hour"))]
    )
    return app


async def echo_anything(websocket: FastAPIWebSocket) -> None:
    await echo(websocket)


@pytest.mark.parametrize("make", [by_decorator, by_dependency])
@pytest.mark.parametrize("outside", [True, False])
def test_a_limit_in_front_of_an_endpoint_counts_handshakes(make: Any, outside: bool):
    app = make()
    if outside:
        app.add_middleware(UpstashMiddleware, default_limit="9/hour")
    with TestClient(app, client=("203.0.113.9", 50000)) as client:
        assert remaining(client) == 0
        with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/chat"):
            pass
    assert caught.value.status_code == 429
    assert int(caught.value.headers["retry-after"]) > 0


@pytest.mark.anyio
@pytest.mark.parametrize("make", [by_decorator, by_dependency])
async def test_a_limit_in_front_of_an_endpoint_closes_where_it_can_do_nothing_else(make: Any):
    app, sent = make(), []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    for _ in range(2):
        scope = {"type": "websocket", "path": "/chat", "headers": [], "client": ("203.0.113.9", 1)}
        await app({**scope, "query_string": b"", "subprotocols": []}, receive, send)
    assert sent == ["websocket.accept", "websocket.send", "websocket.close", "websocket.close"]


def test_under_uvicorn_a_client_gets_the_response():
    app = application(default_limit="1/hour")
    with served_by_uvicorn(app) as port:
        url = f"ws://127.0.0.1:{port}/chat"
        with connect(url) as websocket:
            assert json.loads(websocket.recv()) == {"remaining": 0}
            response = websocket.response
        with pytest.raises(InvalidStatus) as caught, connect(url):
            pass
    assert response is not None
    assert response.headers["x-ratelimit-limit"] == "1"
    assert caught.value.response.status_code == 429
    assert int(caught.value.response.headers["retry-after"]) > 0
