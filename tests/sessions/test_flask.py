"""Sessions in Flask: what a browser's requests find, what they send, and what they cost."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import flask
import pytest
from flask import Flask, Response, flash, get_flashed_messages, redirect, stream_with_context
from markupsafe import Markup

from upstash_middleware.errors import ConfigurationError, NotStorable
from upstash_middleware.events import SettingDoubted
from upstash_middleware.flask import (
    CacheMiddleware,
    RateLimitMiddleware,
    Sessions,
    UpstashMiddleware,
    runtimes_of,
    session,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient

    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash

LIMIT: dict[str, Any] = {"default_limit": "100000/hour"}
PAGES: dict[str, Any] = {"cache": [{"path": "/{rest:path}", "ttl": 60}]}


def shop() -> Flask:
    """Return an application whose views use the session in every way."""
    app = Flask("shop")
    app.secret_key = "a long random text of this application"
    app.testing = True

    @app.get("/plain")
    def plain() -> str:
        return "plain"

    @app.get("/show")
    def show() -> dict[str, Any]:
        return dict(session)

    @app.get("/log-in")
    def log_in() -> Any:
        session["user"] = "ada"
        session.bind("ada")
        return redirect("/show")

    @app.get("/put/<name>/<int:value>")
    def put(name: str, value: int) -> str:
        session[name] = value
        return "put"

    @app.get("/append/<int:value>")
    def append(value: int) -> str:
        session.setdefault("cart", []).append(value)
        return "appended"

    @app.get("/drop/<name>")
    def drop(name: str) -> str:
        return str(session.pop(name, None))

    @app.get("/call/<name>")
    def call(name: str) -> str:
        getattr(session, name)()
        return "called"

    @app.get("/log-out-everywhere")
    def log_out_everywhere() -> str:
        session.revoke_all("ada")
        return "bye"

    return app


def with_middleware_first(app: Flask, upstash: LocalUpstash) -> None:
    UpstashMiddleware(app, **LIMIT, **PAGES, redis=upstash)
    Sessions(app)


def with_sessions_first(app: Flask, upstash: LocalUpstash) -> None:
    Sessions(app)
    UpstashMiddleware(app, **LIMIT, **PAGES, redis=upstash)


def with_two_classes(app: Flask, upstash: LocalUpstash) -> None:
    CacheMiddleware(app, **PAGES, redis=upstash)
    Sessions(app, redis=upstash)
    RateLimitMiddleware(app, **LIMIT, redis=upstash)


def alone(app: Flask, upstash: LocalUpstash) -> None:
    Sessions(app, redis=upstash)


WAYS = (with_middleware_first, with_sessions_first, with_two_classes, alone)
Make = Any


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def app(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Flask:
    app = shop()
    request.param(app, upstash)
    return app


@pytest.fixture
def browser(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def alone_app(upstash: LocalUpstash) -> Flask:
    app = shop()
    alone(app, upstash)
    return app


def entries(browser: FlaskClient) -> Any:
    return browser.get("/show").json


def cookie_of(browser: FlaskClient, name: str = "session") -> Any:
    return browser.get_cookie(name)


# --- What browsers find -------------------------------------------------------------------------


def test_a_session_is_created_with_its_first_entry(browser: FlaskClient) -> None:
    assert "Set-Cookie" not in browser.get("/show").headers
    response = browser.get("/put/size/7")
    assert response.headers["Set-Cookie"].endswith("; HttpOnly; Path=/; SameSite=Lax")
    assert entries(browser) == {"size": 7}
    assert "Set-Cookie" not in browser.get("/put/size/8").headers


def test_a_change_within_an_entry_is_saved(browser: FlaskClient) -> None:
    for value in (1, 2, 3):
        browser.get(f"/append/{value}")
    assert entries(browser) == {"cart": [1, 2, 3]}


def test_a_response_that_used_the_session_varies_by_cookie(browser: FlaskClient) -> None:
    assert browser.get("/show").headers.getlist("Vary") == ["Cookie"]
    assert "Vary" not in browser.get("/plain").headers


def test_no_cache_may_send_the_cookie_of_one_client_to_another(
    app: Flask, browser: FlaskClient
) -> None:
    @app.get("/public")
    def public() -> Response:
        session["a"] = 1
        return Response("", headers={"Cache-Control": "public, max-age=60"})

    said = browser.get("/public").headers.getlist("Cache-Control")
    assert ", ".join(said) == 'public, max-age=60, no-cache="Set-Cookie"'
    assert browser.get("/public").headers["Cache-Control"] == "public, max-age=60"


def test_a_logout_ends_the_session_and_deletes_the_cookie(browser: FlaskClient) -> None:
    browser.get("/put/size/7")
    before = cookie_of(browser).value
    assert "Max-Age=0" in browser.get("/call/clear").headers["Set-Cookie"]
    assert cookie_of(browser) is None
    browser.set_cookie("session", before)
    assert entries(browser) == {}


def test_a_regenerated_session_keeps_its_entries_under_another_id(browser: FlaskClient) -> None:
    browser.get("/put/size/7")
    before = cookie_of(browser).value
    browser.get("/call/regenerate")
    after = cookie_of(browser).value
    assert after != before
    assert entries(browser) == {"size": 7}
    browser.set_cookie("session", before)
    assert entries(browser) == {}


def test_a_logout_everywhere_ends_the_sessions_of_other_browsers(app: Flask) -> None:
    here, there = app.test_client(), app.test_client()
    for browser in (here, there):
        browser.get("/log-in")
        assert entries(browser) == {"user": "ada"}
    here.get("/log-out-everywhere")
    assert entries(here) == entries(there) == {}


def test_an_unknown_id_is_not_adopted_and_its_cookie_not_deleted(browser: FlaskClient) -> None:
    browser.set_cookie("session", "A" * 43)
    assert "Set-Cookie" not in browser.get("/show").headers
    assert "A" * 43 not in browser.get("/put/size/7").headers["Set-Cookie"]


def test_a_hundred_logins_followed_by_a_redirect_are_all_logged_in(app: Flask) -> None:
    found = [app.test_client().get("/log-in", follow_redirects=True).json for _ in range(100)]
    assert found == [{"user": "ada"}] * 100


def test_flashed_messages_are_shown_once(app: Flask, browser: FlaskClient) -> None:
    def say() -> str:
        flash(Markup("<b>sold</b>"), "news")
        return "said"

    app.add_url_rule("/say", "say", view_func=say)
    app.add_url_rule(
        "/hear", "hear", view_func=lambda: repr(get_flashed_messages(with_categories=True))
    )
    browser.get("/say")
    assert browser.get("/hear").text == "[('news', Markup('<b>sold</b>'))]"
    assert browser.get("/hear").text == "[]"


def test_values_come_back_equal_and_of_the_same_type(app: Flask, browser: FlaskClient) -> None:
    values = {
        "tuple": (1, (2, "3")),
        "bytes": b"\xff",
        "markup": Markup("<i>"),
        "uuid": UUID(int=7),
        "time": datetime(2026, 1, 31, tzinfo=UTC),
        "dict": {"$markup": [1.5, None, True], " t": "no tag of Flask's"},
    }
    found: dict[str, Any] = {}
    app.add_url_rule("/keep", "keep", view_func=lambda: str(session.update(values)))
    app.add_url_rule("/find", "find", view_func=lambda: str(found.update(session)))
    browser.get("/keep")
    browser.get("/find")
    assert found == values
    assert [type(found[name]) for name in values] == [*map(type, values.values())]


def test_a_value_that_cannot_be_stored_is_an_error_before_the_response(
    app: Flask, browser: FlaskClient
) -> None:
    app.add_url_rule("/object", "object", view_func=lambda: str(session.update(size=object())))
    browser.get("/put/size/7")
    with pytest.raises(NotStorable, match=r"session\['size'\].*object"):
        browser.get("/object")
    app.testing = False
    assert browser.get("/object").status_code == 500
    assert entries(browser) == {"size": 7}


def test_a_session_above_its_size_is_an_error(upstash: LocalUpstash) -> None:
    app = shop()
    Sessions(app, max_size=100, redis=upstash)
    app.add_url_rule("/large", view_func=lambda: str(session.update(text="x" * 101)))
    with pytest.raises(NotStorable, match="max_size is 100"):
        app.test_client().get("/large")


def test_a_session_transaction_of_the_test_client_is_kept(browser: FlaskClient) -> None:
    with browser.session_transaction() as opened:
        opened["size"] = 7
    assert entries(browser) == {"size": 7}
    with browser.session_transaction() as opened:
        assert opened["size"] == 7
        del opened["size"]
    assert entries(browser) == {}


def test_sessions_are_as_usual_in_async_views(app: Flask, browser: FlaskClient) -> None:
    @app.get("/async")
    async def view() -> str:
        session["seen"] = session.get("seen", 0) + 1
        session.save()
        return str(session["seen"])

    assert [browser.get("/async").text for _ in range(3)] == ["1", "2", "3"]


def test_an_error_page_keeps_the_session(app: Flask, browser: FlaskClient) -> None:
    @app.get("/broken")
    def broken() -> str:
        session["tried"] = True
        raise ZeroDivisionError

    app.testing = False
    assert browser.get("/broken").status_code == 500
    assert entries(browser) == {"tried": True}


def test_a_denial_is_answered_by_handlers_that_use_the_session(upstash: LocalUpstash) -> None:
    app = shop()
    UpstashMiddleware(app, default_limit="1/hour", redis=upstash)
    Sessions(app)
    app.register_error_handler(429, lambda _: (f"slow down, {session['user']}", 429))
    browser = app.test_client()
    with browser.session_transaction() as opened:
        opened["user"] = "ada"
    browser.get("/plain")
    assert browser.get("/plain").text == "slow down, ada"


def test_another_application_reads_no_session_of_this_one(upstash: LocalUpstash) -> None:
    one, other = shop(), shop()
    other.secret_key = "another text"
    for app in (one, other):
        Sessions(app, redis=upstash)
    browser, stranger = one.test_client(), other.test_client()
    browser.get("/put/size/7")
    stranger.set_cookie("session", cookie_of(browser).value)
    assert entries(stranger) == {}


def test_a_replaced_secret_key_is_accepted_among_the_fallbacks(upstash: LocalUpstash) -> None:
    old, new = shop(), shop()
    old.secret_key = b"old"
    new.secret_key, new.config["SECRET_KEY_FALLBACKS"] = "new", ["older", "old"]
    for app in (old, new):
        Sessions(app, redis=upstash)
    before, after = old.test_client(), new.test_client()
    before.get("/put/size/7")
    after.set_cookie("session", cookie_of(before).value)
    assert entries(after) == {"size": 7}


# --- The cookie, and how long a session lasts ---------------------------------------------------


def test_the_cookie_has_the_settings_of_flask(upstash: LocalUpstash) -> None:
    app = shop()
    app.config.update(
        SESSION_COOKIE_NAME="basket",
        SESSION_COOKIE_DOMAIN="example.com",
        SESSION_COOKIE_PATH="/put",
        SESSION_COOKIE_HTTPONLY=False,
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="None",
        SESSION_COOKIE_PARTITIONED=True,
    )
    Sessions(app, redis=upstash)
    value = app.test_client().get("/put/size/7").headers["Set-Cookie"]
    assert value.startswith("__Secure-basket=")
    assert value.partition("; ")[2] == (
        "Domain=example.com; Secure; Path=/put; SameSite=None; Partitioned"
    )


def test_a_secure_cookie_is_for_this_host_alone(upstash: LocalUpstash) -> None:
    app = shop()
    app.config["SESSION_COOKIE_SECURE"] = True
    Sessions(app, redis=upstash)
    browser = app.test_client()
    assert browser.get("/put/size/7").headers["Set-Cookie"].startswith("__Host-session=")
    assert browser.get("/show", base_url="https://localhost").json == {"size": 7}


def test_only_a_permanent_session_outlives_the_browsers(app: Flask, browser: FlaskClient) -> None:
    @app.get("/remember/<int:whether>")
    def remember(whether: int) -> str:
        session.permanent = bool(whether)
        return "noted"

    assert "Max-Age" not in browser.get("/put/size/7").headers["Set-Cookie"]
    month = str(31 * 24 * 3600)
    assert f"Max-Age={month}" in browser.get("/remember/1").headers["Set-Cookie"]
    assert "Set-Cookie" not in browser.get("/remember/1").headers
    assert "Max-Age" not in browser.get("/remember/0").headers["Set-Cookie"]


def test_permanent_alone_makes_no_session(app: Flask, browser: FlaskClient) -> None:
    @app.before_request
    def remember() -> None:
        session.permanent = True

    assert "Set-Cookie" not in browser.get("/plain").headers
    assert "Max-Age" in browser.get("/put/size/7").headers["Set-Cookie"]
    assert "Max-Age=0" in browser.get("/call/clear").headers["Set-Cookie"]
    assert "Set-Cookie" not in browser.get("/plain").headers


@pytest.mark.parametrize("refreshes", [True, False])
def test_reading_a_session_extends_it_if_each_request_refreshes_it(
    upstash: LocalUpstash, refreshes: bool
) -> None:
    app = shop()
    app.config["SESSION_REFRESH_EACH_REQUEST"] = refreshes
    app.config["PERMANENT_SESSION_LIFETIME"] = timedelta(hours=10)
    Sessions(app, redis=upstash)
    browser = app.test_client()
    with browser.session_transaction() as opened:
        opened["size"], opened.permanent = 7, True
    found: Any = None
    for _ in range(3):
        upstash.advance(4 * 3600)
        found = entries(browser)
    assert found == ({"size": 7, "_permanent": True} if refreshes else {})


def test_a_session_is_extended_once_in_a_twentieth_of_its_lifetime(
    upstash: LocalUpstash,
) -> None:
    app = shop()
    app.config["PERMANENT_SESSION_LIFETIME"] = 20 * 3600
    Sessions(app, redis=upstash)
    browser = app.test_client()
    browser.get("/put/size/7")
    upstash.advance(1800)
    assert "Set-Cookie" not in browser.get("/show").headers
    upstash.advance(1900)
    assert "Set-Cookie" in browser.get("/show").headers


def test_a_session_ends_after_its_absolute_timeout(upstash: LocalUpstash) -> None:
    app = shop()
    Sessions(app, absolute_timeout="2 hours", redis=upstash)
    browser = app.test_client()
    browser.get("/put/size/7")
    upstash.advance(3600)
    assert entries(browser) == {"size": 7}
    upstash.advance(3601)
    assert entries(browser) == {}


# --- What it costs, and what caches do ----------------------------------------------------------


def cost(upstash: LocalUpstash, browser: FlaskClient, path: str) -> tuple[int, int]:
    upstash.reset_bill()
    assert browser.get(path, buffered=True).status_code < 400
    bill = upstash.bill()

    return bill.requests, bill.commands


@pytest.mark.parametrize("way", [with_middleware_first, with_sessions_first, with_two_classes])
def test_a_limit_a_session_and_a_hit_together_cost_one_round_trip_and_five_commands(
    upstash: LocalUpstash, way: Callable[[Flask, LocalUpstash], None]
) -> None:
    app = shop()
    way(app, upstash)
    browser = app.test_client()
    browser.get("/put/size/7")
    stranger = app.test_client()
    stranger.get("/plain", buffered=True)
    stranger.get("/plain", buffered=True)
    assert cost(upstash, browser, "/plain") == (1, 5)


def test_a_session_costs_what_the_budget_says(upstash: LocalUpstash) -> None:
    app = shop()
    RateLimitMiddleware(app, **LIMIT, redis=upstash)
    Sessions(app)
    browser = app.test_client()
    for path in ("/put/size/6", "/put/size/7"):  # each script is loaded once
        browser.get(path)
    assert cost(upstash, browser, "/show") == (1, 3 + 1)
    assert cost(upstash, browser, "/put/size/7") == (1, 3 + 1)  # it has not changed
    assert cost(upstash, browser, "/put/size/8") == (2, 3 + 1 + 3)
    assert cost(upstash, browser, "/call/regenerate") == (2, 3 + 1 + 4)
    assert cost(upstash, browser, "/call/clear") == (2, 3 + 1 + 1)
    assert cost(upstash, browser, "/show") == (1, 3)
    browser.get("/log-in")
    assert cost(upstash, browser, "/show") == (1, 3 + 2)


def test_without_middleware_a_request_that_uses_no_session_costs_nothing(
    alone_app: Flask, upstash: LocalUpstash
) -> None:
    browser = alone_app.test_client()
    browser.get("/put/size/7")
    assert cost(upstash, browser, "/plain") == (0, 0)
    assert cost(upstash, browser, "/show") == (1, 1)


def test_a_request_with_a_malformed_cookie_costs_nothing(
    alone_app: Flask, upstash: LocalUpstash
) -> None:
    browser = alone_app.test_client()
    browser.set_cookie("session", "eyJzaXplIjo3fQ.Zm9v.c2lnbmF0dXJl")
    assert cost(upstash, browser, "/show") == (0, 0)


@pytest.fixture(params=["by the middleware", "from another database's"])
def cached(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Flask:
    """An application with a cache, and sessions that this or a call of their own loads."""
    app = shop()
    UpstashMiddleware(app, **PAGES, redis=upstash)
    if request.param == "by the middleware":
        Sessions(app)
    else:
        Sessions(app, redis=upstash, transport="sockets")
    return app


def test_a_response_is_shared_only_if_its_view_did_not_use_the_session(cached: Flask) -> None:
    browser = cached.test_client()
    browser.get("/put/size/7")

    def status(path: str) -> str:
        return browser.get(path, buffered=True).headers["Cache-Status"]

    cached.test_client().get("/plain", buffered=True)
    assert "hit" in status("/plain")
    assert "it depends on the session" in status("/show")
    assert "it depends on the session" in status("/show")


def test_a_view_that_has_found_no_session_is_cached_for_visitors_without_one(cached: Flask) -> None:
    """Also where each request sets ``permanent``, as Flask's documentation shows."""

    @cached.before_request
    def make_permanent() -> None:
        session.permanent = True

    first, second = (cached.test_client().get("/show", buffered=True) for _ in range(2))
    assert "hit" in second.headers["Cache-Status"]
    assert second.headers["Vary"] == "Cookie"
    browser = cached.test_client()
    browser.get("/put/size/7")
    mine = browser.get("/show", buffered=True)
    assert "depends on the session" in mine.headers["Cache-Status"]
    assert mine.data != first.data
    assert cached.test_client().get("/show", buffered=True).data == first.data


