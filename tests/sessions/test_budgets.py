"""What sessions cost at Upstash: calls, and billed commands, once the process is warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sessions.site import ask, stored_keys, untouched
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sessions.site import Browser, Site
    from upstash_middleware.local import LocalUpstash

DAY = 24 * 3600


@pytest.fixture
def warm(browser: Browser) -> Browser:
    """A browser with a session, of a process that knows all scripts."""
    other = browser.site.browser()
    other.sets(a=1)
    other.sets(a=2)
    other.does(lambda session: session.bind("grace"))
    browser.sets(name="ada", cart=[1])
    return browser


def test_a_visitor_without_a_cookie_costs_nothing(warm: Browser) -> None:
    assert warm.site.browser().cost(dict) == (0, 0)


@pytest.mark.parametrize("value", ["", "abc", "A" * 44, "A" * 43 + ".abc", "=" * 43, "A" * 9000])
def test_a_malformed_cookie_costs_nothing(warm: Browser, value: str) -> None:
    stranger = warm.site.browser()
    stranger.client.headers["cookie"] = f"session={value}"
    assert stranger.cost(dict) == (0, 0)


@pytest.mark.parametrize("action", [untouched, dict, lambda session: session["cart"]])
def test_reading_a_session_costs_one_command(warm: Browser, action: Callable[..., Any]) -> None:
    assert warm.cost(action) == (1, 1)


def test_a_session_is_created_with_three_commands(warm: Browser) -> None:
    assert warm.site.browser().cost(lambda session: session.update(a=1, b=2)) == (1, 3)


@pytest.mark.parametrize(
    ("action", "commands"),
    [
        pytest.param(lambda session: session.update(a=1, b=2), 3, id="entries set"),
        pytest.param(lambda session: session["cart"].append(2), 3, id="an entry changed inside"),
        pytest.param(lambda session: session.pop("cart"), 3, id="an entry deleted"),
        pytest.param(lambda session: session.update(a=session.pop("cart")), 4, id="both"),
        pytest.param(lambda session: session.regenerate(), 4, id="regenerated"),
        pytest.param(lambda session: session.bind("grace"), 6, id="bound to a user"),
        pytest.param(lambda session: session.clear(), 1, id="logout"),
        pytest.param(lambda session: session.revoke_all("grace"), 1, id="logout everywhere"),
    ],
)
def test_a_change_costs_one_more_call(
    warm: Browser, action: Callable[..., Any], commands: int
) -> None:
    assert warm.cost(action) == (2, 1 + commands)


def test_entries_that_are_set_to_what_they_are_cost_nothing(warm: Browser) -> None:
    assert warm.cost(lambda session: session.update(name="ada", cart=[1])) == (1, 1)


def test_a_bound_session_costs_two_commands_to_read(warm: Browser) -> None:
    warm.does(lambda session: session.bind("ada"))
    assert warm.cost(dict) == (1, 2)


def test_a_touch_costs_three_commands_once_in_a_twentieth_of_the_idle_timeout(
    warm: Browser, upstash: LocalUpstash
) -> None:
    assert warm.cost(dict) == (1, 1)
    upstash.advance(14 * DAY / 20)
    assert warm.cost(untouched) == (1, 1)
    assert warm.cost(dict) == (2, 4)
    assert warm.cost(dict) == (1, 1)


def test_a_change_and_a_touch_are_one_save(warm: Browser, upstash: LocalUpstash) -> None:
    upstash.advance(DAY)
    assert warm.cost(lambda session: session.update(a=1)) == (2, 4)


def test_reading_from_the_primary_costs_one_command_more(site_with: Callable[..., Site]) -> None:
    browser = site_with(read_from="primary").browser()
    browser.sets(a=1)
    browser.entries()
    assert browser.cost(dict) == (1, 2)
    assert browser.entries() == {"a": 1}


def test_a_second_secret_costs_one_command_per_read(site_with: Callable[..., Site]) -> None:
    browser = site_with(
        secret_key=("the new key of this application", "the old key of this application")
    ).browser()
    browser.sets(a=1)
    assert browser.cost(dict) == (1, 2)


def test_limit_session_and_hit_together_take_one_call_and_five_commands(
    site_with: Callable[..., Site],
) -> None:
    site = site_with(
        sessions={},
        secret="of this application",
        default_limit="1000/hour",
        cache=[CacheRule("/elsewhere", ttl=600)],
    )
    browser = site.browser()
    browser.sets(a=1)
    site.doing(untouched)
    site.browser().client.get("/elsewhere")
    browser.client.get("/elsewhere")
    site.upstash.reset_bill()
    response = browser.client.get("/elsewhere")
    assert "; hit" in response.headers["cache-status"]
    bill = site.upstash.bill()
    assert (bill.requests, bill.commands) == (1, 5)


def test_many_entries_are_sent_in_batches_that_lua_can_take(
    warm: Browser, upstash: LocalUpstash
) -> None:
    many = {f"name {number}": number for number in range(9000)}
    first = warm.site.browser()
    assert first.cost(lambda session: session.update(many)) == (1, 5)  # 3 HSETs
    assert first.entries() == many
    assert warm.cost(lambda session: session.update(many)) == (2, 6)
    assert warm.entries() == {"name": "ada", "cart": [1], **many}

    def forget(session: Any) -> None:
        for name in many:
            del session[name]

    assert warm.cost(forget) == (2, 5)
    assert warm.entries() == {"name": "ada", "cart": [1]}
    assert len(ask(upstash, "HKEYS", stored_keys(upstash)[0])) > 0
