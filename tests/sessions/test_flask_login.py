"""Sessions of Flask under Flask-Login: logins, logouts, "remember me", and an outage in each."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, abort, redirect
from flask_login import (
    LoginManager,
    UserMixin,
    confirm_login,
    current_user,
    login_required,
    login_user,
    logout_user,
    user_logged_in,
)

from upstash_middleware import CacheRule
from upstash_middleware.flask import Sessions, UpstashMiddleware, runtimes_of, session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from upstash_middleware.local import LocalUpstash

# Flask-Login 0.6.3 computes the end of its cookie so.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


class User(UserMixin):  # type: ignore[misc] # Flask-Login has no types
    def __init__(self, id_: str) -> None:
        self.id = id_


def test_a_page_under_flask_login_is_cached_for_visitors_without_a_session(
    upstash: LocalUpstash,
) -> None:
    """Flask-Login looks into the session after each request."""
    app = site()
    UpstashMiddleware(
        app, redis=upstash, default_limit=None, cache=[CacheRule("/{rest:path}", ttl=60)]
    )
    Sessions(app)
    first, second = (app.test_client().get("/", buffered=True) for _ in range(2))
    assert "; hit" in second.headers["Cache-Status"]
    assert first.headers["Vary"] == second.headers["Vary"] == "Cookie"
    ada = app.test_client()
    ada.get("/login/ada")
    page = ada.get("/", buffered=True)
    assert page.text == "user ada"
    assert "depends on the session" in page.headers["Cache-Status"]
    assert app.test_client().get("/", buffered=True).text == "user None"


def site() -> Flask:
    """Return an application with the pages that Flask-Login's documentation shows."""
    app = Flask("site")
    app.secret_key = "a long random text of this application"
    app.testing = True
    manager = LoginManager(app)
    manager.user_loader(User)

    @manager.unauthorized_handler  # type: ignore[untyped-decorator] # Flask-Login has no types
    def unauthorized() -> Any:
        if not session.available:
            abort(503)
        return redirect("/login")

    @app.get("/")
    def home() -> str:
        return f"user {current_user.get_id()}"

    @app.get("/account")
    @login_required  # type: ignore[untyped-decorator] # Flask-Login has no types
    def account() -> str:
        return f"account of {current_user.get_id()}"

    @app.get("/basket")
    def basket() -> str:
        session["basket"] = ["tea"]
        return f"user {current_user.get_id()}"

    @app.get("/login/<name>")
    def login(name: str) -> str:
        login_user(User(name))
        return "welcome"

    @app.get("/login/<name>/remember")
    def remember(name: str) -> str:
        login_user(User(name), remember=True)
        return "welcome"

    @app.get("/confirm")
    def confirm() -> str:
        confirm_login()
        return "confirmed"

    @app.get("/logout")
    def logout() -> str:
        logout_user()
        return "bye"

    @app.get("/end/<name>")
    def end(name: str) -> str:
        session.revoke_all(name)
        return "ended"

    return app