def test_a_late_read_keeps_a_stream_from_being_stored(cached: Flask) -> None:
    @cached.get("/stream")
    def stream() -> Response:
        def body() -> Iterator[str]:
            yield "so far the same for all, "
            yield f"not any more: {session.get('size')}"

        return Response(stream_with_context(body()))

    assert cached.test_client().get("/stream").text.endswith("any more: None")
    assert "hit" not in cached.test_client().get("/stream").headers["Cache-Status"]


# --- Streams ------------------------------------------------------------------------------------


def add_stream(app: Flask) -> None:
    @app.get("/late/<int:value>")
    def late(value: int) -> Response:
        def body() -> Iterator[str]:
            yield "begun"
            session["late"] = value
            yield "done"

        return Response(stream_with_context(body()))


def test_what_changes_while_the_body_is_sent_is_saved_at_its_end(
    app: Flask, browser: FlaskClient
) -> None:
    add_stream(app)
    browser.get("/put/size/7")
    assert browser.get("/late/1").text == "begundone"
    assert entries(browser) == {"size": 7, "late": 1}


def test_a_late_change_creates_no_session(app: Flask, browser: FlaskClient) -> None:
    add_stream(app)
    assert browser.get("/late/1").text == "begundone"
    assert entries(browser) == {}


# --- Outages ------------------------------------------------------------------------------------


