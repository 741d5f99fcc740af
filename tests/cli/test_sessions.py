"""``sessions``: which there are, what is in them, and ending them."""

from __future__ import annotations

import importlib
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient
from upstash_redis import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Call
    from upstash_middleware.local import LocalUpstash

    Browser = Callable[[str], TestClient]

APP = """
from datetime import date

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from upstash_middleware.starlette import UpstashMiddleware, session


async def log_in(request):
    request.session["cart"] = [7]
    request.session["born"] = date(1815, 12, 10)
    session(request).bind(request.path_params["user"])
    return PlainTextResponse("welcome")


async def visit(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return PlainTextResponse("welcome")


async def show(request):
    return JSONResponse(list(request.session))


app = Starlette(routes=[Route("/log_in/{user}", log_in), Route("/", visit), Route("/show", show)])
app.add_middleware(
    UpstashMiddleware, sessions={"secret_key": "a long random text"}, prefix="shop", SETTINGS
)
"""
KEY = "shop:session:"


@pytest.fixture
def app(module: Callable[[str], str]) -> str:
    """Return the import path of an application with sessions."""
    return f"{module(APP.replace('SETTINGS', 'default_limit=None'))}:app"


@pytest.fixture
def sessions(call: Call, app: str) -> Callable[..., Any]:
    """Call a command of the group about the application, and return its answer in JSON."""

    def run(name: str, *words: str) -> Any:
        return call("sessions", name, "--app", app, "--json", *words).data

    return run


@pytest.fixture
def browser() -> Iterator[Callable[[str], TestClient]]:
    """Return what makes another browser of an application, which is shut down at the end."""
    with ExitStack() as running:
        yield lambda app: running.enter_context(
            TestClient(importlib.import_module(app.partition(":")[0]).app)
        )


