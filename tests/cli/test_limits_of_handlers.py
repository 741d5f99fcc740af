"""``limits list|peek|top|reset|set``: rules, limits of handlers, and limiters in code alike."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
from flask.testing import FlaskClient
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Call
    from upstash_middleware.local import LocalUpstash

WHO = "203.0.113.7"

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from upstash_middleware import Limiter, RateLimitRule, SyncLimiter
from upstash_middleware.starlette import UpstashMiddleware, limit


@limit("log 3/h", deadline=20)
@limit("log 9/day", deadline=20)
async def tea(request):
    await messages.hit("ada", 2)
    return PlainTextResponse("tea")


rules = [RateLimitRule("/cake", "2/h", name="cakes", dynamic=True)]
app = Starlette(routes=[Route("/tea", tea)])
app.add_middleware(UpstashMiddleware, rate_limits=rules, default_limit="log 99/h", deadline=20)
messages = Limiter("log 5/h", name="messages", app=app)
jobs = SyncLimiter("log 7/h", name="jobs", prefix="jobs", deadline=20)
"""

FASTAPI = """
from fastapi import Depends, FastAPI
from upstash_middleware.fastapi import limit

app = FastAPI(dependencies=[Depends(limit("log 9/h", name="all", deadline=20))])

@app.get("/tea", dependencies=[Depends(limit("log 3/h", deadline=20))])
async def tea():
    return "tea"
"""

FLASK = """
from flask import Flask
from upstash_middleware.flask import limit

app = Flask("shop", static_folder=None)

@app.get("/tea")
@limit("log 3/h", deadline=20)
def tea():
    return "tea"

@app.get("/all")
@limit("log 9/h", name="all", deadline=20)
def all():
    return "all"
"""


def test_all_limits_are_listed_and_reached_by_the_names_that_keys_have(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """Which are those of decisions, also where two limits stand in front of one handler."""
    name = module(STARLETTE)
    app = f"{name}:app"
    with TestClient(importlib.import_module(name).app, client=(WHO, 1)) as client:
        assert client.get("/tea").status_code == 200
    listed = call("limits", "list", "--app", app, "--json").data["limits"]
    found = {one["name"]: (one["limits"], one["where"]) for one in listed}
    expected = {
        "cakes": ("2/h", "rate_limits[0]"),
        "default": ("log 99/h", "default_limit"),
        f"{name}.tea": ("log 3/h", "/tea"),
        f"{name}.tea 2": ("log 9/day", "/tea"),
        "messages": ("log 5/h", "code"),
        "jobs": ("log 7/h", "code"),
    }
    assert expected.items() <= found.items()  # other tests of this process have limiters, too
    for limit, who, remaining in (
        ("default", WHO, 98),
        (f"{name}.tea", WHO, 2),
        (f"{name}.tea 2", WHO, 8),
        ("messages", "ada", 3),
        ("jobs", "ada", 7),
    ):
        peeked = call("limits", "peek", limit, who, "--app", app, "--json").data["rules"]
        assert [one["remaining"] for one in peeked] == [remaining], limit
    assert call("limits", "reset", f"{name}.tea", WHO, "--app", app).code == 0
    (peeked,) = call("limits", "peek", f"{name}.tea", WHO, "--app", app, "--json").data["rules"]
    assert peeked["remaining"] == 3


@pytest.mark.parametrize("text", [FASTAPI, FLASK], ids=["fastapi", "flask"])
def test_limits_without_a_middleware_are_found_too(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash, text: str
) -> None:
    """In the database that the environment names."""
    name = module(text)
    app = importlib.import_module(name).app
    client = app.test_client() if text is FLASK else TestClient(app, client=(WHO, 1))
    who = "127.0.0.1" if isinstance(client, FlaskClient) else WHO
    client.get("/tea")
    listed = call("limits", "list", "--app", f"{name}:app", "--json").data["limits"]
    assert [one["name"] for one in listed if one["where"] != "code"] == (
        [f"{name}.tea", "all"] if text is FLASK else ["all", f"{name}.tea"]
    )
    told = call("limits", "peek", f"{name}.tea", who, "--app", f"{name}:app", "--json").data
    assert [one["remaining"] for one in told["rules"]] == [2]


def test_a_limit_is_changed_and_changed_back(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    app = f"{module(STARLETTE)}:app"

    def quota() -> Any:
        (one,) = call("limits", "peek", "cakes", WHO, "--app", app, "--json").data["rules"]
        return one["limit"]

    def changed_to() -> Any:
        listed = call("limits", "list", "--app", app, "--json").data["limits"]
        return next(one["changed_to"] for one in listed if one["name"] == "cakes")

    assert "notice within 60 s" in call("limits", "set", "cakes", "5", "--app", app).out
    assert (quota(), changed_to()) == (5, 5)
    assert call("limits", "set", "cakes", "default", "--app", app).code == 0
    assert (quota(), changed_to()) == (2, None)
    for words, says in (
        (("cakes", "many"), "write a whole number from 0, or 'default'"),
        (("default", "5"), "create it with dynamic=True"),
    ):
        wrong = call("limits", "set", *words, "--app", app)
        assert (wrong.code, says in wrong.err) == (2, True)


LEASED = {
    "starlette": STARLETTE.replace('"log 3/h"', '"log 3/h lease 2s"'),
    "fastapi": FASTAPI.replace('"log 3/h"', '"log 3/h", lease="2s"'),
    "flask": FLASK.replace('"log 3/h"', '"log 3/h", lease={"seconds": 2}'),
}


@pytest.mark.parametrize("framework", LEASED)
def test_a_limit_in_front_of_a_handler_has_its_own_lease(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash, framework: str
) -> None:
    app = f"{module(LEASED[framework])}:app"
    listed = call("limits", "list", "--app", app, "--json").data["limits"]
    leases = {one["limits"]: one["lease"] for one in listed if one["where"] == "/tea"}
    assert leases["log 3/h"] == {"seconds": 2, "share": 0.1, "from_rate": None}


def test_who_has_used_most_comes_first(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """Of those who have used anything, by name, with what is left."""
    name = module(STARLETTE)
    jobs = importlib.import_module(name).jobs
    for who, units in (("ada", 2), ("bob", 7), ("eve", 3), ("1:*", 1)):
        jobs.hit(who, units)
    words = ("limits", "top", "jobs", "--app", f"{name}:app")
    told = call(*words, "--count", "3", "--json").data
    assert told["count"] == 4
    assert [(one["identifier"], one["used"], one["remaining"]) for one in told["top"]] == [
        ("id=bob", 7, 0),
        ("id=eve", 3, 4),
        ("id=ada", 2, 5),
    ]
    shown = call(*words)
    assert "4 identifiers have used 'jobs'; " in shown.out
    assert "id=1%3A%2A" in shown.out or "id=1%3A*" in shown.out


def test_a_limiter_is_named_in_place_of_an_application(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """In a worker there may be none."""
    name = module(
        "from upstash_middleware import SyncLimiter\n"
        "mails = SyncLimiter('log 7/h', name='mails', deadline=20)\n"
    )
    told = call("limits", "peek", "mails", "ada", "--app", f"{name}:mails", "--json").data
    assert [one["remaining"] for one in told["rules"]] == [7]


def test_limiters_of_another_application_are_not_listed(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """Under this one's prefix their keys would be others."""
    other = importlib.import_module(module(STARLETTE))
    app = f"{module(FASTAPI)}:app"
    listed = call("limits", "list", "--app", app, "--json").data["limits"]
    names = [one["name"] for one in listed]
    assert other.messages.name not in names
    assert other.jobs.name in names, "it names its database itself"