@contextmanager
def outage(app: Flask, upstash: LocalUpstash) -> Iterator[None]:
    """Have every connection refused, and the circuit breaker forget that afterwards."""
    upstash.set_faults(fault="refuse")
    yield
    upstash.set_faults()
    for runtime in (*runtimes_of(app), app.session_interface.ready(app).runtime):  # type: ignore[attr-defined]
        runtime.forget()


def test_an_outage_logs_nobody_out(app: Flask, browser: FlaskClient, upstash: LocalUpstash) -> None:
    browser.get("/put/size/7")
    with outage(app, upstash):
        for path in ("/show", "/put/size/8", "/append/1", "/drop/size"):
            response = browser.get(path)
            assert response.status_code == 200
            assert "Set-Cookie" not in response.headers
        assert browser.get("/show").json == {}
    assert entries(browser) == {"size": 7}


@pytest.mark.parametrize(
    "path", ["/log-in", "/call/clear", "/call/regenerate", "/log-out-everywhere"]
)
def test_during_an_outage_nobody_is_told_that_a_login_or_logout_happened(
    app: Flask, browser: FlaskClient, upstash: LocalUpstash, path: str
) -> None:
    browser.get("/put/size/7")
    with outage(app, upstash):
        response = browser.get(path)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert "Set-Cookie" not in response.headers
    assert response.json is not None
    assert entries(browser) == {"size": 7}


