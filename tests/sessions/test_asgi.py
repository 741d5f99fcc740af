"""Sessions in Starlette: what a browser's requests find, and what they send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.starlette import SessionMiddleware, UpstashMiddleware, session

if TYPE_CHECKING:
    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

SECRET = "a long random text of this application"


async def log_in(request: Request) -> Response:
    request.session["user"] = "ada"
    request.session["cart"] = [1]
    session(request).bind("ada")
    return PlainTextResponse("welcome")


async def add(request: Request) -> Response:
    request.session["cart"].append(2)
    return PlainTextResponse("added")


def show(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def log_out(request: Request) -> Response:
    request.session.clear()
    return PlainTextResponse("bye")


async def log_out_everywhere(request: Request) -> Response:
    session(request).revoke_all("ada")
    return PlainTextResponse("bye")


async def plain(_request: Request) -> Response:
    return PlainTextResponse("plain")


ENDPOINTS = (log_in, add, show, log_out, log_out_everywhere, plain)


@pytest.fixture(params=["in one class with limits", "in a class of its own"])
def app(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Starlette:
    app = Starlette(routes=[Route(f"/{each.__name__}", each) for each in ENDPOINTS])
    if request.param == "in a class of its own":
        app.add_middleware(SessionMiddleware, secret_key=SECRET, redis=upstash)
    else:
        sessions = {"secret_key": SECRET}
        app.add_middleware(
            UpstashMiddleware, default_limit="1000/minute", sessions=sessions, redis=upstash
        )
    return app


@pytest.fixture
def browser(app: Starlette) -> TestClient:
    return TestClient(app)


def entries(browser: TestClient) -> Any:
    return browser.get("/show").json()


def test_a_session_is_created_with_its_first_entry(browser: TestClient) -> None:
    assert "set-cookie" not in browser.get("/show").headers
    response = browser.get("/log_in")
    assert response.headers["set-cookie"].endswith("HttpOnly; SameSite=Lax")
    assert entries(browser) == {"user": "ada", "cart": [1]}


def test_a_change_within_an_entry_is_saved(browser: TestClient) -> None:
    browser.get("/log_in")
    browser.get("/add")
    assert entries(browser)["cart"] == [1, 2]


def test_a_response_that_used_the_session_varies_by_cookie(browser: TestClient) -> None:
    assert browser.get("/show").headers["vary"] == "Cookie"
    assert "vary" not in browser.get("/plain").headers


def test_a_logout_ends_the_session_and_deletes_the_cookie(browser: TestClient) -> None:
    browser.get("/log_in")
    before = dict(browser.cookies)
    assert "Max-Age=0" in browser.get("/log_out").headers["set-cookie"]
    assert entries(TestClient(browser.app, cookies=before)) == {}


def test_a_logout_everywhere_ends_the_sessions_of_other_browsers(app: Starlette) -> None:
    here, there = TestClient(app), TestClient(app)
    here.get("/log_in")
    there.get("/log_in")
    here.get("/log_out_everywhere")
    assert entries(here) == entries(there) == {}


def test_a_request_without_a_session_is_told_why_there_is_none(upstash: LocalUpstash) -> None:
    async def show_own(request: Request) -> Response:
        return JSONResponse(dict(session(request)))

    def served_by(middleware: Any, **arguments: Any) -> TestClient:
        app = Starlette(routes=[Route("/", show_own)])
        app.add_middleware(middleware, **arguments)
        return TestClient(app)

    with pytest.raises(LookupError, match=r"its paths= does not include '/'"):
        served_by(SessionMiddleware, redis=upstash, paths=["/account"]).get("/")
    with pytest.raises(LookupError, match=r"starlette\..* is not this package's"):
        served_by(StarlettesMiddleware, secret_key=SECRET).get("/")


def test_a_middleware_with_nothing_to_do_names_sessions_too() -> None:
    with pytest.raises(ConfigurationError, match=r"nor sessions: .* or sessions=True"):
        UpstashMiddleware(plain, sessions=False)  # type: ignore[arg-type]


def test_an_unknown_id_is_not_adopted(app: Starlette) -> None:
    thief = TestClient(app, cookies={"session": "A" * 43})
    response = thief.get("/log_in")
    assert "A" * 43 not in response.headers["set-cookie"]
