"""``cache warm``: applications are started in this process, and their pages stored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import warm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Call
    from upstash_middleware.local import LocalUpstash

ORIGIN = "http://shop.example"
ASGI = """
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from upstash_middleware import CacheRule
from upstash_middleware.starlette import CacheMiddleware

events = []
problem = ""


@asynccontextmanager
async def lifespan(app):
    if problem:
        raise RuntimeError(problem)
    events.append("started")
    yield {"shelf": "A"}
    events.append("stopped")


async def page(request):
    if request.path_params["id"] == "slow":
        await anyio.sleep(60)
    return PlainTextResponse(f"shelf {request.state.shelf}", headers={"Vary": "Accept-Language"})


app = Starlette(routes=[Route("/products/{id}", page)], lifespan=lifespan)
app.add_middleware(CacheMiddleware, cache=[CacheRule("/products/{id}", ttl=60)])
"""
WSGI = """
import time

from flask import Flask

from upstash_middleware import CacheRule
from upstash_middleware.flask import CacheMiddleware

app = Flask("shop")
CacheMiddleware(app, cache=[CacheRule("/products/{id}", ttl=60)])


@app.get("/products/<id>")
def page(id):
    def slowly():
        for _ in range(4):
            time.sleep(0.1)
            yield "page"

    return slowly() if id == "slow" else "page"
"""


@pytest.fixture(params=[ASGI, WSGI], ids=["asgi", "wsgi"])
def name(request: pytest.FixtureRequest, module: Callable[[str], str]) -> str:
    """Return the module of an application."""
    return module(request.param)


def test_pages_are_stored_and_reported(
    call: Call, name: str, tmp_path: Path, upstash: LocalUpstash
) -> None:
    """From arguments and from a file; what was not stored is an exit code of 1, and says why."""
    urls = tmp_path / "urls.txt"
    urls.write_text(f"{ORIGIN}/products/2\n\n{ORIGIN}/about\n")
    command = ("cache", "warm", f"{ORIGIN}/products/1", "--app", f"{name}:app")
    assert call(*command).code == 0
    told = call(*command, "--file", str(urls), "--json")
    assert told.code == 1
    assert [(each["url"], each["outcome"]) for each in told.data["warmed"]] == [
        (f"{ORIGIN}/products/1", "hit"),
        (f"{ORIGIN}/products/2", "stored"),
        (f"{ORIGIN}/about", "not stored"),
    ]
    shown = call(*command, "--file", str(urls))
    assert "2 of 3 are stored" in shown.out
    assert "no cache rule covers it" in shown.out
    explained = call("cache", "explain", f"{ORIGIN}/products/2", "--app", f"{name}:app")
    assert explained.code == 0


def test_urls_are_read_from_standard_input(
    call: Call, name: str, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a sitemap by another program."""
    command = ("cache", "warm", "--file", "-", "--app", f"{name}:app")
    assert call(*command, typed=f"{ORIGIN}/products/1\n").code == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "name what to warm"),
        (("/products/1",), "give the whole URL"),
        (("--file", "/nowhere"), "cannot be read"),
        ((f"{ORIGIN}/products/1", "-H", "x"), "write 'Name: value'"),
    ],
)
def test_a_wrong_command_line_says_what_is_right(
    call: Call, name: str, upstash: LocalUpstash, words: tuple[str, ...], problem: str
) -> None:
    """Before anything is rendered."""
    told = call("cache", "warm", *words, "--app", f"{name}:app")
    assert told.code == 2
    assert problem in told.err


def test_without_an_application_there_is_nothing_to_render(
    call: Call, upstash: LocalUpstash
) -> None:
    """The prefix alone is not enough."""
    told = call("cache", "warm", f"{ORIGIN}/products/1")
    assert told.code == 2
    assert "--app" in told.err


def test_the_lifespan_of_an_asgi_application_runs_around_it(
    call: Call, module: Callable[[str], str], upstash: LocalUpstash
) -> None:
    """Its handlers find the state that it has set; one that cannot start is an error."""
    name = module(ASGI)
    command = ("cache", "warm", f"{ORIGIN}/products/1", "-H", "Accept-Language: de")
    assert call(*command, "--app", f"{name}:app").code == 0
    shop: Any = importlib.import_module(name)
    assert shop.events == ["started", "stopped"]
    shop.problem = "no shelf"
    told = call(*command, "--app", f"{name}:app")
    assert told.code == 3
    assert "no shelf" in told.err


def test_a_response_that_takes_too_long_has_failed(name: str, upstash: LocalUpstash) -> None:
    """And keeps no other from being stored."""
    app = importlib.import_module(name).app
    urls = [f"{ORIGIN}/products/{each}" for each in ("slow", "1")]
    slow, stored = warm(app, urls, deadline=0.2)
    assert (slow.outcome, "no whole response within 0.2 s" in slow.why) == ("failed", True)
    assert stored.outcome == "stored"
