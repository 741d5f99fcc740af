"""``rules check``: mistakes in the rules, and which routes none of them names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.test import override_settings
from django.urls import include, path, re_path
from flask import Blueprint, Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.django.project import Urls
from upstash_middleware import CacheRule, RateLimitRule, flask
from upstash_middleware.decorators import exempt
from upstash_middleware.flask import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Call


def view(**_: Any) -> Any:
    return "page"


def flask_with(*paths: str, **settings: Any) -> Flask:
    app = Flask("shop", static_folder=None)
    for each in paths:
        app.add_url_rule(each, each, view)
    UpstashMiddleware(app, **settings)
    return app


def findings(call: Call, app: object) -> list[str]:
    """Return what is found about an application: ``WHERE: WHAT``."""
    told = call("rules", "check", "--json", application=app).data
    return [f"{one['where']}: {one['what']}" for one in told["findings"]]


def test_the_routes_that_no_rule_names_are_listed(call: Call, shop: str) -> None:
    """Those of mounts too; rules are shown beside the others."""
    told = call("rules", "check", "--app", shop, "--json")
    routes = {one["path"]: one for one in told.data["routes"]}
    assert told.data["unnamed"] == ["/inner/x"]
    assert routes["/api/generate"]["limits"] == ["generate"]
    assert (routes["/products/{id:int}"]["cache"], routes["/inner/x"]["limits"]) == (
        "cache[0]",
        ["default"],
    )
    assert (told.code, call("rules", "check", "--app", shop, "--strict").code) == (0, 1)


def test_flask_s_routes_are_read_from_its_url_map(call: Call) -> None:
    """Converters tell which paths a route serves."""
    app = flask_with(
        *("/products/<int:id>", "/files/<path:rest>", "/about"),
        default_limit=None,
        rate_limits=[RateLimitRule("/products/{id}", "1/s"), RateLimitRule("/files/a/b", "1/s")],
    )
    told = call("rules", "check", "--json", application=app).data
    assert told["unnamed"] == ["/about"]
    (finding,) = told["findings"]
    assert finding["where"] == "default_limit"
    assert "pass unlimited (/about)" in finding["what"]


def test_django_s_routes_are_read_from_its_url_configuration(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Included ones, and regular expressions too; and its system checks are heard."""
    urls: Any = Urls()
    urls.urlpatterns = [
        path("products/<int:id>/", view),
        path("v1/", include([path("tea", view), re_path(r"^y/(?P<year>[0-9]{4})/$", view)])),
    ]
    rules = {
        "default_limit": "9/s",
        "rate_limits": [{"path": "/v1/y/{year}", "limits": "1/s", "name": "years"}],
        "cache": [{"path": "/products/{id}", "ttl": 1}],
    }
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "upstash_middleware.django.UpstashMiddleware",
    ]
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=middleware, UPSTASH_MIDDLEWARE=rules):
        told = call("rules", "check", "--json", application=settings)
    routes = {one["path"]: (one["limits"], one["cache"]) for one in told.data["routes"]}
    assert routes == {
        "/products/<int:id>/": (["default"], "cache[0]"),
        "/v1/tea": (["default"], None),
        "/v1/y/<year>/": (["years"], None),
    }
    assert told.code == 1
    assert [one["where"] for one in told.data["findings"]] == ["upstash_middleware.E002"]


def test_routes_of_included_fastapi_routers_are_listed(
    call: Call, module: Callable[[str], str]
) -> None:
    """FastAPI keeps them apart from its own."""
    name = module("""
from fastapi import APIRouter, FastAPI
from upstash_middleware.starlette import RateLimitMiddleware

router = APIRouter(prefix="/inside")

@router.get("/{item}")
def read(item: str): ...

app = FastAPI(openapi_url=None)
app.include_router(router, prefix="/v1")
app.add_middleware(RateLimitMiddleware, default_limit="1/s")
""")
    told = call("rules", "check", "--app", name, "--json").data
    assert [(one["path"], one["methods"]) for one in told["routes"]] == [
        ("/v1/inside/{item}", ["GET"])
    ]


