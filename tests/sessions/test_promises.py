"""What the pages promise of sessions: at rest, in an outage, and in overlapping requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import valkey
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware import NotStorable
from upstash_middleware.starlette import SessionMiddleware, session

if TYPE_CHECKING:
    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

DAY = 24 * 3600


async def put(request: Request) -> Response:
    request.session[request.path_params["name"]] = request.query_params.get("value", "")
    return PlainTextResponse("stored")


async def log_in(request: Request) -> Response:
    request.session["user"] = "ada@example.org"
    session(request).bind("ada@example.org")
    return PlainTextResponse("welcome")


async def log_out(request: Request) -> Response:
    request.session.clear()
    return PlainTextResponse("bye")


async def log_out_everywhere(request: Request) -> Response:
    session(request).revoke_all("ada@example.org")
    return PlainTextResponse("bye")


async def show(request: Request) -> Response:
    return PlainTextResponse(" ".join(sorted(request.session)))


async def put_object(request: Request) -> Response:
    request.session["object"] = object()
    return PlainTextResponse("stored")


def application(upstash: LocalUpstash, **settings: Any) -> Starlette:
    endpoints = (log_in, log_out, log_out_everywhere, show, put_object)
    routes = [Route(f"/{each.__name__}", each) for each in endpoints]
    app = Starlette(routes=[*routes, Route("/put/{name}", put)])
    arguments = {"secret_key": "a long random text", "redis": upstash, **settings}
    app.add_middleware(SessionMiddleware, **arguments)
    return app


def everything_on_redis(upstash: LocalUpstash) -> bytes:
    with valkey.Valkey.from_url(upstash.redis_url) as store:
        keys = store.keys("*session*")
        assert keys
        assert all(store.pttl(key) > 0 for key in keys)
        hashes = [key for key in keys if store.type(key) == b"hash"]
        texts = [key for key in keys if key not in hashes]
        found = [*keys, *(store.get(key) for key in texts)]
        for key in hashes:
            found += [part for pair in store.hgetall(key).items() for part in pair]
    return b"\n".join(found)


def test_who_reads_the_database_learns_no_id_and_no_user(upstash: LocalUpstash) -> None:
    browser = TestClient(application(upstash))
    browser.get("/log_in")
    browser.get("/put/user?value=")
    id_, _, user_hash = browser.cookies["session"].partition(".")
    stored = everything_on_redis(upstash)
    assert id_.encode() not in stored
    assert b"ada" not in stored
    assert user_hash.encode() in stored


def test_encrypted_entries_cannot_be_read(upstash: LocalUpstash) -> None:
    app = application(upstash, cache_keys=["a key of 32 characters and more.."], cache_encrypt=True)
    browser = TestClient(app)
    browser.get("/put/card?value=4111111111111111")
    assert browser.get("/show").text == "card"
    assert b"4111111111111111" not in everything_on_redis(upstash)


@pytest.mark.parametrize("fault", ["bad-gateway", "refuse", "unauthorized", "truncate"])
def test_an_outage_logs_nobody_out_and_confirms_no_login_and_no_logout(
    upstash: LocalUpstash, fault: str
) -> None:
    browser = TestClient(application(upstash, breaker=False))
    browser.get("/log_in")
    cookies = dict(browser.cookies)
    with upstash.faults(fault=fault):
        seen = browser.get("/show"), browser.get("/put/a")
        certain = (
            browser.get("/log_in"),
            browser.get("/log_out"),
            browser.get("/log_out_everywhere"),
        )
    assert [answer.status_code for answer in seen] == [200, 200]
    assert [answer.status_code for answer in certain] == [503, 503, 503]
    assert not any("set-cookie" in answer.headers for answer in (*seen, *certain))
    assert all(int(answer.headers["retry-after"]) > 0 for answer in certain)
    assert TestClient(browser.app, cookies=cookies).get("/show").text == "user"


def test_overlapping_requests_that_change_different_entries_lose_nothing(
    upstash: LocalUpstash,
) -> None:
    app = application(upstash)
    browser = TestClient(app)
    browser.get("/put/first")

    async def overlap() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://testserver",
            cookies=dict(browser.cookies),
        ) as client:
            await asyncio.gather(*(client.get(f"/put/e{number}") for number in range(20)))

    asyncio.run(overlap())
    assert len(browser.get("/show").text.split()) == 21


def test_a_session_that_is_used_lasts_and_one_that_is_not_ends(upstash: LocalUpstash) -> None:
    app = application(upstash, idle_timeout="2 days", absolute_timeout="5 days")
    used, unused = TestClient(app), TestClient(app)
    for browser in (used, unused):
        browser.get("/put/a")
    for _ in range(4):
        upstash.advance(DAY)
        assert used.get("/show").text == "a"
    assert unused.get("/show").text == ""
    upstash.advance(DAY)
    assert used.get("/show").text == "", "the absolute timeout ends it, however much it is used"


def test_a_new_secret_key_before_the_old_one_logs_nobody_out(upstash: LocalUpstash) -> None:
    browser = TestClient(application(upstash, secret_key="the old key of this application"))
    browser.get("/put/a")
    cookies = dict(browser.cookies)

    def seen(*keys: str) -> str:
        return TestClient(application(upstash, secret_key=keys), cookies=cookies).get("/show").text

    assert (
        seen("the new key of this application", "the old key of this application"),
        seen("the new key of this application"),
    ) == ("a", "")


def test_what_cannot_be_stored_is_refused_with_what_to_write(upstash: LocalUpstash) -> None:
    browser = TestClient(application(upstash, max_size=1000))
    with pytest.raises(NotStorable, match=r"session\['object'\]"):
        browser.get("/put_object")
    with pytest.raises(NotStorable, match=r"max_size is 1000; the largest entry is 'a'"):
        browser.get(f"/put/a?value={'x' * 1000}")
    assert browser.get("/show").text == ""


def test_over_https_no_other_host_can_set_the_cookie(upstash: LocalUpstash) -> None:
    browser = TestClient(application(upstash, https_only=True), base_url="https://testserver")
    field = browser.get("/put/a").headers["set-cookie"]
    assert field.startswith("__Host-session=")
    assert {"HttpOnly", "SameSite=lax", "Secure", "Path=/"} <= {
        part.replace("Lax", "lax") for part in field.split("; ")
    }
