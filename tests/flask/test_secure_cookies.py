"""Flask's own sessions, in a signed cookie, under cache rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask import Flask, session

from upstash_middleware import CacheRule
from upstash_middleware.flask import CacheMiddleware, Sessions, UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from upstash_middleware.local import LocalUpstash


def application(key: str, **fields: object) -> Flask:
    app = Flask("shop")
    app.secret_key = key
    app.config["UPSTASH_MIDDLEWARE"] = {"cache": [{"path": "/{page}", "ttl": 60, **fields}]}

    @app.get("/hello")
    def hello() -> str:
        return f"hello {session.get('user', 'stranger')}"

    @app.get("/about")
    def about() -> str:
        return "about"

    @app.post("/login")
    def login() -> str:
        session["user"] = "7"
        return ""

    return app


@pytest.fixture
def client(upstash: LocalUpstash) -> Iterator[FlaskClient]:
    app = application("a key")
    middleware = CacheMiddleware(app)
    yield app.test_client(use_cookies=False)
    app.extensions["upstash_middleware"][middleware].runtime.close()


def visit(client: FlaskClient, cookie: str, path: str = "/hello") -> tuple[str, str]:
    answer = client.get(path, headers={"Cookie": cookie} if cookie else {})
    return answer.text, answer.headers["Cache-Status"].partition("; ")[2].partition("; ttl")[0]


def logged_in(client: FlaskClient) -> str:
    return client.post("/login").headers["Set-Cookie"].partition(";")[0]


def test_a_bypass_on_the_session_s_cookie_by_its_other_name_is_logged(
    upstash: LocalUpstash, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("shop")
    app.config.update(SECRET_KEY="a key", SESSION_COOKIE_SECURE=True)
    rules = [CacheRule("/a", ttl=60, bypass=f"cookie:{name}session") for name in ("", "__Host-")]
    UpstashMiddleware(app, default_limit=None, cache=rules, redis=upstash)
    Sessions(app)
    app.get("/a")(lambda: "a")
    app.test_client().get("/a")
    (message,) = [each.getMessage() for each in caplog.records if "bypass" in each.getMessage()]
    assert message.startswith("cache[0].bypass: no request has the cookie 'session'")
    assert "write 'cookie:__Host-session'" in message


def test_a_page_is_stored_for_each_valid_session(client: FlaskClient):
    """And for visitors without one."""
    cookie = logged_in(client)
    for sent, text in ((cookie, "hello 7"), ("", "hello stranger")):
        assert visit(client, sent)[0] == text
        assert visit(client, sent) == (text, "hit")


@pytest.mark.parametrize("tamper", [lambda value: value[:-1] + "!", lambda _: "session=x"])
def test_a_page_is_not_stored_for_a_session_that_does_not_verify(client: FlaskClient, tamper):
    """Its page is that of no session, whoever may have written the cookie."""
    cookie = tamper(logged_in(client))
    for _ in range(2):
        text, status = visit(client, cookie)
        assert text == "hello stranger"
        assert status.endswith('detail="its session cookie is not valid"')
    assert visit(client, "")[1].startswith("fwd=")
    assert visit(client, "") == ("hello stranger", "hit")


def test_whoever_debugs_is_told_that_the_session_does_not_verify(upstash: LocalUpstash):
    """As Cache-Status says without the secret, whatever the status of the page."""
    app, secret = application("a key"), "d" * 32
    app.config["UPSTASH_MIDDLEWARE"]["cache_debug"] = secret
    middleware = CacheMiddleware(app)
    fields = {"Cookie": "session=forged", "Upstash-Cache-Debug": secret}
    for path in ("/hello", "/none"):
        answer = app.test_client(use_cookies=False).get(path, headers=fields)
        explained = answer.headers["Upstash-Cache-Debug"]
        assert 'not-stored="the session cookie of the request is invalid' in explained
        assert "ttl" not in explained
    app.extensions["upstash_middleware"][middleware].runtime.close()


def test_a_login_is_not_hidden_by_a_process_that_has_another_key(
    client: FlaskClient, upstash: LocalUpstash
):
    """While a key is being replaced, both processes get the same cookie."""
    cookie = logged_in(client)
    old = application("another key")
    middleware = UpstashMiddleware(old, default_limit=None)
    assert visit(old.test_client(use_cookies=False), cookie)[0] == "hello stranger"
    assert visit(client, cookie)[0] == "hello 7"
    old.extensions["upstash_middleware"][middleware].runtime.close()


def test_the_session_does_not_count_as_used(client: FlaskClient):
    """Only what the application reads makes a page depend on it."""
    answer = client.get("/about", headers={"Cookie": "session=x"})
    assert "Vary" not in answer.headers
