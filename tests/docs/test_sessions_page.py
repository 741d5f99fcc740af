"""What docs/sessions.md says that sessions cost is what the local Upstash bills."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.docs.pages import ROOT
from upstash_middleware import CacheRule
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

PAGE = ROOT / "docs" / "sessions.md"
DAY = 24 * 3600


async def do(request: Request) -> Response:
    """Do with the session what the path says."""
    kept = request.scope["session"]
    match request.path_params["what"]:
        case "read":
            kept.get("a")
        case "write":
            kept["a"] = kept.get("a", 0) + 1
        case "delete":
            del kept["a"]
        case "both":
            kept["b"] = kept.pop("a", 0)
        case "bind":
            kept.bind(7)
        case "revoke-all":
            kept.revoke_all(7)
        case "nothing":
            pass
        case method:
            getattr(kept, method)()
    return PlainTextResponse("done")


@pytest.fixture
def browser(upstash: LocalUpstash) -> Iterator[TestClient]:
    app = Starlette(routes=[Route("/{what}", do)])
    app.add_middleware(
        UpstashMiddleware,
        default_limit="1000/minute",
        cache=[CacheRule("/nothing", ttl=60)],
        sessions={"secret_key": "a long random text"},
        redis=upstash,
    )
    with TestClient(app) as client:
        for what in ("write", "regenerate", "bind", "both"):  # it sends scripts, and the time
            client.get(what)
        client.cookies.clear()
        yield client


class Meter:
    """Requests of a browser, and what each costs besides its limit: round trips and commands."""

    def __init__(self, browser: TestClient, upstash: LocalUpstash) -> None:
        self.browser = browser
        self.upstash = upstash

    def cost(self, what: str) -> tuple[int, int]:
        self.upstash.reset_bill()
        assert self.browser.get(what).status_code == 200
        bill = self.upstash.bill()
        return bill.requests - 1, bill.commands - 3


def shown(row: str) -> tuple[str, str]:
    """Return the round trips and commands in the row of the page that begins with this."""
    text = PAGE.read_text().partition("## What it costs")[2].partition("\n## ")[0]
    found = re.search(rf"^\| {re.escape(row)}[^|]* \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    assert found is not None, row
    return found[1], found[2]


def test_a_session_costs_what_the_page_says(browser: TestClient, upstash: LocalUpstash) -> None:
    meter = Meter(browser, upstash)

    assert meter.cost("read") == (0, 0)
    browser.cookies.set("session", "malformed")
    assert meter.cost("read") == (0, 0)
    browser.cookies.clear()
    assert shown("a request without the cookie") == ("+0", "0")

    assert meter.cost("write") == (1, 3)
    assert shown("the first entry") == ("+1", "3")
    assert meter.cost("read") == (0, 1)
    assert shown("a session that is read") == ("+0", "1")

    assert meter.cost("write") == (1, 1 + 3)
    assert meter.cost("both") == (1, 1 + 4)
    meter.cost("write")
    assert meter.cost("delete") == (1, 1 + 3)
    assert shown("entries changed, or deleted; both") == ("+1", "3; 4")

    upstash.advance(DAY)
    TestClient(browser.app).get("read")  # which asks for the time, as one request in an hour does
    assert meter.cost("read") == (1, 1 + 3)
    assert shown("the idle timeout extended") == ("+1", "3")

    assert meter.cost("regenerate") == (1, 1 + 4)
    assert meter.cost("bind") == (1, 1 + 6)
    assert shown("`regenerate()`; `bind(user)`") == ("+1", "4; 6")
    assert meter.cost("read") == (0, 2)
    assert shown("… of a session bound to a user") == ("+0", "2")

    assert meter.cost("revoke-all") == (1, 2 + 1)
    meter.cost("write")
    assert meter.cost("clear") == (1, 1 + 1)
    assert shown("`clear()`; `revoke_all(user)`") == ("+1", "1")


def test_a_limit_a_session_and_a_hit_take_one_round_trip_and_five_commands(
    browser: TestClient, upstash: LocalUpstash
) -> None:
    TestClient(browser.app).get("nothing")  # by a visitor without a session
    browser.get("write")
    upstash.reset_bill()
    assert "; hit;" in browser.get("nothing").headers["cache-status"]
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 5)
    assert "one round trip and five commands" in " ".join(PAGE.read_text().split())
