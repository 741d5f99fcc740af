"""The play: what is asked of an example, and what its answers should be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import httpx

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from examples.demo.servers import Server
    from examples.demo.transcript import Transcript
    from upstash_middleware.local import LocalUpstash

LIMIT = 10
_WINDOW_SECONDS = 10
_BURST_SECONDS = 7
_BUSY = 200
_SETTLED_SECONDS = 0.06


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took of Upstash."""

    round_trips: int
    commands: int

    def __str__(self) -> str:
        trips = f"{self.round_trips} round trip{'' if self.round_trips == 1 else 's'}"
        return f"{trips}, {self.commands} billed"


class Stage:
    """An example under play: sends requests and tells what each cost."""

    def __init__(self, url: str, upstash: LocalUpstash) -> None:
        self._client = httpx.Client(base_url=url, timeout=10)
        self._upstash = upstash

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self, method: str, path: str, *, if_none_match: str = "", json: object = None
    ) -> tuple[httpx.Response, Cost]:
        """Send one request, wait until what follows the response has settled, and count."""
        self._upstash.reset_bill()
        headers = {"if-none-match": if_none_match} if if_none_match else {}
        response = self._client.request(method, path, headers=headers, json=json)
        return response, self._settled_cost()

    def ask_often(self, path: str, count: int) -> tuple[list[httpx.Response], Cost]:
        """Send requests one after the other, and count what all of them took."""
        self._upstash.reset_bill()
        responses = [self._client.get(path) for _ in range(count)]
        return responses, self._settled_cost()

    def outage(self) -> AbstractContextManager[None]:
        """Have Upstash refuse connections for the length of a ``with`` block."""
        return self._upstash.faults(fault="refuse")

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that have been set."""
        return dict(self._client.cookies)

    @cookies.setter
    def cookies(self, cookies: dict[str, str]) -> None:
        self._client.cookies = httpx.Cookies(cookies)

    def _settled_cost(self) -> Cost:
        bill = self._upstash.bill()
        while True:
            time.sleep(_SETTLED_SECONDS)
            later = self._upstash.bill()
            if later == bill:
                return Cost(bill.requests, bill.commands)
            bill = later


def play(server: Server, upstash: LocalUpstash, transcript: Transcript) -> None:
    """Play all acts against one example."""
    with Stage(server.url, upstash) as stage:
        _limit(stage, transcript)
        _lease(stage, transcript)
        _cache(stage, transcript)
        _data(stage, transcript)
    with Stage(server.url, upstash) as stage:
        _session(stage, server, transcript)


def _limit(stage: Stage, transcript: Transcript) -> None:
    transcript.act("POST /api/generate: 10 requests per 10 s and client address")
    left = _WINDOW_SECONDS - time.time() % _WINDOW_SECONDS
    if left < _BURST_SECONDS:  # the window would end within these requests
        time.sleep(left)
    for number in range(1, LIMIT + 1):
        response, cost = stage.ask("POST", "/api/generate")
        remaining = response.headers.get("x-ratelimit-remaining")
        transcript.step(
            f"request {number}",
            f"{response.status_code}, remaining {remaining}",
            cost,
            right=response.status_code == 200 and remaining == str(LIMIT - number),
            should=f"200, remaining {LIMIT - number}",
        )
    response, cost = stage.ask("POST", "/api/generate")
    wait = response.headers.get("retry-after", "")
    transcript.step(
        "request 11",
        f"{response.status_code}, Retry-After {wait}",
        cost,
        right=response.status_code == 429 and wait.isdigit() and 1 <= int(wait) <= 20,
        should="429 with a Retry-After of some seconds",
    )
    seconds = int(wait) if wait.isdigit() else 0
    transcript.wait(seconds)
    response, cost = stage.ask("POST", "/api/generate")
    transcript.step(
        f"after {seconds} s",
        f"{response.status_code}, remaining {response.headers.get('x-ratelimit-remaining')}",
        cost,
        right=response.status_code == 200,
        should="200",
    )


def _lease(stage: Stage, transcript: Transcript) -> None:
    transcript.act("GET /: 1000 requests per minute, of which the process reserves some ahead")
    for name in ("200 requests", "200 more"):
        responses, cost = stage.ask_often("/", _BUSY)
        remaining = responses[-1].headers.get("x-ratelimit-remaining", "")
        statuses = {response.status_code for response in responses}
        transcript.step(
            name,
            f"{', '.join(map(str, statuses))}, remaining {remaining}",
            cost,
            right=statuses == {200} and cost.round_trips <= _BUSY / 5,
            should=f"200, with {_BUSY // 5} round trips at most",
        )


def _cache(stage: Stage, transcript: Transcript) -> None:
    transcript.act("GET /catalogue/tea: a page that is cached, and purged when it is edited")
    first = _page(stage, transcript, "first time", "fwd=uri-miss; stored", None)
    time.sleep(1.1)
    _page(stage, transcript, "a second later", "hit", first)
    response, cost = stage.ask("GET", "/catalogue/tea", if_none_match=first.headers.get("etag", ""))
    transcript.step(
        "with its ETag",
        f"{response.status_code}, {len(response.content)} bytes",
        cost,
        right=response.status_code == 304 and not response.content,
        should="304 without a body",
    )
    response, cost = stage.ask("PUT", "/catalogue/tea", json={"price": 5.5})
    transcript.step(
        "edited", f"{response.status_code}", cost, right=response.status_code == 204, should="204"
    )
    second = _page(stage, transcript, "after that", "stored", None)
    transcript.step(
        "the page",
        "is the edited one" if "5.5" in second.text else "is not the edited one",
        None,
        right="5.5" in second.text and second.text != first.text,
        should="the edited one",
    )


def _page(
    stage: Stage,
    transcript: Transcript,
    name: str,
    cache_status: str,
    same_as: httpx.Response | None,
) -> httpx.Response:
    """Ask for the page; a hit must have an Age and be the same as it was."""
    response, cost = stage.ask("GET", "/catalogue/tea")
    status = response.headers.get("cache-status", "no Cache-Status")
    age = response.headers.get("age")
    transcript.step(
        name,
        f"{response.status_code}, {status}" + (f", Age {age}" if age else ""),
        cost,
        right=response.status_code == 200
        and cache_status in status
        and (same_as is None or (response.text == same_as.text and int(age or 0) >= 1)),
        should=f"200, Cache-Status with {cache_status}" + (", Age 1 or more" if same_as else ""),
    )
    return response


def _data(stage: Stage, transcript: Transcript) -> None:
    transcript.act("GET /cheapest: a value that is calculated once until a price changes")

    def step(name: str, calculation: int) -> None:
        response, cost = stage.ask("GET", "/cheapest")
        got = response.json().get("calculation") if response.status_code == 200 else None
        transcript.step(
            name,
            f"{response.status_code}, calculation {got}",
            cost,
            right=got == calculation,
            should=f"200, calculation {calculation}",
        )

    step("first time", 1)
    step("again", 1)
    stage.ask("PUT", "/catalogue/tea", json={"price": 3.5})
    step("after an edit", 2)


def _session(stage: Stage, server: Server, transcript: Transcript) -> None:
    transcript.act("POST /login: a login that outlives a restart and an outage")

    def step(name: str, method: str, path: str, status: int, text: str = "") -> None:
        body = {"name": "ada"} if path == "/login" else None
        response, cost = stage.ask(method, path, json=body)
        sets = "set-cookie" in response.headers
        should_set = status == 204
        transcript.step(
            name,
            f"{method} {path}: {response.status_code}{', Set-Cookie' if sets else ''}",
            cost,
            right=response.status_code == status and sets == should_set and text in response.text,
            should=f"{status} {text}, {'with' if should_set else 'without'} Set-Cookie",
        )

    step("not logged in", "GET", "/account", 401)
    step("logs in", "POST", "/login", 204)
    step("is logged in", "GET", "/account", 200, '"ada"')
    server.restart()
    step("after a restart", "GET", "/account", 200, '"ada"')
    with stage.outage():
        step("Upstash is down", "GET", "/account", 503)
        step("cannot log out", "POST", "/logout", 503)
    step("Upstash is up", "GET", "/account", 200, '"ada"')
    cookies = stage.cookies
    step("logs out", "POST", "/logout", 204)
    stage.cookies = cookies
    step("a copied cookie", "GET", "/account", 401)
