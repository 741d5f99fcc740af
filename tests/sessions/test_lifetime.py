"""How long sessions last: idle and absolute timeouts, on a clock that the tests move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.sessions.site import ask, stored_keys, untouched

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sessions.site import Browser, Site
    from upstash_middleware.local import LocalUpstash

MINUTE, HOUR, DAY = 60, 3600, 24 * 3600


def test_a_session_that_is_not_used_ends_after_14_days(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.sets(a=1)
    other = browser.like()
    upstash.advance(14 * DAY - MINUTE)
    assert other.entries() == {"a": 1}
    other.like()
    upstash.advance(14 * DAY + MINUTE)
    assert other.entries() == {}


def test_a_session_that_is_used_lasts_90_days(browser: Browser, upstash: LocalUpstash) -> None:
    browser.sets(a=1)
    for _ in range(8):
        upstash.advance(11 * DAY)
        assert browser.entries() == {"a": 1}
    upstash.advance(2 * DAY)
    assert browser.entries() == {}


def test_saving_does_not_extend_the_absolute_timeout(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(idle_timeout=HOUR, absolute_timeout=2 * HOUR).browser()
    browser.sets(a=0)
    for number in range(3):
        upstash.advance(30 * MINUTE)
        browser.sets(a=number)
    upstash.advance(29 * MINUTE)
    assert browser.entries() == {"a": 2}
    (key,) = stored_keys(upstash)
    assert 0 < ask(upstash, "PTTL", key) <= MINUTE * 1000
    upstash.advance(MINUTE)
    assert browser.entries() == {}


def test_neither_a_regeneration_extends_it_but_a_login_begins_a_new_one(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(idle_timeout=2 * HOUR, absolute_timeout=2 * HOUR).browser()
    other = browser.site.browser()
    for each in (browser, other):
        each.sets(a=1)
    upstash.advance(HOUR)
    browser.does(lambda session: session.regenerate())
    other.does(lambda session: session.bind("ada"))
    upstash.advance(HOUR + MINUTE)
    assert browser.entries() == {}
    assert other.entries() == {"a": 1}


def test_an_unbound_session_that_nobody_touches_is_not_extended(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.sets(a=1)
    upstash.advance(7 * DAY)
    assert "set-cookie" not in browser.does(untouched).headers
    upstash.advance(7 * DAY)
    assert browser.entries() == {}


def test_reading_extends_the_session_and_its_cookie_once_in_a_twentieth(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.sets(a=1)
    upstash.advance(14 * DAY / 20 - MINUTE)
    assert "set-cookie" not in browser.does(dict).headers
    upstash.advance(MINUTE)
    assert f"Max-Age={14 * DAY};" in browser.does(dict).headers["set-cookie"]
    assert "set-cookie" not in browser.does(dict).headers


def test_a_cookie_that_ends_before_the_idle_timeout_is_extended_by_its_own_length(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(max_age=HOUR, idle_timeout=14 * DAY).browser()
    browser.sets(a=1)
    upstash.advance(4 * MINUTE)
    assert f"Max-Age={HOUR};" in browser.does(dict).headers["set-cookie"]


def test_the_cookie_does_not_outlive_the_session(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(idle_timeout=HOUR, absolute_timeout=2 * HOUR).browser()
    assert f"Max-Age={HOUR};" in browser.sets(a=1).headers["set-cookie"]
    upstash.advance(50 * MINUTE)
    browser.entries()
    upstash.advance(50 * MINUTE)
    cookie = browser.does(dict).headers["set-cookie"]
    seconds = int(cookie.partition("Max-Age=")[2].partition(";")[0])
    assert 19 * MINUTE < seconds <= 20 * MINUTE


def test_a_session_that_ends_while_it_is_regenerated_goes_on_with_what_is_written(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(idle_timeout=HOUR, absolute_timeout=HOUR).browser()
    browser.sets(old=1)
    upstash.advance(HOUR - MINUTE)

    def log_in(session: Any) -> None:
        assert session["old"] == 1
        upstash.advance(2 * MINUTE)
        session["new"] = 2
        session.regenerate()

    browser.does(log_in)
    assert browser.entries() == {"new": 2}
    assert len(stored_keys(upstash)) == 1


def test_everything_on_redis_has_a_time_to_live(browser: Browser, upstash: LocalUpstash) -> None:
    browser.sets(a=1)
    browser.does(lambda session: session.bind("ada"))
    browser.does(lambda session: session.pop("a"))
    keys = stored_keys(upstash, "*")
    assert len(keys) == 2
    assert all(ask(upstash, "PTTL", key) > 0 for key in keys)


def test_a_users_epoch_outlives_each_of_the_users_sessions(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.does(lambda session: session.bind("ada"))
    upstash.advance(60 * DAY)
    other = browser.site.browser()
    other.does(lambda session: session.bind("ada"))
    for _ in range(8):
        upstash.advance(11 * DAY)
        other.entries()
    assert other.does(lambda session: session.user_hash).json()
