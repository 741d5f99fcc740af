"""Logins whose session another request ends before they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.sessions.site import Site


def test_a_login_stores_all_that_it_has_set(site: Site) -> None:
    """Also entries that were the same in the session that has ended; of that nothing is left."""
    browser = site.browser()
    browser.sets(user="ada", cart=[7], visits=1)
    other = browser.like()

    def log_in(session: Any) -> None:
        assert session["cart"] == [7]
        other.does(lambda own: own.clear())
        session["user"] = "ada"
        session["visits"] = 2
        session.bind("ada")

    assert browser.does(log_in, "/sync").status_code == 200
    assert browser.entries() == {"user": "ada", "visits": 2}


def test_so_does_one_that_was_saved_before_its_id_is_changed(site: Site) -> None:
    browser = site.browser()
    browser.sets(cart=[7])
    other = browser.like()

    def log_in(session: Any) -> None:
        session["user"] = "ada"
        session.save_sync()
        other.does(lambda own: own.clear())
        session.regenerate()

    browser.does(log_in, "/sync")
    assert browser.entries() == {"user": "ada"}


@pytest.mark.parametrize("order", [("bind", "revoke_all"), ("revoke_all", "bind")])
def test_a_request_that_binds_and_ends_a_user_s_sessions_keeps_its_own(
    site: Site, order: tuple[str, str]
) -> None:
    browser, other = site.browser(), site.browser()
    other.does(lambda session: session.bind("bob"))
    other.sets(cart=[7])

    def change_password(session: Any) -> None:
        session["user"] = "bob"
        for name in order:
            getattr(session, name)("bob")

    browser.does(change_password)
    assert browser.entries() == {"user": "bob"}
    assert other.entries() == {}


def test_to_end_another_user_s_sessions_does_not_save_a_login_from_revocation(site: Site) -> None:
    browser = site.browser()
    browser.sets(cart=[7])
    browser.does(lambda session: session.bind("ada"))
    other = site.browser()

    def change(session: Any) -> None:
        assert session["cart"] == [7]
        other.does(lambda own: own.revoke_all("ada"))
        session.revoke_all("bob")
        session.bind("ada")

    browser.does(change, "/sync")
    assert browser.entries() == {}


@pytest.mark.parametrize("path", ["/", "/sync"])
def test_of_two_requests_that_change_the_id_one_sets_the_cookie(site: Site, path: str) -> None:
    """The browser would otherwise replace the cookie of the session by that of an empty one."""
    browser = site.browser()
    browser.sets(user="ada")
    other = browser.like()

    def change(session: Any) -> None:
        assert session["user"] == "ada"
        other.does(lambda own: own.regenerate())
        session.regenerate()

    response = browser.does(change, path)
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert other.entries() == {"user": "ada"}


def test_no_cookie_is_set_of_an_id_that_was_changed_after_a_save(site: Site) -> None:
    browser = site.browser()
    browser.sets(user="ada")
    site.upstash.advance(3 * 86400)  # the next save sends the cookie again
    other = browser.like()

    def change(session: Any) -> None:
        session["seen"] = 1
        session.save_sync()
        other.does(lambda own: own.regenerate())
        session["seen"] = 2

    assert "set-cookie" not in browser.does(change, "/sync").headers
    assert other.entries() == {"user": "ada", "seen": 1}


def test_what_is_written_after_an_id_could_not_be_changed_goes_into_a_new_session(
    site: Site,
) -> None:
    browser = site.browser()
    browser.sets(cart=[7])
    other = browser.like()

    def log_in(session: Any) -> None:
        assert session["cart"] == [7]
        other.does(lambda own: own.clear())
        session.regenerate()
        session.save_sync()
        assert dict(session) == {}
        session["user"] = "ada"

    browser.does(log_in, "/sync")
    assert browser.entries() == {"user": "ada"}