def test_sessions_are_listed_with_the_oldest_first(
    sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    browser(app).get("/log_in/ada")
    upstash.advance(3600)
    browser(app).get("/")
    data = sessions("list")
    bound, new = data["sessions"]
    assert data["count"] == 2
    assert (bound["user"] is None, new["user"]) == (False, None)
    assert new["created"] - bound["created"] == pytest.approx(3600, abs=60)
    assert new["expires_in"] == pytest.approx(14 * 86_400, abs=60)
    assert bound["key"].startswith(KEY)


def test_sessions_are_selected_by_their_user_and_their_age(
    sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    browser(app).get("/log_in/ada")
    upstash.advance(7200)
    browser(app).get("/log_in/ada")
    browser(app).get("/log_in/bob")
    assert sessions("list", "--user", "ada")["count"] == 2
    assert sessions("list", "--user", "bob")["count"] == 1
    assert sessions("list", "--user", "eve")["count"] == 0
    assert sessions("list", "--older", "2h")["count"] == 1
    assert sessions("list", "--older", "3 hours")["count"] == 0
    first = sessions("list", "--limit", "1")
    (oldest,) = sessions("list", "--older", "2h")["sessions"]
    assert (first["count"], [each["key"] for each in first["sessions"]]) == (3, [oldest["key"]])


def test_a_list_says_what_it_cost(
    sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    """DBSIZE, SCAN, two commands for each session, and one for the users' epochs."""
    browser(app).get("/log_in/ada")
    browser(app).get("/")
    upstash.reset_bill()
    assert sessions("list")["billed_commands"] == upstash.bill().commands == 7


def test_a_database_of_more_than_ten_thousand_keys_is_read_only_if_that_is_confirmed(
    call: Call, app: str, upstash: LocalUpstash
) -> None:
    """On a terminal it is a question; in a script, an option."""
    with Redis.from_env() as redis:
        redis.mset({f"other:{number}": "1" for number in range(10_001)})
    upstash.reset_bill()
    refused = call("sessions", "list", "--app", app)
    assert (refused.code, upstash.bill().commands) == (2, 1)
    assert "10001 keys: listing takes up to 20045 commands" in refused.err
    assert "--yes" in refused.err
    assert call("sessions", "list", "--app", app, "--yes").code == 0
    upstash.reset_bill()
    assert call("sessions", "list", "--app", app, typed="n\n").code == 1
    assert upstash.bill().commands == 1
    assert call("sessions", "list", "--app", app, typed="y\n").code == 0


def test_a_session_is_shown_with_its_entries_and_its_values_only_where_they_are_asked_for(
    call: Call, sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    browser(app).get("/log_in/ada")
    (listed,) = sessions("list")["sessions"]
    shown = call("sessions", "show", listed["key"], "--app", app)
    assert (shown.code, "1815" in shown.out) == (0, False)
    assert "born   date" in shown.out
    assert "datetime.date(1815, 12, 10)" in (
        call("sessions", "show", listed["key"], "--values", "--app", app).out
    )
    data = sessions("show", "--values", "--", listed["key"].removeprefix(KEY))
    assert data["valid"]
    assert data["entries"] == [
        {"name": "born", "type": "date", "size": 22, "value": {"$date": "1815-12-10"}},
        {"name": "cart", "type": "list", "size": 3, "value": [7]},
    ]


def test_no_answer_contains_a_sessions_id(
    call: Call, sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    """What a command prints is not enough to use a session."""
    client = browser(app)
    client.get("/log_in/ada")
    cookie = client.cookies["session"]
    (listed,) = sessions("list")["sessions"]
    answers = [
        call("sessions", *words, "--app", app, *how, *rest)
        for words, rest in (
            (("list",), ()),
            (("show", "--values"), (listed["key"],)),
            (("show",), ("--", cookie)),
            (("end",), ("--", cookie)),
        )
        for how in ((), ("--json",))
    ]
    secret = cookie.partition(".")[0]
    assert all(secret not in each.out + each.err for each in answers)


def test_a_session_that_is_ended_is_gone(
    sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    client, other = browser(app), browser(app)
    client.get("/")
    other.get("/")
    first, second = (each["key"] for each in sessions("list")["sessions"])
    assert sessions("end", first, second, first) == {
        "ended": [first, second],
        "gone": 0,
        "billed_commands": 2,
    }
    assert client.get("/show").json() == other.get("/show").json() == []
    assert sessions("end", first)["gone"] == 1
    assert sessions("show", first)["found"] is False


def test_all_sessions_of_a_user_are_ended_with_one_command(
    call: Call, sessions: Callable[..., Any], app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    """They are on Redis until they expire, and count as over."""
    here, there, other = browser(app), browser(app), browser(app)
    here.get("/log_in/ada")
    there.get("/log_in/ada")
    other.get("/log_in/bob")
    key = sessions("list", "--user", "ada")["sessions"][0]["key"]
    upstash.reset_bill()
    assert sessions("end", "--user", "ada")["ended"] is True
    assert upstash.bill().commands == 1
    assert here.get("/show").json() == there.get("/show").json() == []
    assert sorted(other.get("/show").json()) == ["born", "cart"]
    listed = sessions("list")
    assert (listed["count"], listed["over"]) == (1, 2)
    assert sessions("show", key)["valid"] is False
    assert "its user's sessions were ended" in call("sessions", "show", key, "--app", app).out
    assert sessions("end", "--user", "ada")["ended"] is False


def test_sessions_under_a_prefix_are_listed_without_their_application(
    call: Call, app: str, browser: Browser, upstash: LocalUpstash
) -> None:
    """The hash of a user needs its secret; keys and ages do not."""
    browser(app).get("/log_in/ada")
    (listed,) = call("sessions", "list", "--prefix", "shop", "--json").data["sessions"]
    shown = call("sessions", "show", listed["key"], "--prefix", "shop", "--json").data
    assert [each["name"] for each in shown["entries"]] == ["born", "cart"]


FLASK = """
from datetime import date

from flask import Flask
from upstash_middleware.flask import Sessions, session

app = Flask("shop", static_folder=None)
app.secret_key = "a long random text"


@app.get("/log_in/<user>")
def log_in(user):
    session["born"] = date(1815, 12, 10)
    session.bind(user)
    return "welcome"


@app.get("/show")
def show():
    return list(session)


Sessions(app, prefix="shop")
"""


def test_flask_s_sessions_are_those_of_its_interface(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """With Flask's SECRET_KEY, and without a middleware."""
    name = module(FLASK)
    client = importlib.import_module(name).app.test_client()
    client.get("/log_in/ada")
    app = ("--app", f"{name}:app", "--json")
    (listed,) = call("sessions", "list", "--user", "ada", *app).data["sessions"]
    shown = call("sessions", "show", listed["key"], "--values", *app).data
    assert shown["entries"][0]["value"] == {"$date": "1815-12-10"}
    assert call("sessions", "end", "--user", "ada", *app).data["ended"] is True
    assert client.get("/show").json == []


def test_sealed_sessions_are_read_with_the_applications_keys(
    call: Call, module: Callable[[str], str], browser: Browser, upstash: LocalUpstash
) -> None:
    settings = f"default_limit=None, cache_keys=[{'k' * 32!r}], cache_encrypt=True"
    app = f"{module(APP.replace('SETTINGS', settings))}:app"
    browser(app).get("/log_in/ada")
    (listed,) = call("sessions", "list", "--app", app, "--json").data["sessions"]
    shown = call("sessions", "show", listed["key"], "--values", "--app", app, "--json").data
    assert [each["value"] for each in shown["entries"]] == [{"$date": "1815-12-10"}, [7]]
    without = call("sessions", "list", "--prefix", "shop", "--json").data
    assert (without["count"], without["unreadable"]) == (0, 1)
    assert call("sessions", "show", listed["key"], "--prefix", "shop").code == 1


def test_what_is_no_session_is_counted_and_not_read(
    sessions: Callable[..., Any], app: str, upstash: LocalUpstash
) -> None:
    with Redis.from_env() as redis:
        redis.set(f"{KEY}{'a' * 43}", "text")
        redis.hset(f"{KEY}{'b' * 43}", "field", "value")
        redis.hset(f"{KEY}{'c' * 43}", ".", "\n[1,2,3]")
    data = sessions("list")
    assert (data["count"], data["unreadable"]) == (0, 3)
    assert "cannot be read" in sessions("show", "b" * 43)["why"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("list", "--older", "old"), "write an age such as '30 days' or 12h"),
        (("show", "shop:session-user:abc"), "this is not the key of a session under shop"),
        (("end", "other:session:" + "a" * 43), "this is not the key of a session under shop"),
        (("end",), "name what to end: keys of sessions, or --user ID"),
        (("end", "a" * 43, "--user", "ada"), "name what to end: keys of sessions, or --user ID"),
    ],
)
def test_a_wrong_command_line_says_what_would_be_right(
    call: Call, app: str, upstash: LocalUpstash, words: tuple[str, ...], says: str
) -> None:
    told = call("sessions", *words, "--app", app, "--json")
    assert (told.code, told.data["error"]["kind"]) == (2, "usage")
    assert says in told.data["error"]["message"]


def test_an_application_without_sessions_is_told(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    told = call(
        "sessions", "list", "--app", f"{module('SETTINGS = dict(default_limit=None)')}:SETTINGS"
    )
    assert (told.code, "keeps no sessions on Upstash" in told.err) == (2, True)


def test_a_token_that_may_not_scan_is_told(
    call: Call, app: str, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", upstash.read_only_token)
    told = call("sessions", "list", "--app", app, "--json")
    assert (told.code, json.loads(told.out)["error"]["kind"]) == (5, "refused")
