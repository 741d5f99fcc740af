"""RFC 5861 §3: a background revalidation's environ and context have nothing of the visitor."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from flask import Flask, request

from tests.wsgi.fakes import TEXT, environ_of, served
from upstash_middleware import CacheRule
from upstash_middleware.flask import UpstashMiddleware as FlaskMiddleware
from upstash_middleware.wsgi import CacheMiddleware, RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.local import LocalUpstash

PAGE = CacheRule("/{rest:path}", ttl=10, stale_while_revalidate=60, ignore_query=("who",))
PATIENT: Any = {"deadline": 20.0, "cache_deadline": 20.0}
visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


def knowing(name: str, app: WSGIApplication) -> WSGIApplication:
    """Stand outside of an application and tell it who the visitor is, wherever that is done."""

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        visitor.set(name)
        told = {
            **dict.fromkeys(("SSL_CLIENT_S_DN", "HTTP_X_USER_AGENT", "beaker.session"), name),
            "REMOTE_ADDR": name,
            "REMOTE_PORT": name,
            "QUERY_STRING": f"who={name}&size=2",
            "RAW_URI": f"/tea?who={name}&size=2",
            "REQUEST_URI": f"/tea?who={name}&size=2",
        }
        return app({**environ, **told}, start_response)

    return middleware


def test_its_environ_and_its_context_variables_are_nobodys(upstash: LocalUpstash):
    environs: list[dict[str, Any]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environs.append({**environ, "variable": visitor.get()})
        start_response("200 OK", TEXT)
        return [b"page"]

    cache = CacheMiddleware(validator(app), cache=[PAGE], **PATIENT)
    limited = RateLimitMiddleware(cache, default_limit="9/minute", **PATIENT)
    served(knowing("ada", limited), environ_of(path="/tea"))
    upstash.advance(20)
    served(knowing("bob", limited), environ_of(path="/tea"))
    cache.runtime.close()
    limited.runtime.close()
    first, second = environs
    assert first["variable"] == first["REMOTE_ADDR"] == "ada"
    assert second["variable"] == "nobody"
    assert second["REMOTE_ADDR"] == ""
    assert not {"REMOTE_PORT", "SSL_CLIENT_S_DN", "beaker.session"} & set(second)
    assert second["QUERY_STRING"] == "size=2"
    assert second["RAW_URI"] == second["REQUEST_URI"] == "/tea?size=2"
    assert second["upstash_middleware.rate_limit"].settled_by == "unchecked"
    assert second["upstash_middleware.cache"] is cache.runtime
    same = ("PATH_INFO", "SCRIPT_NAME", "SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme")
    assert [second[name] for name in same] == [first[name] for name in same]
    assert "bob" not in repr(second)


@pytest.mark.parametrize("stored_first", [False, True])
def test_the_client_has_the_whole_stale_response_before_it_is_revalidated(
    upstash: LocalUpstash, stored_first: bool
):
    calls: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        calls.append(environ["PATH_INFO"])
        start_response("200 OK", TEXT)
        return [b"page"]

    cache = CacheMiddleware(app, cache=[PAGE], cache_store_first=stored_first, **PATIENT)
    served(cache, environ_of(path="/tea"))
    upstash.advance(20)
    body = iter(cache(environ_of(path="/tea"), lambda *_: lambda _: None))
    assert (next(body), len(calls)) == (b"page", 1)
    assert (next(body, None), len(calls)) == (None, 2)
    cache.runtime.close()


@pytest.mark.parametrize("kind", ["wsgi", "flask"])
def test_a_page_for_a_user_whom_the_server_has_authenticated_is_sent_to_nobody_else(
    upstash: LocalUpstash, kind: str
):
    """REMOTE_USER (RFC 3875 §4.1.11); servers may keep Authorization to themselves."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        return [environ.get("REMOTE_USER", "nobody").encode()]

    flask_app = Flask("shop")
    flask_app.add_url_rule("/tea", "tea", lambda: request.remote_user or "nobody")
    rules = [CacheRule("/tea", ttl=60)]
    site: Any
    if kind == "flask":
        FlaskMiddleware(flask_app, cache=rules, **PATIENT)
        site = flask_app
        runtimes = [each.runtime for each in flask_app.extensions["upstash_middleware"].values()]
    else:
        site = CacheMiddleware(app, cache=rules, **PATIENT)
        runtimes = [site.runtime]
    ada = served(site, environ_of(path="/tea", REMOTE_USER="ada"))
    assert "request with Remote-User" in str([value for _, value in ada.fields])
    assert served(site, environ_of(path="/tea")).body == b"nobody"
    for runtime in runtimes:
        runtime.close()