def test_a_browser_gets_a_page_that_says_so(
    app: Flask, browser: FlaskClient, upstash: LocalUpstash
) -> None:
    with outage(app, upstash):
        response = browser.get("/log-in", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (response.status_code, response.mimetype) == (503, "text/html")
    assert "The session cannot be changed at the moment." in response.text


def test_a_script_of_another_origin_can_read_that_a_login_did_not_happen(
    app: Flask, browser: FlaskClient, upstash: LocalUpstash
) -> None:
    @app.after_request
    def allow(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "https://other.example"
        response.headers["X-Greeting"] = "welcome, ada"
        return response

    browser.get("/put/size/7")
    with outage(app, upstash):
        response = browser.get("/log-in")
    assert response.status_code == 503
    assert response.headers["Access-Control-Allow-Origin"] == "https://other.example"
    assert "X-Greeting" not in response.headers


def test_a_plain_change_is_refused_during_an_outage_where_that_is_set(
    upstash: LocalUpstash,
) -> None:
    app = shop()
    Sessions(app, on_error="closed", redis=upstash)
    browser = app.test_client()
    browser.get("/put/size/7")
    with outage(app, upstash):
        assert browser.get("/put/size/8").status_code == 503
        assert browser.get("/show").status_code == 200
    assert entries(browser) == {"size": 7}


# --- Configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"SESSION_COOKIE_NAME": "a b"}, "SESSION_COOKIE_NAME: 'a b' should be a cookie's name"),
        ({"SESSION_COOKIE_SAMESITE": "loose"}, "SESSION_COOKIE_SAMESITE: 'loose' should be"),
        (
            {"SESSION_COOKIE_SAMESITE": "None"},
            "SESSION_COOKIE_SAMESITE: 'none' needs SESSION_COOKIE_SECURE=True",
        ),
        ({"SESSION_COOKIE_PARTITIONED": True}, "SESSION_COOKIE_PARTITIONED: True needs SESSION_"),
        ({"PERMANENT_SESSION_LIFETIME": 0}, "PERMANENT_SESSION_LIFETIME: 0"),
        ({"SECRET_KEY_FALLBACKS": [7]}, "SECRET_KEY, SECRET_KEY_FALLBACKS: should be text"),
        ({"UPSTASH_MIDDLEWARE": {"sessions": True}}, "sessions: .*give Sessions its fields"),
        ({"UPSTASH_MIDDLEWARE": {"prefx": "shop"}}, "UPSTASH_MIDDLEWARE.*prefx"),
    ],
)
def test_a_wrong_setting_is_an_error_at_startup_by_its_name(
    config: dict[str, Any], error: str
) -> None:
    app = shop()
    app.config.update(config)
    with pytest.raises(ConfigurationError, match=error):
        Sessions(app)


