"""A limiter in an application: its middleware's settings and connections, and its rules by name."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient as FastAPIClient
from flask import Flask, current_app, request
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from tests.django.project import Urls
from upstash_middleware import (
    ConfigurationError,
    Identifier,
    Limiter,
    MissingCredentials,
    RateLimitRule,
    SyncLimiter,
    form,
    header,
)
from upstash_middleware import django as of_django
from upstash_middleware import fastapi as of_fastapi
from upstash_middleware import flask as of_flask
from upstash_middleware import starlette as of_starlette

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

WHO = "203.0.113.7"
RULES: dict[str, Any] = {
    "deadline": 20.0,
    "default_limit": None,
    "rate_limits": [
        RateLimitRule("/generate", "log 3/h", name="generate", by=header("X-API-Key")),
    ],
}


def starlette_app(handler: Any, **settings: Any) -> Starlette:
    app = Starlette(routes=[Route("/generate", handler), Route("/quota", handler)])
    app.add_middleware(of_starlette.UpstashMiddleware, **{**RULES, **settings})
    return app


def test_an_endpoint_shows_what_is_left_of_a_rule_and_takes_nothing(upstash: LocalUpstash):
    """The rule finds whose quota it is in the request; also before the first limited request."""

    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str((await generate.peek(request)).remaining))

    app = starlette_app(handler)
    generate = Limiter.of(app, "generate")
    with TestClient(app, headers={"X-API-Key": "sesame"}) as client:
        seen = [client.get(path).text for path in ("/quota", "/generate", "/quota", "/quota")]
        assert seen == ["3", "2", "2", "2"]
        assert client.get("/quota", headers={"X-API-Key": "other"}).text == "3"


def test_the_same_in_flask(upstash: LocalUpstash):
    app = Flask("shop", static_folder=None)
    of_flask.UpstashMiddleware(app, **RULES)
    generate = SyncLimiter.of(app, "generate")

    @app.get("/generate")
    @app.get("/quota")
    def handler() -> str:
        return str(generate.peek(request).remaining)

    client = app.test_client()
    fields = {"X-API-Key": "sesame"}
    paths = ("/quota", "/generate", "/quota", "/quota")
    assert [client.get(path, headers=fields).text for path in paths] == ["3", "2", "2", "2"]


@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_the_same_in_django(upstash: LocalUpstash, server: str):
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(SyncLimiter.of(settings, "generate").peek(request).remaining))

    with override_settings(
        MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
        UPSTASH_MIDDLEWARE=RULES,
        ROOT_URLCONF=Urls(generate=view, quota=view),
    ):
        get: Any = Client().get
        if server == "asgi":
            get = async_to_sync(AsyncClient().get)
        paths = ("/quota", "/generate", "/quota", "/quota")
        seen = [get(each, headers={"x-api-key": "sesame"}).content for each in paths]
    assert seen == [b"3", b"2", b"2", b"2"]


@pytest.mark.parametrize("first", [True, False])
def test_limits_in_front_of_handlers_are_reached_by_their_names(upstash: LocalUpstash, first: bool):
    """With their counters, whether or not this process has had a request for the handler."""

    @of_starlette.limit("log 2/h", deadline=20)
    @of_starlette.limit("log 9/h", name="nine", deadline=20)
    async def generate(request: Request) -> PlainTextResponse:
        return PlainTextResponse("generated")

    app = starlette_app(generate, rate_limits=())
    with TestClient(app, client=(WHO, 1)) as client:
        if first:
            client.get("/generate")
        mine = SyncLimiter.of(app, "nine")
        before = mine.peek(Identifier("ip", WHO)).remaining
        client.get("/generate")
        assert before is not None
        assert mine.peek(Identifier("ip", WHO)).remaining == before - 1
        mine.reset(Identifier("ip", WHO))
        assert mine.peek(Identifier("ip", WHO)).remaining == 9
    with pytest.raises(ConfigurationError, match="the application has no limit of this name"):
        SyncLimiter.of(app, "ten").peek("alice")


def test_limits_of_flask_views_are_reached_by_their_names(upstash: LocalUpstash):
    """Through the current application, and through what wraps it."""
    app = Flask("shop", static_folder=None)

    @app.get("/generate")
    @of_flask.limit("log 3/h", name="three", deadline=20)
    def generate() -> str:
        return "generated"

    who = Identifier("ip", "127.0.0.1")
    app.test_client().get("/generate")
    with app.app_context():
        assert SyncLimiter.of(current_app, "three").peek(who).remaining == 2
    assert SyncLimiter.of(app, "three").peek(who).remaining == 2
    of_flask.UpstashMiddleware(app, **RULES)
    assert SyncLimiter.of(app, "three").peek(who).remaining == 2


def test_limits_of_django_views_are_reached_by_their_names(upstash: LocalUpstash):
    from upstash_middleware.django import limit  # noqa: PLC0415 - of the same name

    @limit("log 3/h", name="three", deadline=20)
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("generated")

    setting = {"default_limit": None, "deadline": 20.0}
    with override_settings(ROOT_URLCONF=Urls(generate=view), UPSTASH_MIDDLEWARE=setting):
        three = SyncLimiter.of(settings, "three")
        assert three.peek(Identifier("ip", "127.0.0.1")).remaining == 3
        Client().get("/generate")
        assert three.peek(Identifier("ip", "127.0.0.1")).remaining == 2


def test_dependencies_of_fastapi_are_reached_by_their_names(upstash: LocalUpstash):
    app = FastAPI(dependencies=[Depends(of_fastapi.limit("log 5/h", name="all", deadline=20))])

    @app.get("/generate", dependencies=[Depends(of_fastapi.limit("log 3/h", deadline=20))])
    async def generate() -> str:
        return "generated"

    with FastAPIClient(app, client=(WHO, 1)) as client:
        client.get("/generate")
        everything = SyncLimiter.of(app, "all")
        assert everything.peek(Identifier("ip", WHO)).remaining == 4
        with pytest.raises(ConfigurationError, match=r"it has 'all', '.*generate") as raised:
            SyncLimiter.of(app, "one").peek("alice")
        own = SyncLimiter.of(app, str(raised.value).rpartition(", ")[2].strip("'"))
        assert own.peek(Identifier("ip", WHO)).remaining == 2


def test_a_limiter_counts_as_the_rule_that_it_reaches(upstash: LocalUpstash):
    """What it takes is taken from the requests' quota, and a reset lets them pass at once."""

    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.rate_limit.identifier)

    app = starlette_app(handler)
    generate = SyncLimiter.of(app, "generate")
    with TestClient(app, headers={"X-API-Key": "sesame"}) as client:
        who = Identifier("header.x-api-key", "sesame", secret=True)
        assert client.get("/generate").text == generate.hit(who).identifier
        generate.charge(who, 1)
        assert client.get("/generate").status_code == 429
        generate.reset(who)
        assert client.get("/generate").status_code == 200


