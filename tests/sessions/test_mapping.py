"""The session as the mapping that handlers use, beside Starlette's."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from starlette.middleware import sessions as starlettes

from upstash_middleware import NotStorable, Session
from upstash_middleware.starlette import SessionMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sessions.site import Browser, Site


def test_the_arguments_are_starlettes_with_the_same_defaults() -> None:
    theirs = inspect.signature(starlettes.SessionMiddleware).parameters
    ours = inspect.signature(SessionMiddleware).parameters
    for name, parameter in theirs.items():
        if name != "secret_key":  # which has a default here
            assert ours[name].default == parameter.default
    positional = [name for name, each in ours.items() if each.kind is not each.KEYWORD_ONLY]
    assert positional[: len(theirs) - 1] == [name for name in theirs if name != "partitioned"]


def test_the_session_has_the_methods_of_starlettes() -> None:
    from upstash_middleware import Session  # noqa: PLC0415

    missing = {name for name in dir(starlettes.Session) if not hasattr(Session, name)}
    assert missing <= {"fromkeys", "__class_getitem__"}


VALUES = {
    "text": "ä",
    "number": 7,
    "nothing": None,
    "list": [1, [2]],
    "tuple": (1, 2),
    "set": {1, 2},
    "when": datetime(2026, 1, 31, 12, tzinfo=UTC),
    "price": Decimal("1.10"),
    "bytes": b"\xff",
    "": "an empty name",
    ".": "a point",
    "=": "an equals sign",
}


def test_values_come_back_equal_and_of_the_same_type(browser: Browser) -> None:
    browser.does(lambda session: session.update(VALUES))

    def check(session: Any) -> None:
        assert dict(session) == VALUES
        assert [type(value) for value in session.values()] == list(map(type, VALUES.values()))

    browser.does(check)


def test_it_does_what_a_dictionary_does(browser: Browser) -> None:
    browser.sets(a=1, b=2, c=3)

    def use(session: Any) -> None:
        assert "a" in session
        assert "x" not in session
        assert session.get("x") is None
        assert session.pop("a") == 1
        assert session.pop("a", "gone") == "gone"
        session["last"] = 0
        assert session.popitem() == ("last", 0)
        assert session.setdefault("b", 7) == 2
        assert session.setdefault("d", []) == []
        session["d"].append(1)
        del session["c"]
        assert "c" not in session
        with pytest.raises(KeyError):
            del session["c"]
        session["c"] = 4
        session |= {"e": 5}
        assert session == {"b": 2, "d": [1], "c": 4, "e": 5}
        assert session | {"b": 3} == {"b": 3, "d": [1], "c": 4, "e": 5}
        assert {"z": 0} | session == {"z": 0, **session.copy()}
        assert len(session) == 4
        assert bool(session)

    browser.does(use)
    assert browser.entries() == {"b": 2, "d": [1], "c": 4, "e": 5}


@pytest.mark.parametrize(
    ("action", "accessed", "modified"),
    [
        (lambda _session: None, False, False),
        (lambda session: session.get("a"), True, False),
        (lambda session: "a" in session, True, False),
        (len, True, False),
        (dict, True, False),
        (lambda session: session.pop("x", None), True, False),
        (lambda session: session.pop("a"), True, True),
        (lambda session: session.update(a=2), True, True),
        (lambda session: session.clear(), True, True),
        (lambda session: session.mark_modified(), True, True),
    ],
)
def test_it_knows_whether_it_was_read_or_changed(
    browser: Browser, action: Callable[[Any], Any], accessed: bool, modified: bool
) -> None:
    browser.sets(a=1)
    seen: list[bool] = []

    def use(session: Any) -> None:
        action(session)
        seen.extend([session.accessed, session.modified])

    browser.does(use)
    assert seen == [accessed, modified]


def test_a_sync_handler_uses_the_session_in_its_thread(browser: Browser) -> None:
    def use(session: Any) -> Any:
        session["a"] = [1]
        session.save_sync()
        session["a"].append(2)
        return session.new

    assert browser.does(use, "/sync").json() is False
    assert browser.entries() == {"a": [1, 2]}


# --- What cannot be stored ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", object(), r"session\['a'\]: value: a value of the type object cannot be stored"),
        (
            "a",
            {"b": [object()]},
            r"session\['a'\]: value\['b'\]\[0\]|session\['a'\]: value\[b\]\[0\]",
        ),
        ("a", float("nan"), r"session\['a'\].*cannot be stored; store None or text instead"),
        ("\ud800", 1, r"session\['\\ud800'\]"),
        (7, 1, r"session\[7\]: the names of entries are text; write session\['7'\]"),
    ],
)
def test_what_cannot_be_stored_raises_and_says_what_to_write_instead(
    browser: Browser, name: Any, value: Any, message: str
) -> None:
    with pytest.raises(NotStorable, match=message):
        browser.does(lambda session: session.update({name: value}))
    assert browser.cookie is None


def test_it_is_a_server_error_for_the_client_and_nothing_is_saved(
    site_with: Callable[..., Site],
) -> None:
    site = site_with(max_size=100)
    browser = site.browser(raise_server_exceptions=False)
    browser.sets(a=1)

    def store_too_much(session: Any) -> None:
        session["a"] = 2
        session["page"] = "x" * 100

    response = browser.does(store_too_much)
    assert response.status_code == 500
    assert "set-cookie" not in response.headers
    assert browser.entries() == {"a": 1}


def test_a_session_above_its_size_says_which_entry_is_the_largest(
    site_with: Callable[..., Site],
) -> None:
    browser = site_with(max_size=100).browser()
    browser.sets(a="x" * 60)
    message = r"has 1\d\d bytes, and max_size is 100; the largest entry is 'a': store its data els"
    with pytest.raises(NotStorable, match=message):
        browser.sets(b="y" * 40)
    assert browser.does(lambda session: session.pop("a")).status_code == 200
    assert browser.sets(b="y" * 40).status_code == 200


def test_the_applications_own_handler_of_errors_gets_it(site: Site) -> None:
    from starlette.responses import PlainTextResponse  # noqa: PLC0415

    async def explain(_request: Any, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(type(error).__name__, 500)

    site.app.add_exception_handler(500, explain)
    browser = site.browser(raise_server_exceptions=False)
    assert browser.sets(a=1).status_code == 200
    assert browser.does(lambda session: session.update(a={1: 2})).text == "NotStorable"


def test_an_exception_in_the_handler_saves_nothing(site: Site) -> None:
    browser = site.browser(raise_server_exceptions=False)
    browser.sets(a=1)

    def fail(session: Any) -> None:
        session["a"] = 2
        session.bind("ada")
        raise LookupError

    assert browser.does(fail).status_code == 500
    assert browser.entries() == {"a": 1}


def test_a_user_that_is_none_is_an_error_that_names_what_to_check() -> None:
    with pytest.raises(TypeError, match="nobody is logged in, or the session is not available"):
        Session().bind(None)  # type: ignore[arg-type]