@pytest.mark.parametrize(
    ("settings", "where", "what"),
    [
        (
            {"rate_limits": [RateLimitRule("/prodcts", "1/s")]},
            "rate_limits[0] '/prodcts'",
            "no route of the application has this path; did you mean '/products'?",
        ),
        (
            {"rate_limits": [RateLimitRule("/product/{id}", "1/s")]},
            "rate_limits[0] '/product/{id}'",
            "no route of the application has this path; did you mean '/products/{id}'?",
        ),
        (
            {"cache": [CacheRule("/shop/v1/products/{id}", ttl=1)]},
            "cache[0] '/shop/v1/products/{id}'",
            "no route of the application has this path; did you mean '/products/{id}'? A rule's",
        ),
        (
            {"rate_limits": [RateLimitRule("/posted", "1/s", methods=("GET",))]},
            "rate_limits[0] 'GET /posted'",
            "covers GET, but the route has POST only",
        ),
        (
            {
                "rate_limits": [
                    RateLimitRule("/products/{id}", "1/s", name="all"),
                    RateLimitRule("/products/new", "1/s", methods=("GET",), name="new"),
                ]
            },
            "rate_limits[1] 'new'",
            "never reached: 'all' comes before it and covers all of it",
        ),
        (
            {"cache": [CacheRule("/{a}/{b}", ttl=1), CacheRule("/products/{id}", ttl=9)]},
            "cache[1] '/products/{id}'",
            "never reached: '/{a}/{b}' comes before it and covers all of it",
        ),
        (
            {"cache": [CacheRule("/posted", ttl=1)]},
            "cache[0] '/posted'",
            "stores GET+HEAD, but the route has POST only",
        ),
    ],
)
def test_a_rule_that_never_applies_is_found(
    call: Call, settings: dict[str, Any], where: str, what: str
) -> None:
    """With where it was set."""
    app = flask_with("/products", "/products/<id>", **{"default_limit": "9/s"} | settings)
    app.add_url_rule("/posted", "posted", view, methods=["POST"])
    assert any(found.startswith(f"{where}: {what}") for found in findings(call, app))


@pytest.mark.parametrize(
    "settings",
    [
        {"rate_limits": [RateLimitRule("/products/{id}", "1/s", when=bool, name="some")]},
        {"rate_limits": [RateLimitRule("/products/{id}", "1/s", methods=("POST",), name="some")]},
        {"rate_limits": [RateLimitRule("/products/{id}", "1/s", shadow=True, name="some")]},
        {"rate_limits": [RateLimitRule("/products/{id}", "1/s", name="some")], "match": "all"},
    ],
)
def test_a_rule_behind_one_that_does_not_take_all_is_none(
    call: Call, settings: dict[str, Any]
) -> None:
    """What a predicate, methods or a shadow leave over comes to the next."""
    rules = [*settings["rate_limits"], RateLimitRule("/products/{id}", "2/s", name="rest")]
    app = flask_with(**settings | {"default_limit": "9/s", "rate_limits": rules})
    app.add_url_rule("/products/<id>", "product", view, methods=["GET", "POST"])
    assert findings(call, app) == []


@pytest.mark.parametrize(
    ("when", "match", "default", "shown"),
    [
        (None, "all", "9/s", "tokens and chats"),
        (None, "all", None, "tokens and chats"),
        (bool, "all", "9/s", "tokens and chats or default"),
        (bool, "first", "9/s", "tokens or chats or default"),
        (None, "first", "9/s", "tokens"),
    ],
)
def test_rules_that_apply_together_are_joined_by_and(
    call: Call, when: Any, match: str, default: str | None, shown: str
) -> None:
    """The default limit is for requests that no rule covers."""
    names = ("tokens", "chats")
    rules = [RateLimitRule("/chat", "1/s", name=name, when=when) for name in names]
    app = flask_with("/chat", rate_limits=rules, match=match, default_limit=default)
    told = call("rules", "check", application=app)
    (line,) = [line for line in told.out.splitlines() if "/chat" in line and "warning" not in line]
    assert re.split(r"\s{2,}", line.strip())[2] == shown
    (route,) = call("rules", "check", "--json", application=app).data["routes"]
    assert route["limits"] == re.split(" and | or ", shown)


@pytest.mark.parametrize("match", ["all", "first"])
def test_a_default_limit_beside_a_rule_for_everything_never_applies(call: Call, match: str) -> None:
    everything = RateLimitRule(None, "9/s", name="application")
    app = flask_with("/x", match=match, rate_limits=[everything], default_limit="1/s")
    (finding,) = findings(call, app)
    assert finding.startswith("default_limit: never applies: the rule 'application' names every")


