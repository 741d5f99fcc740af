"""The session's cookie: its attributes, its name, and which values are accepted."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from starlette.responses import PlainTextResponse

from tests.sessions.site import Site, stored_keys
from upstash_middleware import ConfigurationError
from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.sessions import SessionSettings
from upstash_middleware.starlette import SessionMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sessions.site import Browser
    from upstash_middleware.local import LocalUpstash

DAYS = 24 * 3600
VALUE = "[A-Za-z0-9_-]{43}"


@pytest.mark.parametrize(
    ("settings", "cookie"),
    [
        ({}, f"session={VALUE}; Path=/; Max-Age={14 * DAYS}; HttpOnly; SameSite=Lax"),
        (
            {"https_only": True, "same_site": "Strict"},
            (
                f"__Host-session={VALUE}; Path=/; Max-Age={14 * DAYS}; HttpOnly; SameSite=Strict; "
                "Secure"
            ),
        ),
        (
            {"https_only": True, "domain": "shop.example", "max_age": None},
            (
                f"__Secure-session={VALUE}; Path=/; Domain=shop.example; HttpOnly; SameSite=Lax; "
                "Secure"
            ),
        ),
        (
            {"https_only": True, "path": "/", "partitioned": True, "same_site": "none"},
            (
                f"__Host-session={VALUE}; Path=/; Max-Age={14 * DAYS}; HttpOnly; SameSite=None; "
                "Secure; Partitioned"
            ),
        ),
        (
            {"https_only": True, "path": "/shop", "session_cookie": "id"},
            f"__Secure-id={VALUE}; Path=/shop; Max-Age={14 * DAYS}; HttpOnly; SameSite=Lax; Secure",
        ),
        (
            {"max_age": "1 hour", "path": "/shop"},
            f"session={VALUE}; Path=/shop; Max-Age=3600; HttpOnly; SameSite=Lax",
        ),
    ],
)
def test_the_cookie_has_the_attributes_of_the_settings(
    site_with: Callable[..., Site], settings: Any, cookie: str
) -> None:
    browser = site_with(**settings).browser("https")
    assert re.fullmatch(cookie, browser.sets(a=1).headers["set-cookie"])


def test_a_logout_deletes_the_cookie_with_the_attributes_it_was_set_with(
    site_with: Callable[..., Site],
) -> None:
    browser = site_with(https_only=True, partitioned=True).browser("https")
    browser.sets(a=1)
    assert browser.does(lambda session: session.clear()).headers["set-cookie"] == (
        "__Host-session=; Path=/; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly; "
        "SameSite=Lax; Secure; Partitioned"
    )
    assert browser.cookie is None


def test_the_cookie_of_a_bound_session_shows_nothing_of_the_user(browser: Browser) -> None:
    browser.does(lambda session: session.bind("ada@shop.example"))
    assert re.fullmatch(rf"{VALUE}\.[A-Za-z0-9_-]{{11}}", browser.cookie or "")
    other = browser.site.browser()
    other.does(lambda session: session.bind("ada@shop.example"))
    mine, theirs = (each.cookie or "" for each in (browser, other))
    assert mine.partition(".")[2] == theirs.partition(".")[2]
    assert mine.partition(".")[0] != theirs.partition(".")[0]


@pytest.mark.parametrize(
    "name", ["Session", "session ", "__Host-session", "__Secure-session", "session2", "essession"]
)
def test_no_other_name_is_accepted(browser: Browser, name: str) -> None:
    browser.sets(a=1)
    stranger = browser.site.browser()
    stranger.client.headers["cookie"] = f"{name}={browser.cookie}"
    accepted = name.strip() == "session"  # white space around a name means nothing
    assert stranger.entries() == ({"a": 1} if accepted else {})


def test_with_https_the_name_without_prefix_is_not_accepted(site_with: Callable[..., Site]) -> None:
    browser = site_with(https_only=True).browser("https")
    browser.sets(a=1)
    stranger = browser.site.browser("https")
    stranger.client.headers["cookie"] = f"session={browser.cookie}"
    assert stranger.entries() == {}


@pytest.mark.parametrize(
    "form", ["a=1; session={}; b=2", "a=1;session={}", 'session="{}"', "=;session={};"]
)
def test_the_cookie_is_found_among_others(browser: Browser, form: str) -> None:
    browser.sets(a=1)
    other = browser.site.browser()
    other.client.headers["cookie"] = form.format(browser.cookie)
    assert other.entries() == {"a": 1}


def test_the_first_of_two_cookies_of_the_name_counts(browser: Browser) -> None:
    """RFC 6265 §5.4: the one with the longer path comes first."""
    browser.sets(a=1)
    other = browser.site.browser()
    other.client.headers["cookie"] = f"session={browser.cookie}; session={'A' * 43}"
    assert other.entries() == {"a": 1}


# --- Session fixation ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["A" * 43, "A" * 43 + "." + "A" * 11, "eyJhIjoxfQ==.aXyZ.sig"])
def test_a_value_that_nobody_was_given_is_neither_adopted_nor_deleted(
    browser: Browser, value: str
) -> None:
    browser.client.cookies.set("session", value, domain="shop.example")
    for action in (dict, lambda session: session.clear(), lambda session: session.pop("a", None)):
        assert "set-cookie" not in browser.does(action).headers
    for action in (lambda session: session.update(a=1), lambda session: session.bind("ada")):
        victim = browser.like()
        assert value not in victim.does(action).headers["set-cookie"]


def test_the_id_of_a_login_is_not_the_one_before(browser: Browser) -> None:
    browser.sets(cart=[1])
    thief = browser.like()
    browser.does(lambda session: session.bind("ada"))
    assert thief.entries() == {}
    assert browser.entries() == {"cart": [1]}
    bound = browser.like()
    browser.does(lambda session: session.regenerate())
    assert bound.entries() == {}


def test_a_users_part_in_the_cookie_cannot_be_exchanged_or_left_out(browser: Browser) -> None:
    browser.does(lambda session: session.bind("ada"))
    other = browser.site.browser()
    other.does(lambda session: session.bind("grace"))
    id_, _, _ = (browser.cookie or "").partition(".")
    for value in (id_, f"{id_}.{(other.cookie or '').partition('.')[2]}"):
        thief = browser.site.browser()
        thief.client.cookies.set("session", value, domain="shop.example")
        assert thief.does(lambda session: session.user_hash).json() == ""


def test_an_id_is_never_used_again(browser: Browser) -> None:
    browser.sets(a=1)
    before = browser.cookie

    def start_again(session: Any) -> None:
        session.clear()
        session["b"] = 2

    browser.does(start_again)
    assert browser.cookie != before
    assert browser.entries() == {"b": 2}


def test_redis_does_not_contain_what_opens_a_session(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.does(lambda session: session.bind("ada"))
    id_ = (browser.cookie or "").partition(".")[0]
    assert not any(id_ in key or "ada" in key for key in stored_keys(upstash, "*"))


# --- Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"session_cookie": "my session"},
            "session_cookie: 'my session' should be a cookie's name",
        ),
        ({"session_cookie": "__Host-s"}, "'__Host-s' needs https_only=True"),
        (
            {"session_cookie": "__Host-s", "https_only": True, "path": "/a"},
            "'__Host-s' needs path='/' and no domain",
        ),
        ({"same_site": "none"}, "same_site: 'none' needs https_only=True"),
        ({"same_site": "never"}, "same_site: 'never' should be 'lax', 'strict' or 'none'"),
        ({"partitioned": True}, "partitioned: True needs https_only=True"),
        ({"path": "shop"}, "path: 'shop' should be a path"),
        ({"path": "/a; Domain=evil"}, "path: '/a; Domain=evil' should be a path"),
        ({"path": "/käse"}, "path: '/käse' should be a path"),
        ({"domain": "a;b"}, "domain: 'a;b' should be a domain"),
        ({"max_age": 0}, "max_age: 0 should be a number of seconds above 0"),
        (
            {"idle_timeout": "500 days"},
            "idle_timeout: '500 days' should be a number of seconds above 0",
        ),
        (
            {"absolute_timeout": None},
            "absolute_timeout: None should be a number of seconds above 0",
        ),
        ({"secret_key": ["a", ""]}, "secret_key: should be text, or a list of texts"),
        ({"secret_key": "short"}, "secret_key: should be text of at least 16 characters"),
        (
            {"secret_key": ["long enough, as it is", "short"]},
            "secret_key: should be text of at least 16",
        ),
        (
            {"idle_timeout": "2 days", "absolute_timeout": "1 day"},
            "idle_timeout: '2 days' is longer than absolute_timeout",
        ),
        (
            {"max_age": "100 days"},
            "max_age: '100 days' is longer than absolute_timeout=7776000",
        ),
        (
            {"max_age": "2 days", "idle_timeout": "1 hour", "absolute_timeout": "1 day"},
            "max_age: '2 days' is longer than absolute_timeout='1 day'",
        ),
        ({"maxage": 3}, "maxage: there is no such setting; did you mean 'max_age'?"),
        ({"max_sise": 3}, "max_sise: there is no such setting; did you mean 'max_size'?"),
        (
            {"default_limit": "1/min"},
            "default_limit: this setting has no effect in Session",
        ),
        ({"lease": "1s"}, "lease: this setting has no effect in SessionMiddleware"),
        ({"cache": []}, "UpstashMiddleware(cache=…, sessions={…})"),
        ({"max_size": 10**9}, "max_size: 1000000000 should be a whole number of bytes"),
        ({"on_error": "local"}, "on_error: 'local' should be 'open' or 'closed'"),
        ({"paths": "/a"}, "paths: '/a' should be a list of patterns"),
    ],
)
def test_a_wrong_setting_raises_at_startup(settings: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        SessionMiddleware(lambda *_: None, **settings)  # type: ignore[arg-type]
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"absolute_timeout": "8 hours"},
        {"max_age": None, "absolute_timeout": "8 hours"},
        {"max_age": "90 days"},
        {"max_age": "100 days", "absolute_timeout": "100 days"},
    ],
)
def test_the_default_of_max_age_is_no_longer_than_the_absolute_timeout(
    upstash: LocalUpstash, settings: Any
) -> None:
    """Who shortens only the one has not asked for the other."""
    browser = Site(upstash, **settings).browser()
    cookie = browser.sets(cart=1).headers["set-cookie"]
    longest = seconds_in(settings.get("absolute_timeout", "90 days"))
    assert all(int(age) <= (longest or 0) for age in re.findall("Max-Age=([0-9]+)", cookie))


@pytest.mark.parametrize(
    ("field", "value", "added"),
    [
        ("Cache-Control", "public, max-age=60", True),
        ("Cache-Control", "max-age=60", True),
        ("CDN-Cache-Control", "max-age=60", True),
        ("Cache-Control", "private, max-age=60", False),
        ("Cache-Control", "No-Store", False),
        ("X-Other", "public", False),
    ],
)
def test_no_cache_may_send_the_cookie_of_one_client_to_another(
    browser: Browser, field: str, value: str, added: bool
) -> None:
    """Vary: Cookie does not prevent that among clients which have no cookie yet."""

    def visit(session: Any) -> PlainTextResponse:
        session["a"] = 1
        return PlainTextResponse("", headers={field: value})

    response = browser.does(visit)
    assert "set-cookie" in response.headers
    more = ', no-cache="Set-Cookie"' if added else ""
    assert response.headers[field] == value + more
    response = browser.does(visit)
    assert "set-cookie" not in response.headers
    assert response.headers[field] == value


class Role(Enum):
    ADMIN = "ada"


class Name(str, Enum):  # noqa: UP042 - its str() is no value
    ADA = "ada"


@pytest.mark.parametrize(
    ("user", "other"),
    [(Role.ADMIN, "ada"), (Name.ADA, "ada"), (7, "7"), (UUID(int=7), UUID(int=7))],
)
def test_a_user_is_the_same_however_the_id_is_given(
    browser: Browser, user: Any, other: Any
) -> None:
    browser.does(lambda session: session.bind(user))
    browser.sets(a=1)
    browser.site.browser().does(lambda session: session.revoke_all(other))
    assert browser.entries() == {}


def test_no_secret_is_shown(browser: Browser, upstash: LocalUpstash) -> None:
    settings = SessionSettings(secret_key=("s3cret",))
    seen: list[str] = [repr(settings)]

    def look(session: Any) -> None:
        session["password"] = "s3cret"
        session.bind("s3cret")
        seen.append(repr(session))

    async def save(session: Any) -> None:
        await session.save()
        seen.extend([repr(session), repr(session.cookie_change), repr(session._stored)])

    browser.does(look)
    browser.does(save)
    browser.does(lambda session: seen.extend([repr(session), repr(session._stored)]))
    secrets = ("s3cret", (browser.cookie or "").partition(".")[0])
    assert not [text for text in seen for secret in secrets if secret in text]