@pytest.mark.parametrize(
    ("by", "sent", "who"),
    [
        (form("name"), {"data": {"name": " Ada"}}, "ADA"),
        (header("X-API-Key"), {"headers": {"X-API-Key": "sesame"}}, "sesame"),
        (lambda request: "ada", {}, "ada"),
    ],
    ids=["form", "header", "function"],
)
def test_text_is_the_value_that_the_rule_finds(
    upstash: LocalUpstash, by: Any, sent: dict[str, Any], who: str
):
    """An account that was guessed at is unlocked by its name."""

    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    app = starlette_app(handler, rate_limits=[RateLimitRule(limits="1/h", name="logins", by=by)])
    logins = SyncLimiter.of(app, "logins")
    with TestClient(app) as client:
        assert [client.request("PUT", "/", **sent).status_code for _ in range(2)] == [404, 429]
        assert not logins.peek(who).allowed
        logins.reset(who)
        assert client.request("PUT", "/", **sent).status_code == 404


BODIES: list[tuple[Any, dict[str, Any]]] = [
    ("form:name", {"data": {"name": "Ada"}}),
    ("json:name", {"json": {"name": "Ada"}}),
]


def others(sent: dict[str, Any]) -> dict[str, Any]:
    return {key: {"name": "bob"} for key in sent}


def by_body(by: Any) -> dict[str, Any]:
    return {**RULES, "rate_limits": [RateLimitRule(limits="log 3/h", name="logins", by=by)]}


@pytest.mark.parametrize(("by", "sent"), BODIES, ids=["form", "json"])
@pytest.mark.parametrize("reads", ["nothing", "body", "json", "form", "stream"])
def test_a_handler_s_request_has_its_body(upstash: LocalUpstash, by: Any, sent: Any, reads: str):
    """As far as the endpoint has not read it away; a thread cannot wait for the client."""
    form = "data" in sent

    async def handler(request: Request) -> PlainTextResponse:
        if reads == "stream":
            async for _ in request.stream():
                pass
        elif reads == ("form" if form else "json"):
            await getattr(request, reads)()
        elif reads != "nothing":
            await request.body()
        said = []
        for remaining in (logins_sync.peek, logins.peek):
            try:
                found: Any = remaining(request)
                said.append(str((found if hasattr(found, "rule") else await found).remaining))
            except ValueError as error:
                said.append("error" if "pass the value as text" in str(error) else str(error))
        return PlainTextResponse(" ".join(said))

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    app.add_middleware(of_starlette.UpstashMiddleware, **by_body(by))
    logins, logins_sync = Limiter.of(app, "logins"), SyncLimiter.of(app, "logins")
    with TestClient(app) as client:
        client.post("/", **others(sent))
        expected = {"nothing": "error 2", "stream": "error error"}.get(reads, "2 2")
        assert client.post("/", **sent).text == expected