def test_without_a_default_limit_a_rule_for_everything_leaves_nothing_unlimited(call: Call) -> None:
    assert (
        findings(
            call, flask_with("/x", rate_limits=[RateLimitRule(None, "9/s")], default_limit=None)
        )
        == []
    )
    some = RateLimitRule(None, "9/s", methods=("POST",))
    (finding,) = findings(call, flask_with("/x", rate_limits=[some], default_limit=None))
    assert "pass unlimited" in finding


def test_a_rule_for_other_hosts_hides_none(call: Call) -> None:
    rules = [
        RateLimitRule("/x", "1/s", hosts=("api.example.com",), name="api"),
        RateLimitRule("/x", "9/s", name="others"),
    ]
    assert findings(call, flask_with("/x", rate_limits=rules, default_limit="9/s")) == []


def test_the_limits_of_a_handler_apply_together_with_those_of_rules(call: Call) -> None:
    """They are joined by and, whatever ``match`` is."""
    app = flask_with(default_limit="9/s")
    app.add_url_rule("/login", "login", flask.limit("1/s", name="logins")(view))
    assert "default and logins" in call("rules", "check", application=app).out


def test_rules_outside_of_werkzeug_s_mounts_name_their_routes(call: Call) -> None:
    """With the path of the mount; a middleware inside of the dispatcher sees none of them."""
    rules = [RateLimitRule("/sub/products/{id}", "1/s"), RateLimitRule("/wsgi/x/y", "1/s")]
    sub = flask_with("/products/<int:id>", default_limit="9/s")
    mounts: Any = {"/sub": sub, "/wsgi": lambda environ, start_response: []}
    app = Flask("shop", static_folder=None)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
    UpstashMiddleware(app, default_limit="9/s", rate_limits=rules)
    assert findings(call, app) == []
    app = Flask("shop", static_folder=None)
    UpstashMiddleware(app, default_limit="9/s", rate_limits=rules)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
    assert [each.partition(";")[0] for each in findings(call, app)] == [
        f"rate_limits[{index}] {rule.path!r}: no route of the application has this path"
        for index, rule in enumerate(rules)
    ]


def test_a_rule_for_what_fastapi_mounts_is_served(call: Call, module: Callable[[str], str]) -> None:
    """All paths below a mounted application without routes, such as Prometheus's."""
    name = module("""
from fastapi import FastAPI
from upstash_middleware import RateLimitRule
from upstash_middleware.fastapi import UpstashMiddleware

async def metrics(scope, receive, send): ...

app = FastAPI(openapi_url=None)
app.mount("/metrics", metrics)
app.add_middleware(
    UpstashMiddleware,
    default_limit="5/minute",
    rate_limits=[RateLimitRule("/metrics/{rest:path}", "unlimited")],
)
""")
    told = call("rules", "check", "--app", name, "--json").data
    assert told["findings"] == []
    assert [one["path"] for one in told["routes"]] == ["/metrics/{path:path}"]


def test_a_finding_shows_the_path_of_its_rule_as_it_is_written(call: Call) -> None:
    app = flask_with(
        "/about", default_limit="9/s", rate_limits=[RateLimitRule("/files/{rest:path}", "1/s")]
    )
    (found,) = findings(call, app)
    assert found.startswith("rate_limits[0] '/files/{rest:path}': no route")


def test_a_rule_for_a_websocket_is_named(call: Call, module: Callable[[str], str]) -> None:
    """Its handshake is a GET."""
    name = module("""
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from upstash_middleware import RateLimitRule
from upstash_middleware.starlette import RateLimitMiddleware

async def talk(websocket): ...

app = Starlette(routes=[WebSocketRoute("/talk/{room}", talk)])
app.add_middleware(
    RateLimitMiddleware, default_limit="9/s", rate_limits=[RateLimitRule("/talk/{room}", "1/s")]
)
""")
    told = call("rules", "check", "--app", name, "--json").data
    assert (told["findings"], told["unnamed"]) == ([], [])
    assert [(one["path"], one["methods"]) for one in told["routes"]] == [("/talk/{room}", [])]


