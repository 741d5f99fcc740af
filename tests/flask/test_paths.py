"""How Flask's paths reach rules: through Werkzeug's slashes, mounts and proxies."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, url_for
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.flask import UpstashMiddleware, exempt, limit

pytestmark = pytest.mark.usefixtures("upstash")
PATIENT: Any = {"deadline": 20.0, "cache_deadline": 20.0}
LOGIN = RateLimitRule("/login", "2/hour")


def app_with(**settings: Any) -> Flask:
    app = Flask("shop", static_folder=None)
    app.add_url_rule("/login", "login", lambda: "logged in", methods=["GET", "POST"])
    app.add_url_rule("/files/<path:rest>", "files", lambda rest: rest)
    app.add_url_rule("/", "root", lambda: "root")
    if settings:
        UpstashMiddleware(app, **{"default_limit": None, **PATIENT, **settings})
    return app


def reaches(app: Flask, *paths: str) -> list[bool]:
    """Return which requests the view of ``/login`` answers; the paths are sent as they are."""
    environs = [{"path": "/", "environ_overrides": {"PATH_INFO": path}} for path in paths]
    return [app.test_client().post(**each).text == "logged in" for each in environs]


def test_every_spelling_that_werkzeug_routes_to_a_view_counts(upstash: Any):
    app = app_with(rate_limits=[LOGIN])
    assert reaches(app, "//login", "///login", "/login", "//login") == [True, True, False, False]


def test_a_path_that_werkzeug_redirects_counts_and_so_does_the_request_that_follows():
    app = app_with(rate_limits=[RateLimitRule("/files/{rest:path}", "2/hour")], default_limit="9/s")
    client = app.test_client()
    assert client.get("/files//a").status_code == 308
    assert client.get("/files/a").status_code == 200
    assert client.get("/files/a").status_code == 429


def test_outside_of_a_dispatcher_its_mounts_are_limited_however_their_slashes_are_written():
    app = app_with()
    app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, {"/shop": app_with()}
    )
    rules = [RateLimitRule("/shop/login", "2/hour")]
    UpstashMiddleware(app, rate_limits=rules, default_limit=None, **PATIENT)
    assert reaches(app, "/shop/login", "/shop//login") == [True, True]
    assert reaches(app, "/shop/login", "/shop//login", "/shop///login") == [False] * 3


def test_inside_of_a_dispatcher_rules_are_written_without_the_mount():
    app = app_with()
    app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, {"/shop": app_with(rate_limits=[LOGIN])}
    )
    assert reaches(app, "/shop/login", "/shop//login", "/shop/login") == [True, True, False]


def test_a_path_that_is_none_counts_for_whatever_the_dispatcher_makes_of_it():
    """RFC 9112 §3.2.1: a path begins with a slash; waitress accepts one that does not."""
    app = app_with()
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {})  # type: ignore[method-assign]
    UpstashMiddleware(app, rate_limits=[LOGIN], default_limit=None, **PATIENT)
    assert reaches(app, "x/login", "x//login", "/login") == [True, True, False]


@pytest.mark.parametrize("outermost", ["proxy", "limit"])
def test_a_prefix_that_a_proxy_forwards_is_in_urls_and_not_in_rules(outermost: str):
    app = app_with()
    app.add_url_rule("/link", "link", lambda: url_for("login"))
    cache = [CacheRule("/link", ttl=60)]
    if outermost == "limit":
        app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    UpstashMiddleware(app, rate_limits=[LOGIN], cache=cache, default_limit=None, **PATIENT)
    if outermost == "proxy":
        app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    client = app.test_client()
    for prefix, reached in (("/a", True), ("/b", True), ("/c", False)):
        response = client.post("/login", headers={"X-Forwarded-Prefix": prefix})
        assert (response.text == "logged in") is reached
    for prefix in ("/a", "/b", "/a"):
        response = client.get("/link", headers={"X-Forwarded-Prefix": prefix}, buffered=True)
        assert response.text == f"{prefix}/login", "no prefix is given the page of another"


def test_an_exempt_view_is_exempt_below_a_prefix_and_in_every_spelling():
    app = app_with(default_limit="1/hour")
    app.add_url_rule("/health", "health", exempt(lambda: "well"))
    for path in ("/health", "//health", "/health"):
        environ = {"PATH_INFO": path, "SCRIPT_NAME": "/shop"}
        assert app.test_client().get("/", environ_overrides=environ).text == "well"


def test_a_limit_of_a_view_counts_every_spelling_and_prefix():
    app = app_with()
    UpstashMiddleware(app, default_limit=None, **PATIENT)
    app.view_functions["login"] = limit("2/hour")(lambda: "logged in")
    assert reaches(app, "//login", "/login", "///login") == [True, True, False]