def test_a_lifetime_longer_than_the_absolute_timeout_is_an_error_unless_it_is_flasks_default() -> (
    None
):
    Sessions(shop(), absolute_timeout="8 hours")
    app = shop()
    app.config["PERMANENT_SESSION_LIFETIME"] = timedelta(days=2)
    with pytest.raises(
        ConfigurationError,
        match=r"PERMANENT_SESSION_LIFETIME: 172800.0 is longer than absolute_timeout='8 hours'",
    ):
        Sessions(app, absolute_timeout="8 hours")
    app.config["PERMANENT_SESSION_LIFETIME"] = timedelta(days=200)
    Sessions(app)


def test_a_wrong_argument_is_an_error_at_startup(upstash: LocalUpstash) -> None:
    with pytest.raises(ConfigurationError, match=r"Sessions\.on_error: 'maybe' should be"):
        Sessions(shop(), on_error="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"sessions: .*Sessions"):
        UpstashMiddleware(shop(), sessions=True, redis=upstash)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("secret_key", "set app.config['SECRET_KEY'] or app.config['SECRET_KEY_FALLBACKS']"),
        ("maxage", "set app.config['PERMANENT_SESSION_LIFETIME']"),
        ("max_sise", "did you mean 'max_size'?"),
        ("absolut_timeout", "did you mean 'absolute_timeout'?"),
        ("default_limit", "also add UpstashMiddleware(app, default_limit=…)"),
        ("cache", "also add UpstashMiddleware(app, cache=…)"),
    ],
)
def test_an_unknown_argument_is_an_error_with_what_to_write(name: str, hint: str) -> None:
    arguments: Any = {name: 3}
    with pytest.raises(ConfigurationError, match=rf"Sessions\.{name}: .*{re.escape(hint)}"):
        Sessions(shop(), **arguments)


