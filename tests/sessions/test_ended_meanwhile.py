"""Logins whose session another request ends before they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