def test_two_middlewares_that_count_each_request_are_a_mistake(call: Call) -> None:
    """Exit code 1, without --strict."""
    app = flask_with(default_limit="9/s")
    UpstashMiddleware(app, default_limit="9/s")
    told = call("rules", "check", application=app)
    assert told.code == 1
    assert "error: middleware: two middlewares count each request; keep one of them" in told.out


def test_an_exempt_handler_is_shown_as_such(call: Call) -> None:
    """Nothing has to name it."""
    app = flask_with(default_limit="9/s")
    app.add_url_rule("/health", "health", exempt(lambda: "well"))
    told = call("rules", "check", "--json", application=app).data
    assert (told["routes"][0]["limits"], told["unnamed"]) == (["exempt"], [])


def test_the_handlers_of_an_exempt_blueprint_are_shown_as_exempt(call: Call) -> None:
    app, blueprint = flask_with(default_limit="9/s"), Blueprint("shop", __name__)
    blueprint.add_url_rule("/in", "in", view)
    app.register_blueprint(exempt(blueprint))
    told = call("rules", "check", "--json", application=app).data
    assert told["routes"][0]["limits"] == ["exempt"]


def test_limits_in_front_of_handlers_name_their_routes(call: Call) -> None:
    """As decorators, and before the requests of a blueprint."""
    app, blueprint = flask_with(default_limit=None), Blueprint("shop", __name__)
    blueprint.before_request(flask.limit("9/s", name="all of it"))
    blueprint.add_url_rule("/in", "in", view)
    app.register_blueprint(blueprint)
    app.add_url_rule("/login", "login", flask.limit("1/s", name="login")(view))
    app.add_url_rule("/free", "free", view)
    told = call("rules", "check", "--json", application=app).data
    names = {one["path"]: one["handler_limits"] for one in told["routes"]}
    assert names == {"/in": ["all of it"], "/login": ["login"], "/free": []}
    assert told["unnamed"] == ["/free"]
    assert "unlimited (/free)" in told["findings"][0]["what"]


def test_limits_that_starlette_s_and_fastapi_s_routes_have_are_named(
    call: Call, module: Callable[[str], str]
) -> None:
    """Endpoints and their methods; dependencies of routes and of routers."""
    name = module("""
from fastapi import APIRouter, Depends, FastAPI
from starlette.endpoints import HTTPEndpoint
from upstash_middleware import fastapi, starlette

router = APIRouter(prefix="/r", dependencies=[Depends(fastapi.limit("9/s", name="router"))])

@router.get("/x", dependencies=[Depends(fastapi.limit("1/s", name="route"))])
def x(): ...

@starlette.limit("1/s")
async def plain(request): ...

class Thing(HTTPEndpoint):
    @starlette.limit("1/s", name="posted")
    async def post(self, request): ...

app = FastAPI(openapi_url=None)
app.include_router(router)
app.add_route("/plain", plain)
app.add_route("/thing", Thing)
app.add_middleware(starlette.RateLimitMiddleware, default_limit="9/s")
""")
    told = call("rules", "check", "--app", name, "--json").data
    assert {one["path"]: sorted(one["handler_limits"]) for one in told["routes"]} == {
        "/r/x": ["route", "router"],
        "/plain": [f"{name}.plain"],
        "/thing": ["posted"],
    }
    assert told["unnamed"] == []


def test_a_rule_file_is_checked_by_itself(call: Call, tmp_path: Path) -> None:
    """TOML, by the names that the settings have."""
    file = tmp_path / "rules.toml"
    file.write_text("""
default_limit = "100/minute"

[[rate_limits]]
path = "/login"
limits = "5/minute"

[[cache]]
path = "/products/{id}"
ttl = 60
tags = ["product:{id}"]
""")
    told = call("rules", "check", "--config", str(file), "--json")
    assert (told.code, told.data["findings"], told.data["routes"]) == (0, [], None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('default_limt = "1/s"', "['default_limt']: there is no such setting; did you mean"),
        ('default_limit = "1 per fortnight"', "1 per fortnight"),
        ("default_limit = ", "is not TOML: "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_rule_file_is_an_exit_code_of_3_and_named(
    call: Call, tmp_path: Path, text: str | None, says: str
) -> None:
    """With the setting that is wrong."""
    file = tmp_path / "rules.toml"
    if text is not None:
        file.write_text(text)
    told = call("rules", "check", "--config", str(file))
    assert (told.code, says in told.err, "rules.toml" in told.err) == (3, True, True), told.err
