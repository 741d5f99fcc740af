"""Views of Django REST framework: throttled by this package, and denied in their own format."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.test import Client, override_settings
from django.utils.decorators import method_decorator
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import action, api_view, renderer_classes, throttle_classes
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.views import APIView, exception_handler
from rest_framework.viewsets import ViewSet

from tests.django.project import Urls
from upstash_middleware import ConfigurationError, header
from upstash_middleware.django import exempt, limit, user
from upstash_middleware.django.rest_framework import RateLimitExceeded, throttle
from upstash_middleware.django.signals import rate_limited
from upstash_middleware.routes import django_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.usefixtures("upstash")

DENIED_VIEW = "upstash_middleware.django.rest_framework.denied"


@contextmanager
def project(
    *middleware: str,
    mapping: dict[str, Any] | None = None,
    rest: dict[str, Any] | None = None,
    **views: Callable[..., Any],
) -> Iterator[Client]:
    """Configure a project of these views, and return a client of it."""
    configured = {
        "MIDDLEWARE": [f"upstash_middleware.django.{name}" for name in middleware],
        "ROOT_URLCONF": Urls(**views),
        "UPSTASH_MIDDLEWARE": mapping or {},
        "UPSTASH_MIDDLEWARE_DENIED_VIEW": DENIED_VIEW,
        "REST_FRAMEWORK": settings.REST_FRAMEWORK | (rest or {}),
    }
    with override_settings(**configured):
        yield Client(REMOTE_ADDR="203.0.113.9")


def statuses(client: Client, path: str, times: int = 3, **headers: str) -> list[int]:
    return [client.get(path, headers=headers).status_code for _ in range(times)]


class Tea(APIView):
    throttle_classes = (throttle("2/hour"),)

    def get(self, request: Any) -> Response:
        return Response({"left": request.rate_limit.remaining})


def test_a_view_is_throttled_and_its_responses_say_so():
    with project(tea=Tea.as_view()) as client:
        first, second, denied = (client.get("/tea") for _ in range(3))
    assert (first.json(), second.json()) == ({"left": 1}, {"left": 0})
    assert first["X-RateLimit-Remaining"] == "1"
    assert first["RateLimit"].startswith(f'"{__name__}.Tea";r=1')
    assert denied.status_code == 429
    assert denied["Content-Type"] == "application/json"
    wait = denied["Retry-After"]
    assert denied.json()["detail"].startswith(
        f"Request was throttled. Expected available in {wait} second"
    )
    assert int(wait) > 0
    assert denied["RateLimit"].startswith(f'"{__name__}.Tea";r=0')
    assert denied["X-RateLimit-Remaining"] == "0"
    assert denied["Cache-Control"] == "no-store"


def test_the_signal_tells_of_a_denial():
    told: list[Any] = []

    def note(request: Any, decision: Any, **_: Any) -> None:
        told.append((request.path, decision.allowed))

    rate_limited.connect(note)
    try:
        with project(tea=Tea.as_view()) as client:
            statuses(client, "/tea")
    finally:
        rate_limited.disconnect(note)
    assert told == [("/tea", False)]


class Lines(BaseRenderer):
    media_type = "text/x-lines"
    format = "lines"

    def render(self, data: Any, *_: Any) -> bytes:
        return "\n".join(f"{name}: {value}" for name, value in data.items()).encode()


@api_view(["GET"])
@throttle_classes([throttle("1/hour")])
@renderer_classes([JSONRenderer, Lines])
def coffee(_: Any) -> Response:
    return Response({"coffee": "here"})


@api_view(["GET"])
@throttle_classes([throttle("1/hour")])
def cocoa(_: Any) -> Response:
    return Response({"cocoa": "here"})


def test_a_denial_is_rendered_as_the_client_has_asked():
    with project(coffee=coffee) as client:
        client.get("/coffee")
        denied = client.get("/coffee", headers={"Accept": "text/x-lines"})
    assert denied["Content-Type"].startswith("text/x-lines")
    assert denied.content.startswith(b"detail: Request was throttled.")


def test_function_views_count_each_by_itself():
    with project(coffee=coffee, cocoa=cocoa) as client:
        assert statuses(client, "/coffee", 2) == statuses(client, "/cocoa", 2) == [200, 429]
        assert f'"{__name__}.coffee"' in client.get("/coffee")["RateLimit-Policy"]


shared = throttle("2/hour", name="shared")


class Teas(ViewSet):
    throttle_classes = (throttle("2/hour"),)

    def list(self, _: Any) -> Response:
        return Response([])

    @action(detail=False)
    def green(self, _: Any) -> Response:
        return Response("green")

    @action(detail=False, throttle_classes=[throttle("1/hour")])
    def white(self, _: Any) -> Response:
        return Response("white")

    @action(detail=False, throttle_classes=[shared])
    def red(self, _: Any) -> Response:
        return Response("red")

    @action(detail=False, throttle_classes=[shared])
    def black(self, _: Any) -> Response:
        return Response("black")

    @action(detail=False)
    @exempt
    def health(self, _: Any) -> Response:
        return Response("well")


def test_the_actions_of_a_viewset_count_each_by_itself_and_named_ones_together():
    actions = ("list", "green", "white", "red", "black", "health")
    kwargs = {name: getattr(getattr(Teas, name), "kwargs", {}) for name in actions}
    views: dict[str, Any] = {name: Teas.as_view({"get": name}, **kwargs[name]) for name in actions}
    with project(**views) as client:
        assert statuses(client, "/list") == statuses(client, "/green") == [200, 200, 429]
        assert statuses(client, "/white", 2) == [200, 429]
        assert statuses(client, "/red", 1) + statuses(client, "/black", 2) == [200, 200, 429]
        assert statuses(client, "/health", 4) == [200] * 4


class Visitor:
    is_authenticated = True

    def __init__(self, pk: str) -> None:
        self.pk = pk


class ByHeader(BaseAuthentication):
    def authenticate(self, request: Any) -> tuple[Visitor, None] | None:
        if request.headers.get("X-Who") == "nobody":
            raise AuthenticationFailed
        return Visitor(request.headers["X-Who"]), None


class Mine(Tea):
    authentication_classes = (ByHeader,)
    throttle_classes = (throttle("1/hour", by=user),)


def test_by_user_is_whom_the_frameworks_authentication_has_found():
    with project(mine=Mine.as_view()) as client:
        headers = {"X-Who": "ada"}
        assert [client.get("/mine", headers=headers).status_code for _ in range(2)] == [200, 429]
        assert client.get("/mine", headers={"X-Who": "bob"}).status_code == 200
        assert client.get("/mine", headers={"X-Who": "nobody"}).status_code == 403


def test_what_is_denied_by_one_throttle_is_not_charged_to_the_next():
    class Both(APIView):
        throttle_classes = (throttle("1/hour", name="tight"), throttle("9/hour", name="wide"))

        def get(self, _: Any) -> Response:
            return Response("here")

    with project(both=Both.as_view()) as client:
        passed = client.get("/both")
        denied = [client.get("/both") for _ in range(3)]
    assert "wide" in passed["RateLimit-Policy"]
    assert "tight" in passed["RateLimit-Policy"]
    assert all(answer.status_code == 429 for answer in denied)
    assert all("wide" not in answer["RateLimit-Policy"] for answer in denied)


def test_only_what_the_settling_counts_is_charged_whoever_has_made_the_response():
    class Login(APIView):
        throttle_classes = (
            throttle("2/hour", settle=lambda _, response: int(response.status == 403)),
        )

        def get(self, request: Any) -> Response:
            if request.query_params["password"] != "right":
                raise AuthenticationFailed
            return Response("welcome")

    with project(login=Login.as_view()) as client:
        assert statuses(client, "/login?password=right", 4) == [200] * 4
        assert statuses(client, "/login?password=wrong") == [403, 403, 429]


def slow_down(error: Exception, context: dict[str, Any]) -> Response | None:
    if isinstance(error, RateLimitExceeded):
        return Response({"quota": error.decision.limit}, 429)
    return exception_handler(error, context)


def test_the_projects_exception_handler_answers():
    rest = {"EXCEPTION_HANDLER": f"{__name__}.slow_down"}
    with project(tea=Tea.as_view(), rest=rest) as client:
        statuses(client, "/tea", 2)
        denied = client.get("/tea")
    assert denied.json() == {"quota": 2}
    assert int(denied["Retry-After"]) > 0


def test_a_denial_by_the_middleware_is_answered_likewise():
    with project("RateLimitMiddleware", mapping={"default_limit": "1/hour"}, tea=plain) as client:
        client.get("/tea")
        denied = client.get("/tea", headers={"Accept": "application/json"})
        refused = client.get("/tea", headers={"Accept": "image/png"})
    assert denied.status_code == refused.status_code == 429, "not a 406"
    assert denied["Content-Type"] == refused["Content-Type"] == "application/json"
    assert denied.json()["detail"].startswith("Request was throttled.")
    assert int(denied["Retry-After"]) > 0
    assert "default" in denied["RateLimit"]


@api_view(["GET"])
def plain(_: Any) -> Response:
    return Response("here")


@pytest.mark.parametrize(
    ("arguments", "status", "field"),
    [
        ({"deny": ["ip=203.0.113.9"]}, 403, None),
        ({"on_error": "closed"}, 503, "Retry-After"),
        ({"by": header("x-key"), "challenge": "Bearer"}, 401, "WWW-Authenticate"),
    ],
)
def test_what_is_no_used_up_quota_has_its_own_status(
    arguments: Any, status: int, field: str | None, upstash: LocalUpstash
):
    class View(Tea):
        throttle_classes = (throttle("9/hour", **arguments),)

    url = "http://127.0.0.1:9" if status == 503 else upstash.url
    mapping = {"url": url, "token": upstash.token}
    with project(view=View.as_view(), mapping=mapping) as client:
        denied = client.get("/view")
    assert denied.status_code == status
    assert denied.json()["detail"]
    assert field is None or denied[field]


def test_where_all_is_switched_off_nothing_is_counted():
    class View(Tea):
        def get(self, request: Any) -> Response:
            return Response(request.rate_limit.remaining)

    with project(view=View.as_view(), mapping={"enabled": False}) as client:
        assert statuses(client, "/view", 4) == [200] * 4


def test_the_decorator_limits_a_class_and_a_method_in_this_packages_format():
    @method_decorator(limit("1/hour"), name="dispatch")
    class View(APIView):
        def get(self, _: Any) -> Response:
            return Response("here")

    class Set(ViewSet):
        @limit("1/hour")
        def list(self, request: Any) -> Response:
            return Response(request.rate_limit.remaining)

    with (
        project(view=View.as_view(), set=Set.as_view({"get": "list"})) as client,
        override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=None),
    ):
        for path in ("/view", "/set"):
            passed, denied = client.get(path), client.get(path)
            assert (passed.status_code, denied.status_code) == (200, 429)
            assert passed["X-RateLimit-Remaining"] == "0"
            assert denied["Content-Type"] == "application/problem+json"


def test_who_asks_for_the_routes_is_told_of_throttles():
    white = Teas.as_view({"get": "white"}, **Teas.white.kwargs)
    with project(tea=Tea.as_view(), red=Teas.as_view({"get": "red"}), white=white, plain=plain):
        limits = {route.path: [each.name for each in route.limits] for route in django_routes()}
    assert limits["/tea"] == [f"{__name__}.Tea"]
    assert limits["/white"]
    assert limits["/plain"] == []


def test_a_wrong_limit_is_refused_where_it_is_written():
    with pytest.raises(ConfigurationError, match="5/fortnight"):
        throttle("5/fortnight")


def test_one_throttle_class_that_is_listed_twice_counts_a_request_once():
    once = throttle("9/hour")

    class Twice(APIView):
        throttle_classes = (once, once)

        def get(self, request: Any) -> Response:
            return Response(request.rate_limit.remaining)

    with project(tea=Twice.as_view()) as client:
        assert [client.get("/tea").json() for _ in range(2)] == [8, 7]


@api_view(["GET"])
def first_function(_: Any) -> Response:
    return Response("first")


@api_view(["GET"])
def second_function(_: Any) -> Response:
    return Response("second")


def test_functions_that_are_views_count_by_themselves_below_a_limit():
    """api_view makes classes of one name of them."""
    with override_settings(
        ROOT_URLCONF=Urls(
            first=limit("2/hour")(first_function), second=limit("1/hour")(second_function)
        )
    ):
        client = Client(REMOTE_ADDR="203.0.113.9")
        statuses = [client.get(path).status_code for path in ("/first", "/second") * 3]
    assert statuses == [200, 200, 200, 429, 429, 429]
