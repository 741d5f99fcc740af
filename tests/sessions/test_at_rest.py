"""Sessions on Redis: sealed, under rotated keys, damaged, and written by others."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from tests.sessions.site import ask, stored_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sessions.site import Browser, Site
    from upstash_middleware.local import LocalUpstash

SEALED: list[dict[str, Any]] = [
    {"cache_keys": ("k" * 32,)},
    {"cache_keys": ("k" * 32,), "cache_encrypt": True},
]


def test_a_session_is_a_hash_with_a_field_for_each_entry(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.sets(name="ada", cart=[1])
    (key,) = stored_keys(upstash)
    fields = ask(upstash, "HGETALL", key)
    assert fields[1::2][fields[::2].index(b"=cart")] == b"[1]"
    assert sorted(fields[::2]) == [b".", b"=cart", b"=name"]


def test_only_the_changed_entry_is_written(browser: Browser, upstash: LocalUpstash) -> None:
    browser.sets(name="ada", cart=[1])
    (key,) = stored_keys(upstash)
    ask(upstash, "HSET", key, "=name", '"grace"')
    other = '"of another request"'

    def change(session: Any) -> None:
        assert session["name"] == "grace"
        ask(upstash, "HSET", key, "=name", other)
        session["cart"].append(2)

    browser.does(change)
    assert browser.entries() == {"name": "of another request", "cart": [1, 2]}


# --- Sealing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SEALED, ids=["signed", "encrypted"])
def test_a_sealed_session_works_like_any_other(
    site_with: Callable[..., Site], settings: Any
) -> None:
    browser = site_with(**settings).browser()
    browser.sets(name="ada", cart=[1])
    browser.does(lambda session: session["cart"].append(2))
    browser.does(lambda session: session.bind("ada"))
    assert browser.entries() == {"name": "ada", "cart": [1, 2]}
    assert browser.cost(dict) == (1, 2)  # plain texts are compared: nothing is written


@pytest.mark.parametrize("settings", SEALED, ids=["signed", "encrypted"])
def test_an_entry_cannot_be_exchanged_for_one_of_another_name_or_session(
    site_with: Callable[..., Site], upstash: LocalUpstash, settings: Any
) -> None:
    browser = site_with(**settings).browser()
    browser.sets(role="user", name="admin")
    (key,) = stored_keys(upstash)
    ask(upstash, "HSET", key, "=role", ask(upstash, "HGET", key, "=name"))
    assert browser.entries() == {}
    first, second = browser.site.browser(), browser.site.browser()
    first.sets(role="user")
    (mine,) = set(stored_keys(upstash)) - {key}
    second.sets(role="admin")
    (theirs,) = set(stored_keys(upstash)) - {key, mine}
    ask(upstash, "HSET", mine, "=role", ask(upstash, "HGET", theirs, "=role"))
    assert first.entries() == {}


def test_encrypted_entries_show_nothing(
    site_with: Callable[..., Site], upstash: LocalUpstash
) -> None:
    browser = site_with(**SEALED[1]).browser()
    browser.sets(name="ada lovelace")
    (key,) = stored_keys(upstash)
    stored = b"".join(ask(upstash, "HGETALL", key))
    assert b"ada" not in stored
    assert b64encode(b"ada lovelace")[:8] not in stored


def test_an_unsealed_session_is_not_accepted_where_sealing_is_enabled(
    site_with: Callable[..., Site],
) -> None:
    plain = site_with().browser()
    plain.sets(role="admin")
    sealed = site_with(**SEALED[0]).browser()
    sealed.client.cookies.set("session", plain.cookie or "", domain="shop.example")
    assert sealed.entries() == {}


def test_sealing_keys_can_be_rotated(site_with: Callable[..., Site]) -> None:
    old = site_with(cache_keys=("old" * 11,)).browser()
    old.sets(a=1)
    new = site_with(cache_keys=("new" * 11, "old" * 11)).browser()
    new.client.cookies.set("session", old.cookie or "", domain="shop.example")
    assert new.entries() == {"a": 1}


# --- Keys ---------------------------------------------------------------------------------------


def test_the_key_of_ids_can_be_rotated(site_with: Callable[..., Site]) -> None:
    old = site_with(secret_key="the old key of this application").browser()
    old.does(lambda session: session.bind("ada"))
    old.sets(a=1)
    both = site_with(
        secret_key=("the new key of this application", "the old key of this application")
    ).browser()
    both.client.cookies.set("session", old.cookie or "", domain="shop.example")
    assert both.entries() == {"a": 1}
    both.sets(b=2)
    both.does(lambda session: session.regenerate())
    assert both.entries() == {"a": 1, "b": 2}
    new = site_with(secret_key="the new key of this application").browser()
    new.client.cookies.set("session", both.cookie or "", domain="shop.example")
    assert new.entries() == {"a": 1, "b": 2}


def test_a_logout_everywhere_ends_sessions_under_all_keys(site_with: Callable[..., Site]) -> None:
    old = site_with(secret_key="the old key of this application").browser()
    old.does(lambda session: session.bind("ada"))
    old.sets(a=1)
    admin = site_with(
        secret_key=("the new key of this application", "the old key of this application")
    ).browser()
    admin.does(lambda session: session.revoke_all("ada"))
    assert old.entries() == {}


def test_another_key_opens_no_session(site_with: Callable[..., Site]) -> None:
    one = site_with(secret_key="the one key of this application").browser()
    one.sets(a=1)
    other = site_with(secret_key="the other key of this application").browser()
    other.client.cookies.set("session", one.cookie or "", domain="shop.example")
    assert other.entries() == {}


# --- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        "",
        "\n",
        "[]",
        "\nnull",
        "\n[]",
        '\n["a",1,"s",""]',
        '\n[1,1,"s","",9]',
        "\n[1e999,1,2,3]",
        '\n[0,0,"s",""]',
        '\n[9999999999,9999999999,"s","ada"]',
    ],
)
def test_a_damaged_head_is_no_session(browser: Browser, upstash: LocalUpstash, head: str) -> None:
    browser.sets(a=1)
    (key,) = stored_keys(upstash)
    ask(upstash, "HSET", key, ".", head)
    before = browser.cookie
    assert browser.entries() == {}
    assert browser.does(lambda session: session.bind("ada")).status_code == 200
    assert browser.cookie != before


@pytest.mark.parametrize(
    "value", ["", "nonsense", '{"$of a later version": 1}', '{"$date": 7}', "[" * 10_000]
)
def test_a_damaged_entry_is_missing_and_the_others_are_there(
    browser: Browser, upstash: LocalUpstash, value: str
) -> None:
    browser.sets(a=1, b=2)
    (key,) = stored_keys(upstash)
    ask(upstash, "HSET", key, "=a", value)

    def look(session: Any) -> Any:
        assert "a" not in session
        assert session.get("a") is None
        assert len(session) == 1
        assert session.pop("a", None) is None
        return dict(session)

    assert browser.does(look).json() == {"b": 2}
    assert browser.entries() == {"b": 2}
    assert ask(upstash, "HGET", key, "=a") == value.encode()  # a later version can still read it
    browser.sets(a=3)
    assert browser.entries() == {"a": 3, "b": 2}


def test_fields_of_others_are_ignored(browser: Browser, upstash: LocalUpstash) -> None:
    browser.sets(a=1)
    (key,) = stored_keys(upstash)
    ask(upstash, "HSET", key, "a", "2", "=b", "3", "", "4")
    assert browser.entries() == {"a": 1, "b": 3}


def test_an_entry_of_another_program_is_written_only_if_it_is_changed(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.sets(a=1)
    (key,) = stored_keys(upstash)
    ask(upstash, "HSET", key, "=b", '{ "c" : [ 1 ] }')
    browser.sets(a=2)
    assert browser.cost(dict) == (1, 1)
    browser.does(lambda session: session["b"]["c"].append(2))
    assert browser.entries() == {"a": 2, "b": {"c": [1, 2]}}


@pytest.mark.parametrize(
    "command", [("SET", "{}", "x"), ("RPUSH", "{}", "x"), ("HSET", "{}", "a", "b")]
)
def test_another_value_at_the_key_is_no_session_and_no_server_error(
    browser: Browser, upstash: LocalUpstash, command: tuple[str, ...]
) -> None:
    browser.sets(a=1)
    (key,) = stored_keys(upstash)
    ask(upstash, "DEL", key)
    ask(upstash, *(word.format(key) for word in command))
    assert browser.entries() == {}
    assert browser.sets(b=1).status_code == 200
