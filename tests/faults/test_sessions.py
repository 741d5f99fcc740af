"""Every fault while a session is loaded, and while it is saved, in Starlette.

An outage logs nobody out: no response sets or deletes a cookie, and once all is well again the
session is there, unless the database has lost it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.matrix import FAULTS, SHORT, Change, Fault, Operation, Outcome, expected, fails
from tests.faults.test_matrix import PATIENCE, World, check_log, check_time, log_lines, world
from tests.sessions.site import Browser, Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.local import LocalUpstash

__all__ = ["world"]

LONELY = {Change.FLUSH, Change.WRONG_TYPE}


@pytest.fixture
def member(world: World, upstash: LocalUpstash) -> Callable[..., Browser]:
    """Return a browser with a session, of a site that waits."""

    def make() -> Browser:
        browser = site_over(upstash, world, deadline=PATIENCE).browser()
        browser.sets(cart=[1])
        browser.sets(seen=True)  # the scripts are known from here on
        return browser

    return make


def site_over(upstash: LocalUpstash, world: World, **settings: Any) -> Site:
    """Return a site that uses sockets, and that a failure leaves as it is."""
    address = {"url": upstash.url, "token": upstash.token}
    return Site(upstash, prefix=world.prefix, breaker=False, **address, **settings)


def beside(browser: Browser, world: World, **settings: Any) -> Browser:
    """Return the same browser on a site with these settings."""
    other = site_over(browser.site.upstash, world, **settings).browser()
    other.client.cookies.set("session", browser.cookie or "", domain="shop.example")
    return other


def state_of(session: Any) -> str:
    if not session.available:
        return "unavailable"
    return "there" if session.get("cart") == [1] else "empty"


def state_after(browser: Browser) -> str:
    entries = browser.entries()
    return {"[1]": "unchanged", "[1, 2]": "saved"}.get(str(entries.get("cart")), "gone")


def check_cookie(response: Any, fault: Fault) -> None:
    """Nothing that goes wrong sets or deletes a cookie; a clock that jumps ahead may roll it."""
    if fault.change is not Change.CLOCK_AHEAD:
        assert "set-cookie" not in response.headers


@pytest.mark.parametrize("name", FAULTS)
def test_while_a_session_is_loaded(
    member: Callable[..., Browser],
    world: World,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    fault = FAULTS[name]
    patient = member()
    deadline = SHORT if fault.costs_deadline else PATIENCE
    browser = beside(patient, world, deadline=deadline)
    with log_lines(caplog) as lines:
        world.happens(fault)
        began = time.monotonic()
        response = browser.does(state_of)
        took = time.monotonic() - began
    check_log(lines, fault, Operation.SESSION_LOAD)
    check_time(took, fault)
    check_cookie(response, fault)
    world.clears(fault)
    got = Outcome(
        status=response.status_code,
        lines=len(lines),
        session=response.json(),
        session_after="gone" if fault.change in LONELY else state_after(patient),
    )
    assert got == expected(name, Operation.SESSION_LOAD, "open")


@pytest.mark.parametrize("policy", ["open", "closed"])
@pytest.mark.parametrize("name", FAULTS)
def test_while_a_session_is_saved(
    member: Callable[..., Browser],
    world: World,
    caplog: pytest.LogCaptureFixture,
    name: str,
    policy: str,
) -> None:
    fault = FAULTS[name]
    patient = member()
    deadline = SHORT if fault.costs_deadline else PATIENCE
    browser = beside(patient, world, deadline=deadline, on_error=policy)
    began, found = 0.0, ""

    def add(session: Any) -> None:
        nonlocal began, found
        found = state_of(session)
        session["cart"].append(2)
        world.happens(fault)
        began = time.monotonic()

    with log_lines(caplog) as lines:
        response = browser.does(add)
        took = time.monotonic() - began
    if fault.change is Change.FLUSH:
        assert "the session was ended meanwhile" in lines[0]
    else:
        check_log(lines, fault, Operation.SESSION_SAVE)
    check_time(took, fault)
    check_cookie(response, fault)
    world.clears(fault)
    got = Outcome(
        status=response.status_code,
        retry_after="retry-after" in response.headers,
        lines=len(lines),
        session=found,
        session_after="gone" if fault.change in LONELY else state_after(patient),
    )
    assert got == expected(name, Operation.SESSION_SAVE, policy)


@pytest.mark.parametrize("name", FAULTS)
def test_a_login_that_may_not_have_happened_is_never_confirmed(
    member: Callable[..., Browser], world: World, name: str
) -> None:
    fault = FAULTS[name]
    if fault.costs_deadline or not fails(fault, Operation.SESSION_SAVE):
        return
    browser = member()

    def log_in(session: Any) -> None:
        session.bind("ada")
        world.happens(fault)

    response = browser.does(log_in)
    assert response.status_code == 503
    assert "set-cookie" not in response.headers
    world.clears(fault)
    if not fault.runs:
        assert browser.entries() == {"cart": [1], "seen": True}