def doubts(app: Flask, upstash: LocalUpstash) -> list[SettingDoubted]:
    events: list[Event] = []
    Sessions(app, redis=upstash, observers=[events.append])
    browser = app.test_client()
    for _ in range(2):
        browser.get("/put/size/7")
    return [event for event in events if isinstance(event, SettingDoubted)]


def test_left_over_settings_of_flask_session_are_reported_once(upstash: LocalUpstash) -> None:
    app = shop()
    assert doubts(app, upstash) == []
    app = shop()
    app.config.update(SESSION_TYPE="redis", SESSION_USE_SIGNER=True, SESSION_COOKIE_PATH="/")
    (doubt,) = doubts(app, upstash)
    assert doubt.where == "SESSION_TYPE, SESSION_USE_SIGNER"
    assert "Flask-Session" in doubt.advice


def test_an_application_without_a_secret_key_is_told_of_flasks(upstash: LocalUpstash) -> None:
    app = shop()
    app.secret_key = None
    (doubt,) = doubts(app, upstash)
    assert doubt.where == "SECRET_KEY"


def test_sessions_are_installed_once(upstash: LocalUpstash) -> None:
    app = shop()
    sessions = Sessions(app, redis=upstash)
    with pytest.raises(ConfigurationError, match="already installed in 'shop'"):
        sessions.init_app(app)