def test_what_can_have_no_body_is_told_from_what_has_none_at_hand(upstash: LocalUpstash):
    """A handshake counts as it did in the middleware; a connection is no whole request."""
    app = Starlette()
    app.add_middleware(of_starlette.UpstashMiddleware, **by_body("json:name"))
    logins = SyncLimiter.of(app, "logins")
    scope = {"type": "websocket", "path": "/", "headers": []}
    unused: Any = None
    handshake = logins.hit(WebSocket(scope, unused, unused))
    assert handshake.identifier == "json.name=(no%20single%20value)"
    with pytest.raises(ValueError, match="pass the value as text"):
        logins.hit(HTTPConnection({**scope, "type": "http"}))


@pytest.mark.parametrize(("by", "sent"), BODIES, ids=["form", "json"])
@pytest.mark.parametrize("reads", ["nothing", "data", "parsed", "stream"])
def test_a_view_s_request_has_its_body(upstash: LocalUpstash, by: Any, sent: Any, reads: str):
    app = Flask("shop", static_folder=None)
    of_flask.UpstashMiddleware(app, **by_body(by))
    logins = SyncLimiter.of(app, "logins")

    @app.post("/")
    def view() -> str:
        if reads == "stream":
            request.stream.read()
        elif reads == "data":
            request.get_data()
        elif reads == "parsed":
            assert request.form or request.json
        if reads == "stream":
            with pytest.raises(ValueError, match="pass the value as text"):
                logins.peek(request)
            return "error"
        return str(logins.peek(request).remaining)

    client = app.test_client()
    client.post("/", **others(sent))
    assert client.post("/", **sent).text == ("error" if reads == "stream" else "2")


@pytest.mark.parametrize(("by", "sent"), BODIES, ids=["form", "json"])
@pytest.mark.parametrize("reads", ["nothing", "body", "POST", "read"])
def test_a_django_request_has_its_body(upstash: LocalUpstash, by: Any, sent: Any, reads: str):
    def view(request: HttpRequest) -> HttpResponse:
        if reads == "read":
            request.read()
            with pytest.raises(ValueError, match="pass the value as text"):
                SyncLimiter.of(settings, "logins").peek(request)
            return HttpResponse("error")
        if reads != "nothing":
            getattr(request, reads)
        return HttpResponse(str(SyncLimiter.of(settings, "logins").peek(request).remaining))

    with override_settings(
        MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
        UPSTASH_MIDDLEWARE=by_body(by),
        ROOT_URLCONF=Urls(login=view),
    ):
        is_json: dict[str, Any] = {"content_type": "application/json"} if "json" in sent else {}
        for name, expected in (("bob", "2"), ("Ada", "2")):
            answer = Client().post("/login", {"name": name}, **is_json)
            assert answer.content.decode() == ("error" if reads == "read" else expected)


@pytest.mark.parametrize("by", ["user", of_django.user], ids=["text", "function"])
def test_text_is_the_user_s_key_where_a_rule_finds_the_user(upstash: LocalUpstash, by: Any):
    app = starlette_app(lambda _: None, rate_limits=[RateLimitRule(limits="1/h", name="a", by=by)])
    decision = SyncLimiter.of(app, "a").hit("7")
    assert decision.identifier == "user=7"


def test_a_limiter_is_made_before_its_application_starts(upstash: LocalUpstash):
    """At import; it uses the middleware's connections once that serves, and works in a job too."""

    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str((await messages.hit("alice")).remaining))

    app = starlette_app(handler)
    messages = Limiter("log 9/h", name="messages", app=app)
    job = SyncLimiter("log 9/h", name="messages", app=app)
    assert job.hit("alice").remaining == 8
    with TestClient(app) as client:
        assert client.get("/quota").text == "7"
    assert job.hit("alice").remaining == 6