@pytest.fixture(params=["alone", "with the middleware"])
def app(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Flask:
    app = site()
    if request.param == "alone":
        Sessions(app, redis=upstash)
    else:
        UpstashMiddleware(app, default_limit="100000/hour", redis=upstash)
        Sessions(app)
    return app


@pytest.fixture
def browser(app: Flask) -> FlaskClient:
    return app.test_client()


@contextmanager
def outage(app: Flask, upstash: LocalUpstash) -> Iterator[None]:
    """Have every connection refused, and the circuit breaker forget that afterwards."""
    upstash.set_faults(fault="refuse")
    yield
    upstash.set_faults()
    for runtime in (*runtimes_of(app), app.session_interface.ready(app).runtime):  # type: ignore[attr-defined]
        runtime.forget()


def id_of(browser: FlaskClient) -> str:
    cookie = browser.get_cookie("session")
    assert cookie is not None
    return cookie.value


def remembered(app: Flask) -> FlaskClient:
    """Return a browser that has closed since its login: only "remember me" is left."""
    browser = app.test_client()
    browser.get("/login/ada/remember")
    browser.delete_cookie("session")
    assert browser.get_cookie("remember_token") is not None
    return browser


# --- Logins and logouts -------------------------------------------------------------------------


def test_a_login_and_a_logout_give_the_session_another_id(browser: FlaskClient) -> None:
    browser.get("/basket")
    ids = [id_of(browser)]
    for path, user in (("/login/ada", "ada"), ("/confirm", "ada"), ("/logout", None)):
        browser.get(path)
        ids.append(id_of(browser))
        assert browser.get("/").text == f"user {user}"
    assert len({*ids}) == len(ids)


def test_the_id_from_before_a_login_is_worth_nothing(app: Flask, browser: FlaskClient) -> None:
    browser.get("/basket")
    before = id_of(browser)
    browser.get("/login/ada")
    thief = app.test_client()
    thief.set_cookie("session", before)
    assert thief.get("/").text == "user None"


def test_a_remembered_user_gets_a_session(app: Flask, upstash: LocalUpstash) -> None:
    browser = remembered(app)
    assert browser.get("/").text == "user ada"
    first = id_of(browser)
    assert browser.get("/account").text == "account of ada"
    assert id_of(browser) == first


def test_a_remembered_user_whose_session_exists_gets_another_id(app: Flask) -> None:
    browser = remembered(app)
    stranger = app.test_client()
    stranger.get("/basket")
    browser.set_cookie("session", id_of(stranger))
    assert browser.get("/").text == "user ada"
    assert id_of(browser) != id_of(stranger)
    assert stranger.get("/").text == "user None"


def test_a_logout_forgets_the_remembered_user(app: Flask) -> None:
    browser = remembered(app)
    browser.get("/")
    browser.get("/logout")
    assert browser.get_cookie("remember_token") is None
    assert browser.get("/").text == "user None"


# --- Ending all sessions of a user --------------------------------------------------------------


def test_sessions_of_a_login_that_is_bound_end_together(app: Flask, browser: FlaskClient) -> None:
    @user_logged_in.connect_via(app)  # type: ignore[untyped-decorator] # Flask-Login has no types
    def bind(_app: Flask, user: User) -> None:
        session.bind(user.get_id())

    browser.get("/login/ada")
    other = app.test_client()
    other.get("/login/ada")
    other.get("/end/ada")
    assert browser.get("/").text == other.get("/").text == "user None"


# --- Outages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/account", "/basket"])
def test_a_remembered_user_without_a_session_is_served_during_an_outage(
    app: Flask, upstash: LocalUpstash, path: str
) -> None:
    browser = remembered(app)
    with outage(app, upstash):
        response = browser.get(path)
        assert response.status_code == 200
        assert response.text.endswith("ada")
        assert browser.get_cookie("session") is None
    assert browser.get(path).text.endswith("ada")
    assert browser.get_cookie("session") is not None


def test_a_remembered_user_with_a_session_is_served_during_an_outage(
    app: Flask, upstash: LocalUpstash
) -> None:
    browser = app.test_client()
    browser.get("/login/ada/remember")
    before = id_of(browser)
    with outage(app, upstash):
        assert browser.get("/account").text == "account of ada"
    assert id_of(browser) == before
    assert browser.get("/account").text == "account of ada"


def test_an_outage_between_loading_and_saving_does_not_disturb_a_remembered_user(
    app: Flask, upstash: LocalUpstash
) -> None:
    @app.get("/outage")
    def begin() -> str:
        session.get("basket")
        upstash.set_faults(fault="refuse")
        return f"user {current_user.get_id()}"

    browser = remembered(app)
    stranger = app.test_client()
    stranger.get("/basket")
    browser.set_cookie("session", before := id_of(stranger))
    response = browser.get("/outage")
    with outage(app, upstash):
        assert (response.status_code, response.text) == (200, "user ada")
    assert id_of(browser) == before
    assert browser.get("/").text == "user ada"
    assert id_of(browser) != before


@pytest.mark.parametrize("path", ["/login/bob", "/login/bob/remember", "/confirm", "/logout"])
@pytest.mark.parametrize("has_token", [False, True])
def test_a_login_or_logout_of_a_session_is_a_503_during_an_outage(
    app: Flask, upstash: LocalUpstash, path: str, *, has_token: bool
) -> None:
    browser = app.test_client()
    browser.get("/login/ada/remember" if has_token else "/login/ada")
    before = id_of(browser), browser.get_cookie("remember_token")
    with outage(app, upstash):
        assert browser.get(path).status_code == 503
    assert (id_of(browser), browser.get_cookie("remember_token")) == before
    assert browser.get("/").text == "user ada"


@pytest.mark.parametrize("path", ["/login/bob", "/login/bob/remember"])
def test_a_login_of_a_remembered_user_is_a_503_during_an_outage(
    app: Flask, upstash: LocalUpstash, path: str
) -> None:
    browser = remembered(app)
    with outage(app, upstash):
        assert browser.get("/").text == "user ada"
        assert browser.get(path).status_code == 503
    assert browser.get("/").text == "user ada"


def test_a_remembered_user_without_a_session_can_log_out_during_an_outage(
    app: Flask, upstash: LocalUpstash
) -> None:
    browser = remembered(app)
    with outage(app, upstash):
        assert browser.get("/logout").status_code == 200
        assert browser.get_cookie("remember_token") is None
    assert browser.get("/").text == "user None"


def test_a_logged_in_user_is_not_sent_to_the_login_form_by_an_outage(
    app: Flask, upstash: LocalUpstash
) -> None:
    browser = app.test_client()
    assert browser.get("/account").status_code == 302
    browser.get("/login/ada")
    with outage(app, upstash):
        assert browser.get("/account").status_code == 503
    assert browser.get("/account").text == "account of ada"