def test_requests_to_other_paths_have_no_session(upstash: LocalUpstash) -> None:
    app = shop()
    Sessions(app, paths=["/put/{rest:path}"], redis=upstash)
    browser = app.test_client()
    assert browser.get("/put/size/7").status_code == 200
    assert entries(browser) == {}
    with pytest.raises(RuntimeError, match="'/call/clear' matches none of the paths"):
        browser.get("/call/clear")


@pytest.mark.parametrize("where", ["Sessions", "the middleware"])
def test_a_disabled_middleware_leaves_flasks_own_sessions(
    where: str, upstash: LocalUpstash
) -> None:
    app = shop()
    if where == "Sessions":
        Sessions(app, enabled=False)
    else:
        Sessions(app)
        UpstashMiddleware(app, enabled=False)
    browser = app.test_client()
    upstash.reset_bill()
    browser.get("/put/size/7")
    assert entries(browser) == {"size": 7}
    assert upstash.bill().requests == 0


def test_the_session_is_flasks(alone_app: Flask) -> None:
    with alone_app.test_request_context():
        assert flask.session._get_current_object() is session._get_current_object()  # type: ignore[attr-defined]
        assert isinstance(flask.session._get_current_object(), flask.sessions.SessionMixin)  # type: ignore[attr-defined]
        assert flask.session.new
        assert not flask.session.modified


def test_a_login_whose_session_was_ended_meanwhile_stores_all_that_it_has_set(
    app: Flask, browser: FlaskClient
) -> None:
    old: list[str] = []

    @app.get("/log-in-again")
    def log_in_again() -> str:
        assert session["cart"] == 7
        with ThreadPoolExecutor(1) as pool:
            other = app.test_client()
            other.set_cookie("session", old[0])
            pool.submit(other.get, "/call/clear").result()
        session["user"] = "ada"
        session.regenerate()
        return "welcome"

    browser.get("/put/cart/7")
    browser.get("/log-in")
    old.append(cookie_of(browser).value)
    assert browser.get("/log-in-again").text == "welcome"
    assert entries(browser) == {"user": "ada"}
