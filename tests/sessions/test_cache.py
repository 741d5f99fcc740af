"""Sessions and the response cache: what depends on a session is shared with nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tests.sessions.site import SECRET, stored_keys
from upstash_middleware import CacheRule
from upstash_middleware.starlette import (
    CacheMiddleware,
    SessionMiddleware,
    UpstashMiddleware,
    session,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

RULE = CacheRule("/{rest:path}", ttl=600)


class Shop:
    """A shop with cached pages, of which some use the session; it counts what it renders."""

    def __init__(self) -> None:
        self.rendered = 0

    async def plain(self, _request: Request) -> Response:
        self.rendered += 1
        return PlainTextResponse(f"plain {self.rendered}")

    async def hello(self, request: Request) -> Response:
        self.rendered += 1
        return PlainTextResponse(f"hello {request.session.get('name')}")

    async def late(self, request: Request) -> Response:
        self.rendered += 1

        async def pieces() -> AsyncIterator[str]:
            yield "hello "
            yield str(request.session.get("name"))

        return StreamingResponse(pieces(), headers={"content-length": "9"})

    async def log_in(self, request: Request) -> Response:
        request.session["name"] = request.query_params["name"]
        return PlainTextResponse("welcome")

    @property
    def routes(self) -> list[Route]:
        handlers = (self.plain, self.hello, self.late, self.log_in)
        return [Route(f"/{each.__name__}", each) for each in handlers]


ORDERS = (
    "in one class",
    "cache outside of sessions",
    "sessions outside of the cache",
    "sessions, limit, cache",
    "cache, limit, sessions",
    "sessions in a mount",
)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=ORDERS)
def app(request: pytest.FixtureRequest, shop: Shop, upstash: LocalUpstash) -> Any:
    order: str = request.param
    cache = Middleware(CacheMiddleware, cache=[RULE], redis=upstash)
    sessions = Middleware(SessionMiddleware, secret_key=SECRET, redis=upstash)
    limit = Middleware(UpstashMiddleware, default_limit="9999/hour", redis=upstash)
    if order == "sessions in a mount":
        mount = Mount("/", routes=shop.routes, middleware=[sessions])
        return Starlette(routes=[mount], middleware=[cache])
    both = Middleware(
        UpstashMiddleware,
        cache=[RULE],
        sessions={"secret_key": SECRET},
        redis=upstash,
        default_limit=None,
    )
    middleware = {
        "in one class": [both],
        "cache outside of sessions": [cache, sessions],
        "sessions outside of the cache": [sessions, cache],
        "sessions, limit, cache": [sessions, limit, cache],
        "cache, limit, sessions": [cache, limit, sessions],
    }
    return Starlette(routes=shop.routes, middleware=middleware[order])


@pytest.fixture
def ada(app: Any) -> TestClient:
    client = TestClient(app)
    client.get("/log_in?name=ada")
    return client


@pytest.mark.parametrize("path", ["/hello", "/late"])
def test_a_page_that_reads_the_session_is_shared_with_nobody(
    app: Any, ada: TestClient, path: str
) -> None:
    grace = TestClient(app)
    grace.get("/log_in?name=eve")
    assert [ada.get(path).text for _ in range(2)] == ["hello ada"] * 2
    assert grace.get(path).text == "hello eve"
    assert TestClient(app).get("/hello").text == "hello None"
    assert TestClient(app).get("/hello").text == "hello None"
    assert ada.get("/hello").text == "hello ada"


@pytest.mark.parametrize("path", ["/hello", "/late"])
def test_a_page_of_an_empty_session_is_stored_for_clients_without_its_cookie(
    app: Any, ada: TestClient, shop: Shop, path: str
) -> None:
    """If the head says that it depends on the cookie, where the cache decides about it."""
    pages = [TestClient(app).get(path) for _ in range(2)]
    assert [page.text for page in pages] == ["hello None"] * 2
    cookie = ada.cookies["session"]
    for cookies in (f"session={cookie}", f"a=1; session={cookie}", "session=", "session=other"):
        page = TestClient(app).get(path, headers={"cookie": cookies})
        assert page.text == ("hello ada" if cookie in cookies else "hello None")
        assert "; hit" not in page.headers["cache-status"]
        assert "stored" not in page.headers["cache-status"]
    rendered = shop.rendered
    assert TestClient(app).get(path).text == "hello None"
    if "; hit" in pages[1].headers["cache-status"]:
        assert path == "/hello"
        assert pages[1].headers["vary"] == "Cookie"
        assert shop.rendered == rendered


def test_it_varies_by_cookie_and_a_page_that_does_not_read_it_does_not(
    app: Any, ada: TestClient
) -> None:
    assert ada.get("/hello").headers["vary"] == "Cookie"
    assert "vary" not in ada.get("/plain").headers


def test_a_page_that_does_not_use_the_session_is_shared(app: Any, ada: TestClient) -> None:
    assert TestClient(app).get("/plain").text == "plain 1"
    assert ada.get("/plain").text == "plain 1"


def test_no_stored_response_sets_a_cookie(app: Any, shop: Shop) -> None:
    first = TestClient(app).get("/log_in?name=ada")
    second = TestClient(app).get("/log_in?name=ada")
    assert "set-cookie" in first.headers
    assert "set-cookie" in second.headers
    assert first.headers["set-cookie"] != second.headers["set-cookie"]


# --- In one class -------------------------------------------------------------------------------


def app_with(shop: Shop, upstash: LocalUpstash, **settings: Any) -> Any:
    app = Starlette(routes=shop.routes)
    sessions = {"sessions": {"secret_key": SECRET}, "default_limit": None, "redis": upstash}
    app.add_middleware(UpstashMiddleware, **{**sessions, **settings})
    return app


@pytest.mark.parametrize(
    ("rule", "is_stored"),
    [
        ({}, True),
        ({"vary_cookies": ()}, True),
        ({"ignore_cookies": ("theme",)}, True),
        ({"vary_cookies": ("theme",), "narrow_vary_cookie": True}, False),
    ],
)
def test_a_page_of_an_empty_session_is_stored_where_the_whole_cookie_field_selects_it(
    shop: Shop, upstash: LocalUpstash, rule: dict[str, Any], is_stored: bool
) -> None:
    app = app_with(shop, upstash, cache=[CacheRule("/hello", ttl=600, **rule)])
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    pages = [TestClient(app).get("/hello") for _ in range(2)]
    assert ("; hit" in pages[1].headers["cache-status"]) is is_stored
    assert ada.get("/hello").text == "hello ada"
    assert TestClient(app).get("/hello").text == "hello None"


def test_chosen_cookies_do_not_select_a_page_of_an_empty_session(
    shop: Shop, upstash: LocalUpstash
) -> None:
    """Sessions are inside the cache, which would give the page to those who have a session."""
    rule = CacheRule("/hello", ttl=600, vary_cookies=("theme",), narrow_vary_cookie=True)
    cache = Middleware(CacheMiddleware, cache=[rule], redis=upstash)
    sessions = Middleware(SessionMiddleware, secret_key=SECRET, redis=upstash)
    app = Starlette(routes=shop.routes, middleware=[cache, sessions])
    status = TestClient(app).get("/hello").headers["cache-status"]
    assert status.endswith('detail="it depends on the session"')
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    assert ada.get("/hello").text == "hello ada"


def test_a_page_that_ends_an_empty_session_is_not_stored(upstash: LocalUpstash) -> None:
    async def page(request: Request) -> Response:
        session(request).clear()
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/page", page)])
    sessions = {"secret_key": SECRET}
    app.add_middleware(
        UpstashMiddleware, sessions=sessions, cache=[RULE], redis=upstash, default_limit=None
    )
    for _ in range(2):
        assert "stored" not in TestClient(app).get("/page").headers["cache-status"]


def test_a_page_of_an_empty_session_is_revalidated_in_the_background_without_one(
    shop: Shop, upstash: LocalUpstash
) -> None:
    rule = CacheRule("/{rest:path}", ttl=60, stale_while_revalidate=600)
    with TestClient(app_with(shop, upstash, cache=[rule])) as client:
        client.get("/hello")
        upstash.advance(90)
        assert client.get("/hello").text == "hello None"  # stale
        client.get("/plain")
        status = client.get("/hello").headers["cache-status"]
        assert "; hit; ttl=" in status
        assert "ttl=-" not in status


def test_under_a_rule_by_user_a_page_that_reads_the_session_is_stored_for_the_user(
    shop: Shop, upstash: LocalUpstash
) -> None:
    rule = CacheRule(
        "/{rest:path}", ttl=600, user=lambda request: request.headers.get("x-user") or None
    )
    app = app_with(shop, upstash, cache=[rule])
    ada = TestClient(app, headers={"x-user": "ada"})
    ada.get("/log_in?name=ada")
    pages = [ada.get("/hello") for _ in range(2)]
    assert [page.text for page in pages] == ["hello ada"] * 2
    assert "; hit" in pages[1].headers["cache-status"]
    assert TestClient(app, headers={"x-user": "eve"}).get("/hello").text == "hello None"


def test_a_hit_with_a_session_cookie_neither_reads_nor_extends_the_session(
    shop: Shop, upstash: LocalUpstash
) -> None:
    app = app_with(shop, upstash, cache=[RULE])
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    TestClient(app).get("/plain")
    upstash.advance(300)
    response = ada.get("/plain")
    assert "; hit" in response.headers["cache-status"]
    assert "set-cookie" not in response.headers


def test_a_hit_in_memory_costs_no_command_despite_the_cookie(
    shop: Shop, upstash: LocalUpstash
) -> None:
    app = app_with(shop, upstash, cache=[RULE], cache_l1_seconds=60, cache_l1_bytes=1_000_000)
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    for _ in range(2):
        TestClient(app).get("/plain")
    upstash.reset_bill()
    assert "; hit" in ada.get("/plain").headers["cache-status"]
    assert upstash.bill().commands == 0


@pytest.mark.parametrize("order", [*ORDERS[:2], "cache, limit, sessions"])
def test_a_background_revalidation_has_no_session(
    shop: Shop, upstash: LocalUpstash, order: str
) -> None:
    """What it renders is not stored if it uses the session, and it creates none."""
    rule = CacheRule("/{rest:path}", ttl=60, stale_while_revalidate=600)
    pages: list[Any] = [
        lambda _request: "shared",
        lambda request: request.session.setdefault("name", "nobody"),
    ]

    async def page(request: Request) -> Response:
        shop.rendered += 1
        return PlainTextResponse(pages[0](request))

    app = Starlette(routes=[Route("/page", page), *shop.routes])
    if order == "in one class":
        app.add_middleware(
            UpstashMiddleware,
            cache=[rule],
            sessions={"secret_key": SECRET},
            redis=upstash,
            default_limit=None,
        )
    else:
        app.add_middleware(SessionMiddleware, secret_key=SECRET, redis=upstash)
        if "limit" in order:
            app.add_middleware(UpstashMiddleware, default_limit="9999/hour", redis=upstash)
        app.add_middleware(CacheMiddleware, cache=[rule], redis=upstash)
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    TestClient(app).get("/page")
    before = stored_keys(upstash)
    upstash.advance(90)
    pages.pop(0)
    assert ada.get("/page").text == "shared"  # stale; revalidated in the background
    assert shop.rendered == 2
    upstash.advance(30)
    assert TestClient(app).get("/page").text in {"shared", "nobody"}
    assert stored_keys(upstash) == before
    assert shop.rendered == 3  # the second one was not stored


def test_a_304_of_a_page_that_reads_the_session_is_not_stored_with_it(
    shop: Shop, upstash: LocalUpstash
) -> None:
    async def tagged(request: Request) -> Response:
        shop.rendered += 1
        if request.query_params.get("reads"):
            request.session.get("name")
        if request.headers.get("if-none-match") == '"1"':
            return Response(status_code=304, headers={"etag": '"1"'})
        return PlainTextResponse("page", headers={"etag": '"1"'})

    app = Starlette(routes=[Route("/tagged", tagged), *shop.routes])
    app.add_middleware(
        UpstashMiddleware,
        cache=[RULE],
        sessions={"secret_key": SECRET},
        redis=upstash,
        default_limit=None,
    )
    client = TestClient(app)
    client.get("/log_in?name=ada")
    for _ in range(2):
        assert client.get("/tagged?reads=1").text == "page"
    response = client.get("/tagged?reads=1", headers={"if-none-match": '"1"'})
    assert response.status_code == 304
    assert response.headers["vary"] == "Cookie"
    assert shop.rendered == 3


@pytest.mark.parametrize("name", ["user_hash", "new", "available"])
def test_a_page_that_depends_on_a_property_of_the_session_is_shared_with_nobody(
    upstash: LocalUpstash, name: str
) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{name} {getattr(request.scope['session'], name)}")

    shop = Shop()
    app = Starlette(routes=[Route("/page", page), *shop.routes])
    rule = CacheRule("/{rest:path}", ttl=600, vary_cookies=())
    sessions = {"secret_key": SECRET}
    app.add_middleware(
        UpstashMiddleware, cache=[rule], sessions=sessions, redis=upstash, default_limit=None
    )
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    assert ada.get("/page").headers["vary"] == "Cookie"
    assert "; hit" not in TestClient(app).get("/page").headers["cache-status"]


def test_to_ask_for_the_session_is_to_use_it(upstash: LocalUpstash) -> None:
    """``session(request)`` is ``request.session``, and says so in the same way."""

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{session(request)!r}")

    app = Starlette(routes=[Route("/", page)])
    app.add_middleware(SessionMiddleware, secret_key=SECRET, redis=upstash)
    assert TestClient(app).get("/").headers["vary"] == "Cookie"


@pytest.mark.parametrize("path", ["/page", "/loud"])
def test_no_stale_page_replaces_an_error_that_brings_a_new_id(
    upstash: LocalUpstash, path: str
) -> None:
    """The old id is worth nothing by then, so the browser would be logged out."""
    errors: list[int] = []

    async def page(request: Request) -> Response:
        if errors and request.url.path == "/page":
            session(request).regenerate()
        return PlainTextResponse("page", errors[0] if errors else 200)

    rule = CacheRule("/{rest:path}", ttl=1, stale_if_error=600, vary_cookies=())
    app = Starlette(routes=[Route("/page", page), Route("/loud", page), *Shop().routes])
    app.add_middleware(
        UpstashMiddleware,
        cache=[rule],
        sessions={"secret_key": SECRET},
        redis=upstash,
        default_limit=None,
    )
    ada = TestClient(app)
    ada.get("/log_in?name=ada")
    ada.get(path)
    upstash.advance(5)
    errors.append(500)
    response = ada.get(path)
    assert response.status_code == (500 if path == "/page" else 200)
    assert ("set-cookie" in response.headers) is (path == "/page")
    assert ada.get("/hello").text == "hello ada"


def test_no_stale_page_hides_the_exception_of_a_handler_that_has_saved_a_new_id(
    upstash: LocalUpstash,
) -> None:
    """The new cookie is lost with the response, which therefore must not look like a success."""
    fails: list[bool] = []

    async def page(request: Request) -> Response:
        if fails:
            session(request).regenerate()
            await session(request).save()
            raise RuntimeError
        return PlainTextResponse("page")

    rule = CacheRule("/{rest:path}", ttl=1, stale_if_error=600, vary_cookies=())
    app = Starlette(routes=[Route("/page", page), *Shop().routes])
    app.add_middleware(
        UpstashMiddleware,
        cache=[rule],
        sessions={"secret_key": SECRET},
        redis=upstash,
        default_limit=None,
    )
    ada = TestClient(app, raise_server_exceptions=False)
    ada.get("/log_in?name=ada")
    ada.get("/page")
    upstash.advance(5)
    fails.append(True)
    assert ada.get("/page").status_code == 500


def test_whoever_debugs_is_told_that_the_page_depends_on_the_session(upstash: LocalUpstash):
    """As Cache-Status says without the secret."""
    app = Starlette(routes=Shop().routes)
    secret = "d" * 32
    app.add_middleware(
        UpstashMiddleware,
        default_limit=None,
        sessions={"secret_key": SECRET},
        cache=[RULE],
        cache_debug=secret,
        redis=upstash,
    )
    with TestClient(app, base_url="https://shop.example") as client:
        client.get("/log_in?name=ada")
        assert 'detail="it depends on the session"' in client.get("/hello").headers["cache-status"]
        told = client.get("/hello", headers={"Upstash-Cache-Debug": secret}).headers
        explained = told["upstash-cache-debug"]
        assert 'not-stored="the response depends on the session; set user=' in explained
        assert "ignore_cookies" not in explained