def test_an_application_is_imported_at_the_first_call(
    upstash: LocalUpstash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A module that it imports need not import it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_of_limiters.py").write_text(
        "from starlette.applications import Starlette\n"
        "from upstash_middleware.starlette import UpstashMiddleware\n"
        "app = Starlette()\n"
        "app.add_middleware(UpstashMiddleware, default_limit='log 9/h', deadline=20)\n"
    )
    assert SyncLimiter("log 2/h", name="calls", app="shop_of_limiters:app").hit("a").remaining == 1
    assert SyncLimiter.of("shop_of_limiters:app", "default").peek("a").remaining == 9
    for wrong in ("shop_of_limiters:nothing", "no_such_shop:app", ":app"):
        with pytest.raises(ConfigurationError, match="there is no such application"):
            SyncLimiter("1/h", name="calls", app=wrong).hit("a")


def test_an_application_inside_this_packages_middleware_is_found(upstash: LocalUpstash):
    from upstash_middleware.asgi import UpstashMiddleware  # noqa: PLC0415 - of the same name

    async def bare(scope: Any, receive: Any, send: Any) -> None: ...

    app = UpstashMiddleware(bare, **RULES)
    assert SyncLimiter("log 2/h", name="calls", app=app).hit("alice").remaining == 1
    with pytest.raises(ConfigurationError, match="has no middleware of this package"):
        SyncLimiter("log 2/h", name="calls", app=bare).hit("alice")


def test_flask_s_current_application_is_the_one_of_the_call(upstash: LocalUpstash):
    """A blueprint's limiter serves several applications, here with a prefix each."""
    calls = SyncLimiter("log 9/h", name="calls", app=current_app)
    for prefix in ("one", "two"):
        app = Flask(prefix)
        of_flask.UpstashMiddleware(app, **RULES, prefix=prefix)
        with app.app_context():
            assert calls.hit("alice").remaining == 8


def test_without_middleware_the_environment_names_the_database(upstash: LocalUpstash):
    for app in (Starlette(), Flask("shop")):
        assert SyncLimiter("log 9/h", name=f"calls {app}"[:20], app=app).hit("a").remaining == 8


def test_a_name_of_a_rule_is_taken(upstash: LocalUpstash):
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    app = starlette_app(handler)
    with pytest.raises(
        ConfigurationError, match=r"RateLimitRule has this name already.*Limiter\.of"
    ):
        SyncLimiter("1/h", name="generate", app=app).hit("alice")


def test_a_rule_whose_limits_depend_on_the_request_is_not_reached_by_its_name(upstash):
    app = starlette_app(None, rate_limits=[RateLimitRule(limits=lambda _: "1/h", name="tiers")])
    with pytest.raises(ConfigurationError, match="'tiers': the limits of this rule depend on the"):
        SyncLimiter.of(app, "tiers").peek("alice")


def test_a_limiter_keeps_no_application_alive(upstash: LocalUpstash):
    """Not even one that never starts."""
    gone = []
    for number in range(3):
        app = starlette_app(None)
        SyncLimiter("9/h", name="calls", app=app).hit(number)
        gone.append(weakref.ref(app))
        del app
    gc.collect()
    assert [each() for each in gone] == [None] * 3


def test_flask_s_request_names_whose_quota_a_function_uses(upstash: LocalUpstash):
    app = Flask("shop", static_folder=None)
    of_flask.UpstashMiddleware(app, **RULES)
    calls = SyncLimiter("9/h", name="calls", app=app)

    @calls(by=request)
    def work() -> str:
        return "done"

    app.get("/")(work)
    assert app.test_client().get("/").text == "done"
    assert calls.peek(Identifier("ip", "127.0.0.1")).remaining == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": ""}, "its counters need a name"),
        ({"name": "a:b"}, "a name is printable ASCII without colons"),
        ({"name": "a", "limits": "5/fortnight"}, "5/fortnight"),
        ({"name": "a", "limits": "unlimited"}, "a limiter takes limits of this package"),
        ({"name": "a", "limits": lambda request: "1/h"}, "not a function of a request"),
        ({"name": "a", "path": "/a"}, "there is no such setting"),
        ({"name": "a", "url": "https://x.example", "app": Starlette()}, "url would be ignored"),
        ({"name": "a", "dynamic": True, "limits": "gcra 1/h"}, "only one fixed or sliding window"),
    ],
)
def test_a_wrong_argument_is_refused_where_it_is_written(arguments: dict[str, Any], says: str):
    arguments = {"limits": "1/h", **arguments}
    with pytest.raises(ConfigurationError, match=says):
        SyncLimiter(arguments.pop("limits"), **arguments)


def test_credentials_are_missed_at_the_first_call(monkeypatch: pytest.MonkeyPatch):
    """And not where the limiter is made, which is at import."""
    for name in ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    limiter = SyncLimiter("1/h", name="calls")
    with pytest.raises(MissingCredentials):
        limiter.hit("alice")
