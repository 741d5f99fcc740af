"""Overlapping requests of one session in Flask, in threads, against a model."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, request
from werkzeug.http import parse_cookie
from werkzeug.test import create_environ, run_wsgi_app

from tests.sessions.overlapping import Done, Plan, after
from upstash_middleware.flask import RateLimitMiddleware, Sessions, session

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

INTERLEAVINGS = 1000
AT_ONCE = 8
"""How many are carried out at the same time, each with its own session."""
NAMES = "abc"
PLAN = "shop.plan"


@pytest.fixture(params=["loaded by the middleware", "loaded when it is used"])
def app(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Flask:
    app = Flask("shop")
    app.secret_key = "a long random text of this application"
    app.testing = True
    Sessions(app, redis=upstash)
    if request.param == "loaded by the middleware":
        RateLimitMiddleware(app, default_limit="10000000/hour", redis=upstash)
    app.add_url_rule("/act", view_func=act)
    app.add_url_rule("/show", view_func=lambda: dict(session))
    return app


def act() -> list[Any]:
    plan: Plan = request.environ[PLAN]
    was_new = session.new
    if plan.loaded is not None:
        plan.loaded.wait()
    let_others_run(plan.pauses[0])
    if plan.ending:
        getattr(session, plan.ending)()
    deleted = [name for name in plan.deletes if session.pop(name, None) is not None]
    session.update(plan.sets)
    let_others_run(plan.pauses[1])
    return [was_new, deleted]


def let_others_run(turns: int) -> None:
    for _ in range(turns):
        time.sleep(0)


def get(app: Flask, path: str, cookie: str, plan: Plan | None = None) -> tuple[str | None, Any]:
    """Return the cookie that the response sets, if any, and its body."""
    environ = create_environ(path, headers={"Cookie": f"session={cookie}"} if cookie else {})
    environ[PLAN] = plan
    body, _, headers = run_wsgi_app(app, environ, buffered=True)
    field = headers.get("Set-Cookie")
    given = None if field is None else parse_cookie(field.partition(";")[0]).get("session", "")
    return given, app.json.loads(b"".join(body))


def random_plan(chance: random.Random, numbers: Any, loaded: Barrier | None) -> Plan:
    names = chance.sample(NAMES, k=len(NAMES))
    sets = {name: next(numbers) for name in names[: chance.randrange(3)]}
    deletes = [name for name in names[len(sets) :] if chance.random() < 0.4]
    ending = chance.choice(["", "", "", "regenerate", "clear"])
    return Plan(sets, deletes, ending, (chance.randrange(4), chance.randrange(4)), loaded)


def test_no_interleaving_loses_an_entry_or_brings_a_session_back(app: Flask) -> None:
    with ThreadPoolExecutor(AT_ONCE) as drivers, ThreadPoolExecutor(3 * AT_ONCE) as threads:
        seeds = range(INTERLEAVINGS // 2)
        for wrong in drivers.map(lambda seed: interleave(app, seed, threads), seeds):
            assert not wrong


def interleave(app: Flask, seed: int, threads: ThreadPoolExecutor) -> str:
    """Send overlapping requests of one session; return what is wrong with what they leave."""
    chance, numbers = random.Random(seed), iter(range(1, 100))
    start = Plan({name: next(numbers) for name in NAMES[:2]}, [], "", (0, 0), None)
    sent, _ = get(app, "/act", "", start)
    assert sent
    count = chance.choice([2, 2, 3])
    loaded = chance.choice([None, Barrier(count)])
    plans = [random_plan(chance, numbers, loaded) for _ in range(count)]
    begun = [threads.submit(get, app, "/act", sent, plan) for plan in plans]
    done = []
    for plan, each in zip(plans, begun, strict=True):
        cookie, (was_new, deleted) = each.result()
        done.append(Done(plan, was_new, deleted, cookie))
    ids = [sent, *(each.cookie for each in done if each.cookie)]
    found = {id_: entries for id_ in ids if (entries := get(app, "/show", id_)[1])}
    for order in permutations(done):
        left = after({sent: start.sets}, sent, order)
        if found == {id_: entries for id_, entries in left.items() if entries}:
            return ""
    return f"seed {seed}: {done} left {found}"
