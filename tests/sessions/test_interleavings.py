"""Overlapping requests of one session in Starlette, and logins that are followed at once."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import permutations
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.sessions.overlapping import Done, Plan, after
from tests.sessions.site import SECRET
from upstash_middleware.starlette import SessionMiddleware, session

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

INTERLEAVINGS = 1000
NAMES = "abc"


class Client:
    """Calls an application without a server; it has each head the moment it is sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def get(
        self,
        path: str,
        cookie: str,
        *,
        plan: Plan | None = None,
        on_head: Callable[[str | None, str], Any] | None = None,
    ) -> tuple[str | None, Any]:
        """Return the cookie that the response sets, if any, and its body."""
        given, body = None, b""

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            nonlocal given, body
            body += message.get("body", b"")
            if message["type"] == "http.response.start":
                fields = dict(message["headers"])
                if b"set-cookie" in fields:
                    given = fields[b"set-cookie"].decode().partition("=")[2].partition(";")[0]
                if on_head is not None:
                    await on_head(given, fields.get(b"location", b"").decode())

        fields = [(b"host", b"shop.example")]
        if cookie:
            fields.append((b"cookie", f"session={cookie}".encode()))
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": fields,
            "plan": plan,
        }
        await self._app(scope, receive, send)
        return given, json.loads(body) if body else None


async def act(request: Request) -> Response:
    plan: Plan = request.scope["plan"]
    own = session(request)
    was_new = own.new
    for _ in range(plan.pauses[0]):
        await asyncio.sleep(0)
    if plan.ending == "clear":
        own.clear()
    elif plan.ending:
        own.regenerate()
    deleted = [name for name in plan.deletes if own.pop(name, None) is not None]
    own.update(plan.sets)
    for _ in range(plan.pauses[1]):
        await asyncio.sleep(0)
    return JSONResponse([was_new, deleted])


async def show(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def log_in(request: Request) -> Response:
    request.session["user"] = "ada"
    session(request).bind("ada")
    return RedirectResponse("/show", 303)


def app(upstash: LocalUpstash) -> Any:
    starlette = Starlette(routes=[Route(f"/{each.__name__}", each) for each in (act, show, log_in)])
    return SessionMiddleware(starlette, secret_key=SECRET, redis=upstash, deadline=20.0)


def random_plan(chance: random.Random, numbers: Any) -> Plan:
    names = chance.sample(NAMES, k=len(NAMES))
    sets = {name: next(numbers) for name in names[: chance.randrange(3)]}
    deletes = [name for name in names[len(sets) :] if chance.random() < 0.4]
    ending = chance.choice(["", "", "", "regenerate", "clear"])
    return Plan(sets, deletes, ending, (chance.randrange(30), chance.randrange(30)))


async def interleave(client: Client, chance: random.Random) -> None:
    numbers = iter(range(1, 100))
    start = Plan({name: next(numbers) for name in NAMES[:2]}, [], "", (0, 0))
    sent, _ = await client.get("/act", "", plan=start)
    assert sent is not None
    plans = [random_plan(chance, numbers) for _ in range(chance.choice([2, 2, 3]))]

    async def run(plan: Plan) -> Done:
        for _ in range(chance.randrange(40)):
            await asyncio.sleep(0)
        cookie, (was_new, deleted) = await client.get("/act", sent, plan=plan)
        return Done(plan, was_new, deleted, cookie)

    done = await asyncio.gather(*map(run, plans))
    ids = [sent, *(each.cookie for each in done if each.cookie)]
    shown = await asyncio.gather(*(client.get("/show", id_) for id_ in ids))
    found = {id_: entries for id_, (_, entries) in zip(ids, shown, strict=True) if entries}
    possible = [
        {id_: entries for id_, entries in after({sent: start.sets}, sent, order).items() if entries}
        for order in permutations(done)
    ]
    assert found in possible, (done, found, possible)


def test_no_interleaving_loses_an_entry_or_brings_a_session_back(upstash: LocalUpstash) -> None:
    chance = random.Random(7)
    client = Client(app(upstash))

    async def run() -> None:
        for _ in range(INTERLEAVINGS // 25):
            await asyncio.gather(*(interleave(client, chance) for _ in range(25)))

    asyncio.run(run())


def test_a_hundred_logins_that_are_followed_at_once_are_all_logged_in(
    upstash: LocalUpstash,
) -> None:
    """The browser follows the redirect as soon as it has the head."""
    client = Client(app(upstash))
    users: list[str | None] = []

    async def follow(cookie: str | None, location: str) -> None:
        _, entries = await client.get(location, cookie or "")
        users.append(entries.get("user"))

    async def run() -> None:
        for _ in range(100):
            await client.get("/log_in", "", on_head=follow)

    asyncio.run(run())
    assert users == ["ada"] * 100
