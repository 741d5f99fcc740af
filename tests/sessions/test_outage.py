"""Sessions while Upstash is unreachable: nobody is logged out, and nothing untrue is confirmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sessions.site import changes, stored_keys
from upstash_middleware import UpstashError
from upstash_middleware.events import SessionSaved, UpstashFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sessions.site import Browser, Site
    from upstash_middleware.local import LocalUpstash

CERTAIN: dict[str, Callable[[Any], Any]] = {
    "a login": lambda session: session.bind("ada"),
    "another id": lambda session: session.regenerate(),
    "a logout": lambda session: session.clear(),
    "a revocation": lambda session: session.revoke(),
    "a logout everywhere": lambda session: session.revoke_all("ada"),
}


@pytest.fixture(params=["open", "closed"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def member(site_with: Callable[..., Site], policy: str) -> Browser:
    """A browser that is logged in, of a site with either policy and no circuit breaker."""
    browser = site_with(on_error=policy, breaker=False).browser()
    browser.sets(cart=[1])
    browser.does(lambda session: session.bind("ada"))
    browser.site.events.clear()
    return browser


def dropping(upstash: LocalUpstash) -> Any:
    return upstash.faults(fault="drop-before")


def test_a_session_that_cannot_be_loaded_reads_as_empty_and_keeps_its_id(
    member: Browser, upstash: LocalUpstash
) -> None:
    before = member.cookie

    def look(session: Any) -> Any:
        return [session.available, dict(session)]

    with dropping(upstash):
        response = member.does(look)
    assert response.json() == [False, {}]
    assert "set-cookie" not in response.headers
    assert member.cookie == before
    assert member.entries() == {"cart": [1]}
    assert [type(event) for event in member.site.events if isinstance(event, UpstashFailed)]


def test_what_is_written_lasts_for_the_request_and_is_dropped(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(breaker=False).browser()
    browser.sets(cart=[1])
    browser.site.events.clear()

    def write(session: Any) -> Any:
        session["cart"] = [2]
        return session["cart"]

    with dropping(upstash):
        response = browser.does(write)
    assert (response.status_code, response.json()) == (200, [2])
    assert "set-cookie" not in response.headers
    assert browser.entries() == {"cart": [1]}
    assert SessionSaved("saved", False, "it could not be loaded") in browser.site.events


def test_with_closed_a_write_that_is_dropped_is_a_503(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(breaker=False, on_error="closed").browser()
    browser.sets(cart=[1])
    with dropping(upstash):
        assert browser.does(dict).status_code == 200
        response = browser.sets(cart=[2])
    assert response.status_code == 503
    assert "set-cookie" not in response.headers
    failures = [each for each in browser.site.events if isinstance(each, UpstashFailed)]
    assert len(failures) == 2  # one for each request


@pytest.mark.parametrize("name", CERTAIN)
def test_what_logs_in_or_out_is_a_503_under_every_policy(
    member: Browser, upstash: LocalUpstash, name: str
) -> None:
    before = member.cookie
    with dropping(upstash):
        not_loaded = member.does(CERTAIN[name])

    def fail_at_save(session: Any) -> None:
        assert session.available
        upstash.set_faults(fault="drop-before")
        CERTAIN[name](session)

    not_saved = member.does(fail_at_save)
    upstash.set_faults()
    for response in (not_loaded, not_saved):
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert response.headers["cache-control"] == "no-store"
        assert "set-cookie" not in response.headers
    assert member.cookie == before
    assert member.entries() == {"cart": [1]}


@pytest.mark.parametrize("accept", ["text/html", "text/plain", "application/json"])
def test_the_503_is_in_the_form_that_the_client_accepts(
    member: Browser, upstash: LocalUpstash, accept: str
) -> None:
    for browser in (member, member.site.browser()):  # with a session, and without one
        with dropping(upstash):
            response = browser.does(CERTAIN["a login"], headers={"Accept": accept})
        assert response.status_code == 503
        written = response.headers["content-type"].partition(";")[0]
        assert written == accept.replace("/json", "/problem+json")
        assert "The session cannot be changed at the moment." in response.text
        assert (accept == "text/html") == response.text.startswith("<!doctype html>")


def test_a_first_login_that_cannot_be_saved_is_a_503(
    member: Browser, upstash: LocalUpstash
) -> None:
    visitor = member.site.browser()
    with dropping(upstash):
        assert visitor.does(CERTAIN["a login"]).status_code == 503
    assert visitor.cookie is None


def test_a_failed_save_sends_the_response_without_a_cookie_or_a_503(
    site_with: Callable[..., Site], upstash: LocalUpstash, policy: str
) -> None:
    browser = site_with(on_error=policy, breaker=False).browser()
    with dropping(upstash):
        response = browser.sets(a=1)
    assert response.status_code == (200 if policy == "open" else 503)
    assert "set-cookie" not in response.headers
    (failed,) = [each for each in browser.site.events if isinstance(each, UpstashFailed)]
    assert failed.during == "session save"


def test_saving_in_the_handler_raises(member: Browser, upstash: LocalUpstash) -> None:
    seen: list[str] = []

    async def save(session: Any) -> None:
        session["cart"] = [2]
        upstash.set_faults(fault="drop-before")
        try:
            await session.save()
        except UpstashError as error:
            seen.append(type(error).__name__)
        upstash.set_faults()

    assert member.does(save).status_code == 200
    assert seen == ["ConnectionLost"]
    assert member.entries() == {"cart": [2]}  # saved before the head


def test_saving_in_the_handler_raises_if_it_could_not_be_loaded(
    member: Browser, upstash: LocalUpstash
) -> None:
    seen: list[str] = []

    async def save(session: Any) -> None:
        session["cart"] = [2]
        with pytest.raises(UpstashError):
            await session.save()
        seen.append("raised")
        del session["cart"]

    with dropping(upstash):
        assert member.does(save).status_code == 200
    assert seen == ["raised"]


def test_a_logout_that_the_handler_saves_in_vain_is_a_503_nevertheless(
    member: Browser, upstash: LocalUpstash
) -> None:
    async def log_out(session: Any) -> str:
        session.clear()
        upstash.set_faults(fault="drop-before")
        with pytest.raises(UpstashError):
            await session.save()
        return "you are logged out"

    assert member.does(log_out).status_code == 503
    upstash.set_faults()
    assert member.entries() == {"cart": [1]}


@pytest.mark.parametrize("name", ["bind", "regenerate", "bind again"])
def test_a_login_whose_reply_is_lost_is_sent_again_and_finds_what_it_has_done(
    member: Browser, upstash: LocalUpstash, name: str
) -> None:
    """The second RENAME finds nothing; the session has its new id and its entries."""
    visitor = member.site.browser()
    visitor.sets(cart=[7])
    if name == "bind again":
        visitor.does(lambda session: session.bind("ada"))
    before = visitor.cookie

    def log_in(session: Any) -> None:
        session["user"] = "grace"
        session.regenerate() if name == "regenerate" else session.bind("grace")
        upstash.set_faults(fault="drop-after", times=1)

    assert visitor.does(log_in).status_code == 200
    assert visitor.cookie != before
    assert visitor.entries() == {"cart": [7], "user": "grace"}
    ended = visitor.does(lambda session: session.revoke_all("grace"))
    assert ended.status_code == 200
    assert (visitor.entries() == {}) is (name != "regenerate")


def test_a_login_that_ends_the_user_s_other_sessions_is_not_sent_twice(
    member: Browser, upstash: LocalUpstash
) -> None:
    """The second DEL would end the session that the first call has bound."""
    visitor = member.site.browser()
    visitor.sets(cart=[7])

    def log_in(session: Any) -> None:
        session.revoke_all("grace")
        session.bind("grace")
        upstash.set_faults(fault="drop-after", times=1)

    assert visitor.does(log_in).status_code == 503


def test_a_plain_save_whose_reply_is_lost_is_sent_again(
    member: Browser, upstash: LocalUpstash
) -> None:
    def save(session: Any) -> None:
        session["cart"] = [2]
        upstash.set_faults(fault="drop-after", times=1)

    assert member.does(save).status_code == 200
    assert member.entries() == {"cart": [2]}
    assert changes(member.site.events) == [("saved", True)]


def test_a_first_save_whose_reply_is_lost_creates_one_session(
    member: Browser, upstash: LocalUpstash
) -> None:
    visitor = member.site.browser()
    before = len(stored_keys(upstash))

    def save(session: Any) -> None:
        session["cart"] = [2]
        upstash.set_faults(fault="drop-after", times=1)

    visitor.does(save)
    assert visitor.entries() == {"cart": [2]}
    assert len(stored_keys(upstash)) == before + 1


def test_an_open_circuit_logs_nobody_out(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with().browser()
    browser.sets(a=1)
    with dropping(upstash):
        for _ in range(10):
            response = browser.does(lambda session: session.get("a"))
            assert response.status_code == 200
            assert "set-cookie" not in response.headers
    upstash.reset_bill()
    with dropping(upstash):
        assert browser.does(CERTAIN["a logout"]).status_code == 503
    restarted = site_with().browser()
    restarted.client.cookies.set("session", browser.cookie or "", domain="shop.example")
    assert restarted.entries() == {"a": 1}
