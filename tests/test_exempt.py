"""``exempt`` frees whatever a framework routes requests to, and refuses what it cannot free.

The middleware allows one request an hour, as does the limit in front of each handler: whatever
answers three requests is exempt from both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import APIRouter, Depends, FastAPI
from flask import Blueprint, Flask, g
from flask.views import MethodView
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router
from starlette.testclient import TestClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.django.project import Urls
from upstash_middleware import ConfigurationError, django, fastapi, flask, starlette

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.usefixtures("upstash")

FREE, DENIED = [200, 200, 200], [200, 429, 429]
MIDDLEWARE: dict[str, Any] = {"default_limit": "1/hour", "deadline": 20.0}


def limited(framework: Any, handler: Any) -> Any:
    return framework.limit("1/hour", deadline=20.0)(handler)


# -- Starlette


def endpoint(name: str) -> Any:
    async def answer(_: Any) -> PlainTextResponse:
        return PlainTextResponse(name)

    answer.__qualname__ = answer.__name__ = name
    return limited(starlette, answer)


def visit_starlette(app: Any, url: str, *, around: bool, method: str = "GET") -> list[int]:
    """Return the statuses of three requests, with and without the middleware around."""
    served = starlette.UpstashMiddleware(app, **MIDDLEWARE) if around else app
    with TestClient(served, client=("203.0.113.9", 1)) as client:
        return [client.request(method, url).status_code for _ in range(3)]


def mounted(*routes: Any) -> Any:
    return Starlette(routes=routes)


class Health(HTTPEndpoint):
    """Exempt by one of its methods."""

    @starlette.exempt
    @starlette.limit("1/hour", deadline=20.0)
    async def get(self, _: Any) -> PlainTextResponse:
        """Say that all is well."""
        return PlainTextResponse("well")

    @starlette.limit("1/hour", deadline=20.0)
    async def post(self, _: Any) -> PlainTextResponse:
        """Be limited."""
        return PlainTextResponse("posted")


def exempt_application() -> Any:
    return mounted(
        Mount("/in", starlette.exempt(mounted(Route("/side", endpoint("a"))))),
        Route("/out", endpoint("b")),
    )


def exempt_application_behind_middleware() -> Any:
    inside = starlette.exempt(mounted(Route("/side", endpoint("c"))))
    return mounted(
        Mount("/in", inside, middleware=[Middleware(GZipMiddleware)]), Route("/out", endpoint("d"))
    )


def exempt_router() -> Any:
    router = starlette.exempt(Router(routes=[Route("/side", endpoint("e"))]))
    return mounted(Mount("/in", router), Route("/out", endpoint("f")))


def exempt_application_with_a_mount_in_it() -> Any:
    inside = mounted(Mount("/si", routes=[Route("/de", endpoint("g"))]))
    starlette.exempt(inside)
    return mounted(
        Mount("/in", inside), Route("/in/si/de", endpoint("x")), Route("/out", endpoint("h"))
    )


STARLETTE: dict[str, tuple[Callable[[], Any], str]] = {
    "application": (exempt_application, "/in/side"),
    "application behind middleware": (exempt_application_behind_middleware, "/in/side"),
    "router": (exempt_router, "/in/side"),
    "application with a mount in it": (exempt_application_with_a_mount_in_it, "/in/si/de"),
}


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
@pytest.mark.parametrize("kind", STARLETTE)
def test_what_starlette_mounts_is_exempt_with_all_in_it(kind: str, around: bool):
    make, inside = STARLETTE[kind]
    assert visit_starlette(make(), inside, around=around) == FREE
    assert visit_starlette(make(), "/out", around=around) == DENIED


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
def test_one_method_of_a_starlette_endpoint_is_exempt(around: bool):
    app = mounted(Route("/health", Health))
    assert visit_starlette(app, "/health", around=around) == FREE
    assert visit_starlette(app, "/health", around=around, method="POST") == DENIED


# -- FastAPI


def guard() -> Any:
    return Depends(fastapi.limit("1/hour", deadline=20.0))


def with_router(*, nested: bool, late: bool) -> Any:
    app = FastAPI(dependencies=[guard()])
    router = APIRouter(prefix="/in")
    inner = APIRouter() if nested else router
    if not late:
        fastapi.exempt(router)

    @inner.get("/side")
    async def side() -> str:
        return "in"

    if nested:
        router.include_router(inner)
    app.include_router(router)
    if late:
        fastapi.exempt(router)

    @app.get("/out")
    async def out() -> str:
        return "out"

    return app


def with_application() -> Any:
    app, inside = FastAPI(), fastapi.exempt(FastAPI(dependencies=[guard()]))

    @inside.get("/side")
    async def side() -> str:
        return "in"

    @app.get("/out", dependencies=[guard()])
    async def out() -> str:
        return "out"

    app.mount("/in", inside)
    return app


FASTAPI: dict[str, Callable[[], Any]] = {
    "router": lambda: with_router(nested=False, late=False),
    "router, marked late": lambda: with_router(nested=False, late=True),
    "router in a router": lambda: with_router(nested=True, late=False),
    "application": with_application,
}


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
@pytest.mark.parametrize("kind", FASTAPI)
def test_what_fastapi_includes_or_mounts_is_exempt_with_all_in_it(kind: str, around: bool):
    app = FASTAPI[kind]()
    assert visit_starlette(app, "/in/side", around=around) == FREE
    assert visit_starlette(app, "/out", around=around) == DENIED


# -- Flask


class HealthView(MethodView):
    """Exempt by one of its methods."""

    decorators = (flask.limit("1/hour", deadline=20.0),)  # type: ignore[assignment]

    @flask.exempt
    def get(self) -> str:
        """Say that all is well."""
        return "well"

    def post(self) -> str:
        """Be limited."""
        return "posted"


def visit_flask(app: Flask, url: str, method: str = "GET") -> list[int]:
    client = app.test_client()
    return [client.open(url, method=method, buffered=True).status_code for _ in range(3)]


def flask_app(*, around: bool) -> Flask:
    app = Flask("shop")
    if around:
        flask.UpstashMiddleware(app, **MIDDLEWARE)
    outer, inner = Blueprint("outer", "shop"), Blueprint("inner", "shop")
    outer.before_request(flask.limit("1/hour", deadline=20.0))
    outer.add_url_rule("/side", "side", limited(flask, lambda: "in"))
    inner.add_url_rule("/inner", "side", limited(flask, lambda: "in"))
    outer.register_blueprint(inner)
    app.register_blueprint(flask.exempt(outer), url_prefix="/in")
    other = Blueprint("other", "shop")
    other.add_url_rule("/out", "side", limited(flask, lambda: "out"))
    app.register_blueprint(other)
    app.add_url_rule("/health", view_func=HealthView.as_view("health"))
    return app


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
def test_a_blueprint_is_exempt_with_those_inside_of_it(around: bool):
    app = flask_app(around=around)
    assert visit_flask(app, "/in/side") == visit_flask(app, "/in/inner") == FREE
    assert visit_flask(app, "/out") == DENIED


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
def test_one_method_of_a_flask_view_class_is_exempt(around: bool):
    app = flask_app(around=around)
    assert visit_flask(app, "/health") == visit_flask(app, "/health", "HEAD") == FREE
    assert visit_flask(app, "/health", "POST") == DENIED


def flask_app_with_an_exempt_page(kind: type[Flask] = Flask) -> Flask:
    app = kind("shop")
    app.add_url_rule("/<path:rest>", view_func=flask.exempt(lambda rest: "free"), endpoint="spa")
    app.add_url_rule("/<path:rest>", view_func=lambda rest: "work", methods=["POST"], endpoint="do")
    return app


def another_application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"another"]


def test_a_page_behind_a_wrapper_that_calls_another_application_is_not_free():
    app = flask_app_with_an_exempt_page()
    wrapped = DispatcherMiddleware(app.wsgi_app, {"/api": another_application})
    app.wsgi_app = wrapped  # type: ignore[method-assign]
    flask.UpstashMiddleware(app, **MIDDLEWARE)
    assert visit_flask(app, "/api/login") == DENIED


def test_what_a_wrapper_makes_of_a_free_method_is_not_free():
    app = flask_app_with_an_exempt_page()
    inside = app.wsgi_app

    def overriding(environ: Any, start_response: Any) -> Any:
        environ["REQUEST_METHOD"] = environ.get("HTTP_X_METHOD", environ["REQUEST_METHOD"])
        return inside(environ, start_response)

    app.wsgi_app = overriding  # type: ignore[method-assign]
    flask.UpstashMiddleware(app, **MIDDLEWARE)
    client = app.test_client()
    answers = [client.get("/page", headers={"X-Method": "POST"}, buffered=True) for _ in range(3)]
    assert [answer.status_code for answer in answers] == DENIED


class Overriding(Flask):
    """Changes the method before Flask routes a request."""

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """Run the application by the method that a header names."""
        environ["REQUEST_METHOD"] = environ.get("HTTP_X_METHOD", environ["REQUEST_METHOD"])
        return super().wsgi_app(environ, start_response)


def test_what_a_class_of_its_own_makes_of_a_free_method_is_not_free():
    app = flask_app_with_an_exempt_page(Overriding)
    flask.UpstashMiddleware(app, **MIDDLEWARE)
    client = app.test_client()
    answers = [client.get("/page", headers={"X-Method": "POST"}, buffered=True) for _ in range(3)]
    assert [answer.status_code for answer in answers] == DENIED


def test_guesses_at_the_purge_token_are_not_free_because_a_page_is():
    app = flask_app_with_an_exempt_page()
    purging: dict[str, Any] = {
        "purge_path": "/internal/purge",
        "purge_token": "t" * 32,
        "cache": [{"path": "/x"}],
    }
    flask.UpstashMiddleware(app, **MIDDLEWARE, **purging)
    assert visit_flask(app, "/internal/purge") == [405, 429, 429]


def test_behind_proxy_fix_a_page_is_free():
    app = flask_app_with_an_exempt_page()
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    flask.UpstashMiddleware(app, **MIDDLEWARE)
    assert visit_flask(app, "/page") == FREE


@pytest.mark.parametrize("changed", ["path", "method"])
def test_where_middleware_of_starlette_reroutes_nothing_is_free_from_then_on(
    changed: str, caplog: pytest.LogCaptureFixture
):
    class Rerouting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and (given := dict(scope["headers"]).get(b"x-other")):
                scope[changed] = given.decode()
            await self.app(scope, receive, send)

    async def free(_: Any) -> PlainTextResponse:
        return PlainTextResponse("free")

    async def work(_: Any) -> PlainTextResponse:
        return PlainTextResponse("work")

    other = {"path": "/work", "method": "POST"}[changed]
    app = Starlette(
        routes=[
            Route("/page", starlette.exempt(free)),
            Route("/page", work, methods=["POST"]),
            Route("/work", work),
        ],
        middleware=[Middleware(starlette.UpstashMiddleware, **MIDDLEWARE), Middleware(Rerouting)],
    )
    with TestClient(app, client=("203.0.113.9", 1)) as client:
        assert client.get("/page").text == "free"
        answers = [client.get("/page", headers={"x-other": other}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, *DENIED]
    assert "also count requests to exempt handlers" in caplog.text


# -- Django, and Django REST framework


def page(_: Any, **__: Any) -> HttpResponse:
    return HttpResponse("page")


@method_decorator(django.limit("1/hour", deadline=20.0), name="dispatch")
class Page(View):
    """Exempt by one of its methods."""

    @method_decorator(django.exempt)
    def get(self, request: Any) -> HttpResponse:
        """Say that all is well."""
        return page(request)

    def post(self, request: Any) -> HttpResponse:
        """Be limited."""
        return page(request)


def django_views() -> dict[str, Any]:
    from rest_framework.decorators import action, api_view, throttle_classes  # noqa: PLC0415
    from rest_framework.response import Response  # noqa: PLC0415
    from rest_framework.views import APIView  # noqa: PLC0415
    from rest_framework.viewsets import ViewSet  # noqa: PLC0415

    from upstash_middleware.django.rest_framework import throttle  # noqa: PLC0415

    throttles = [throttle("1/hour", deadline=20.0)]

    @django.exempt
    class Whole(View):
        @django.limit("1/hour", deadline=20.0)
        def get(self, request: Any) -> HttpResponse:
            return page(request)

    @django.exempt
    class Set(ViewSet):
        throttle_classes = throttles

        def list(self, _request: Any) -> Response:
            return Response("in")

    class Actions(ViewSet):
        throttle_classes = throttles

        @django.exempt
        @action(detail=False)
        def free(self, _request: Any) -> Response:
            return Response("in")

        def list(self, _request: Any) -> Response:
            return Response("out")

    class Rest(APIView):
        throttle_classes = throttles

        @django.exempt
        def get(self, _request: Any) -> Response:
            return Response("in")

        def post(self, _request: Any) -> Response:
            return Response("out")

    @api_view(["GET"])
    @throttle_classes(throttles)
    @django.exempt
    def below(_request: Any) -> Response:
        return Response("in")

    @django.exempt
    @api_view(["GET"])
    @throttle_classes(throttles)
    def above(_request: Any) -> Response:
        return Response("in")

    return {
        "class": Whole.as_view(),
        "set": Set.as_view({"get": "list"}),
        "action": Actions.as_view({"get": "free"}),
        "actions": Actions.as_view({"get": "list"}),
        "rest": Rest.as_view(),
        "below": below,
        "above": above,
        "method": Page.as_view(),
        "out": limited(django, page),
    }


def visit_django(url: str, *, around: bool, method: str = "GET") -> list[int]:
    settings = {
        "MIDDLEWARE": ["upstash_middleware.django.UpstashMiddleware"] if around else [],
        "ROOT_URLCONF": Urls(**django_views()),
        "UPSTASH_MIDDLEWARE": MIDDLEWARE if around else {},
    }
    with override_settings(**settings):
        client = Client(REMOTE_ADDR="203.0.113.9")
        return [client.generic(method, url).status_code for _ in range(3)]


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
@pytest.mark.parametrize("name", ["class", "set", "action", "rest", "below", "above", "method"])
def test_classes_of_django_their_methods_and_actions_are_exempt(name: str, around: bool):
    assert visit_django(f"/{name}", around=around) == FREE


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "no middleware"])
@pytest.mark.parametrize(
    ("name", "method"), [("out", "GET"), ("actions", "GET"), ("rest", "POST"), ("method", "POST")]
)
def test_what_is_beside_them_is_limited(name: str, method: str, around: bool):
    assert visit_django(f"/{name}", around=around, method=method) == DENIED


@pytest.mark.parametrize("how", ["urlconf", "path_info", "method"])
def test_where_middleware_of_django_reroutes_nothing_is_free_from_then_on(
    how: str, caplog: pytest.LogCaptureFixture
):
    class Tenant:
        urlpatterns: ClassVar[list[Any]] = [path("page", page)]

    class Both(View):
        """Exempt by one of its methods, and routed to at another path by another view."""

        @method_decorator(django.exempt)
        def get(self, request: Any) -> HttpResponse:
            return HttpResponse("free")

        def post(self, request: Any) -> HttpResponse:
            return HttpResponse("work")

    def rerouting(get_response: Any) -> Any:
        def middleware(request: Any) -> Any:
            if "HTTP_X_OTHER" in request.META:
                other = {"urlconf": Tenant, "path_info": "/work", "method": "POST"}[how]
                setattr(request, how, other)
            return get_response(request)

        return middleware

    globals()[f"rerouting_{how}"] = rerouting  # what was seen is remembered by the setting
    settings = {
        "MIDDLEWARE": [
            "upstash_middleware.django.UpstashMiddleware",
            f"{__name__}.rerouting_{how}",
        ],
        "ROOT_URLCONF": Urls(page=Both.as_view(), work=page),
        "UPSTASH_MIDDLEWARE": MIDDLEWARE,
    }
    with override_settings(**settings):
        client = Client(REMOTE_ADDR="203.0.113.9")
        assert [client.get("/page").status_code for _ in range(3)] == FREE
        answers = [client.get("/page", headers={"x-other": "1"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, *DENIED]
    assert "also count requests to exempt handlers" in caplog.text


# -- What cannot be exempt


class Slotted:
    """A handler that takes no marks."""

    __slots__ = ()

    def __call__(self, _request: Any) -> None:
        """Handle it."""


REFUSED: dict[str, tuple[Any, str]] = {
    "Flask application": (Flask("shop"), "mark its views or blueprints, or write a rule"),
    "list of URL patterns": ([path("a", page)], "mark each view of the list, or write a rule"),
    "include()": (include([path("a", page)]), "mark each view that include() lists"),
    "path()": (path("a", page), "mark its view"),
    "path() of include()": (path("a/", include([path("a", page)])), "mark each of its views"),
    "Starlette's Mount": (Mount("/a", routes=[]), "mark its endpoint, or the application"),
    "Starlette's Route": (Route("/a", page), "mark its endpoint"),
    "name": ("health", "pass the handler itself"),
    "bound method": (Page().get, "mark the function in its class"),
    "number": (7, "a int is not a handler"),
    "object without room for a mark": (Slotted(), "cannot be marked"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_limit_could_know_again_is_refused_with_what_to_write(kind: str):
    given, instead = REFUSED[kind]
    with pytest.raises(ConfigurationError, match=r"^exempt\(") as raised:
        django.exempt(given)
    assert instead in str(raised.value)


# -- What an exempt handler reads


def read_in_starlette(seen: list[Any]) -> Callable[[], object]:
    async def handler(request: Any) -> PlainTextResponse:
        seen.append(request.state.rate_limit)
        return PlainTextResponse("well")

    app = Starlette(routes=[Route("/health", starlette.exempt(handler))])
    app.add_middleware(starlette.UpstashMiddleware, **MIDDLEWARE)
    return lambda: TestClient(app).get("/health")


def read_in_flask(seen: list[Any]) -> Callable[[], object]:
    app = Flask("shop", static_folder=None)

    @app.get("/health")
    @flask.exempt
    def health() -> str:
        seen.append(g.rate_limit)
        return "well"

    flask.UpstashMiddleware(app, **MIDDLEWARE)
    return lambda: app.test_client().get("/health")


def read_in_django(seen: list[Any]) -> Callable[[], object]:
    @django.exempt
    def view(request: Any) -> HttpResponse:
        seen.append(request.rate_limit)
        return HttpResponse()

    def visit() -> None:
        with override_settings(
            ROOT_URLCONF=Urls(health=view),
            MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
            UPSTASH_MIDDLEWARE=MIDDLEWARE,
        ):
            Client().get("/health")

    return visit


@pytest.mark.parametrize("read", [read_in_starlette, read_in_flask, read_in_django])
def test_an_exempt_handler_reads_a_decision_without_figures(
    read: Callable[[list[Any]], Callable[[], object]],
):
    """So that a function which is used in front of both kinds needs no guard."""
    seen: list[Any] = []
    read(seen)()
    (decision,) = seen
    assert (decision.allowed, decision.settled_by) == (True, "unchecked")
    assert (decision.limit, decision.remaining, decision.reset, decision.retry_after) == (
        *(None, None, None, None),
    )
