"""``@limit`` in front of Django views: what it counts, shows, answers and settles."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import PermissionDenied
from django.core.signals import request_finished
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import method_decorator
from django.views import View
from upstash_redis import Redis

from tests.clocks import MovableClock, use_clock
from tests.django.project import Urls
from upstash_middleware import Concurrency, ConfigurationError, HTTPRequest
from upstash_middleware.django import exempt, limit, user

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

    from upstash_middleware.django import RateLimitedRequest
    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.usefixtures("upstash")

OURS = "upstash_middleware.django."
PATIENT = {"deadline": 20.0, "cache_deadline": 20.0}


@contextmanager
def project(
    *middleware: str, mapping: dict[str, Any] | None = None, **views: Callable[..., Any]
) -> Iterator[Client]:
    """Configure a project of these views, and return a client of it."""
    settings = {
        "MIDDLEWARE": [f"{OURS}{name}" for name in middleware],
        "ROOT_URLCONF": Urls(**views),
        "UPSTASH_MIDDLEWARE": {} if mapping is None else mapping,
    }
    with override_settings(**settings):
        yield Client(REMOTE_ADDR="203.0.113.9")


def statuses(client: Client, path: str, times: int = 3) -> list[int]:
    return [client.get(path).status_code for _ in range(times)]


def left(request: RateLimitedRequest) -> HttpResponse:
    return HttpResponse(str(request.rate_limit.remaining))


async def left_async(request: RateLimitedRequest) -> HttpResponse:
    return left(request)


def plain(_: HttpRequest) -> HttpResponse:
    return HttpResponse("here")


def test_a_view_is_limited_and_says_so():
    with project(tea=limit("2/hour")(left)) as client:
        first, second, denied = (client.get("/tea") for _ in range(3))
    assert (first.content, second.content) == (b"1", b"0")
    assert first["X-RateLimit-Remaining"] == "1"
    assert f'"{__name__}.left";r=1' in first["RateLimit"]
    assert denied.status_code == 429
    assert denied["Content-Type"] == "application/problem+json"
    assert denied["Cache-Control"] == "no-store"
    assert int(denied["Retry-After"]) > 0


@pytest.mark.anyio
async def test_an_async_view_is_limited_on_the_event_loop():
    with project(tea=limit("2/hour")(left_async)):
        client = AsyncClient(REMOTE_ADDR="203.0.113.9")
        answers = [await client.get("/tea") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].content == b"1"
    assert answers[0]["X-RateLimit-Remaining"] == "1"


@method_decorator(limit("1/hour"), name="dispatch")
class Shop(View):
    """Limited as a whole."""

    def get(self, request: RateLimitedRequest) -> HttpResponse:
        return left(request)


class Branch(View):
    """One method is limited, by way of method_decorator, and one directly."""

    @method_decorator(limit("1/hour"))
    def get(self, request: RateLimitedRequest) -> HttpResponse:
        return left(request)

    @limit("1/hour")
    def post(self, request: RateLimitedRequest) -> HttpResponse:
        return left(request)

    def put(self, request: RateLimitedRequest) -> HttpResponse:
        return HttpResponse()


@method_decorator(limit("1/hour"), name="dispatch")
class Stall(View):
    """Another that is limited as a whole, and async."""

    async def get(self, request: RateLimitedRequest) -> HttpResponse:
        return left(request)


def test_classes_are_limited_each_by_itself():
    views: dict[str, Any] = {
        "shop": Shop.as_view(),
        "branch": Branch.as_view(),
        "stall": Stall.as_view(),
    }
    with project(**views) as client:
        for path in ("/shop", "/branch", "/stall"):
            assert statuses(client, path, 2) == [200, 429]
        posts = [client.post("/branch").status_code for _ in range(2)]
        puts = [client.put("/branch").status_code for _ in range(2)]
    assert (posts, puts) == ([200, 429], [200, 200])


def test_a_class_is_refused_with_what_to_write_instead():
    with pytest.raises(ConfigurationError, match="@method_decorator"):
        limit("1/hour")(View)


def test_views_count_each_by_itself_and_together_under_a_named_limit():
    together = limit("2/hour", name="together")
    views: dict[str, Any] = {"a": together(plain), "b": together(left), "c": limit("2/hour")(plain)}
    with project(**views) as client:
        assert statuses(client, "/a", 1) + statuses(client, "/b", 2) == [200, 200, 429]
        assert statuses(client, "/c") == [200, 200, 429]


def test_of_several_limits_and_the_middleware_the_tightest_is_told():
    view = limit("100/hour", name="day")(limit("3/hour")(plain))
    with project("UpstashMiddleware", mapping={"default_limit": "50/hour"}, tea=view) as client:
        answer = client.get("/tea")
    assert answer["X-RateLimit-Limit"] == "3"
    assert all(f"q={quota};" in answer["RateLimit-Policy"] for quota in (3, 50, 100))


def test_a_limit_shares_the_settings_and_takes_one_round_trip(upstash: LocalUpstash):
    with project(mapping={"prefix": "shop"}, tea=limit("9/hour", name="tea")(left)) as client:
        client.get("/tea")
        upstash.reset_bill()
        client.get("/tea")
        bill = upstash.bill()
        with Redis.from_env() as redis:
            (key,) = redis.keys("*")
    assert (bill.requests, bill.commands) == (1, 3)
    assert key.startswith("shop:tea:ip=")


def test_where_all_is_switched_off_nothing_is_counted(upstash: LocalUpstash):
    with project(mapping={"enabled": False}, tea=limit("1/hour")(left)) as client:
        assert [client.get("/tea").content for _ in range(3)] == [b"None"] * 3
    assert upstash.bill().requests == 0


class Person:
    """A user as django.contrib.auth has it."""

    def __init__(self, name: str | None) -> None:
        self.pk = name
        self.is_authenticated = name is not None


def authenticated(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Stand for AuthenticationMiddleware."""

    def middleware(request: Any) -> Any:
        request.user = Person(request.headers.get("x-name"))
        return get_response(request)

    return middleware


@pytest.mark.parametrize("by", [user, "user"])
@pytest.mark.parametrize("where", ["decorator", "middleware"])
def test_a_limit_counts_by_the_user_and_visitors_by_address(by: Any, where: str):
    """``"user"`` is how settings say it."""
    view, mapping, middleware = plain, {}, [f"{__name__}.authenticated"]
    if where == "decorator":
        view = limit("1/hour", by=by)(plain)
    else:
        rule = {"path": "/tea", "limits": "1/hour", "by": by}
        mapping = {"rate_limits": [rule], "default_limit": None}
        middleware += [f"{OURS}RateLimitMiddleware"]
    with (
        project(tea=view, mapping=mapping) as client,
        override_settings(MIDDLEWARE=middleware),
    ):
        names = ["ada", "ada", "bob", None, None]
        found = [
            client.get("/tea", headers={"x-name": name} if name else {}).status_code
            for name in names
        ]
    assert found == [200, 429, 200, 200, 429]


@pytest.mark.anyio
async def test_on_an_event_loop_the_user_is_asked_for_without_blocking_it():
    class Asked:
        user: Any = None

        async def auser(self) -> Person:
            return Person("ada")

    found: Any = user(HTTPRequest("GET", "/", native=Asked()))
    assert (await found).value == "ada"


def test_without_authentication_above_it_is_said():
    with pytest.raises(LookupError, match="AuthenticationMiddleware"):
        user(HTTPRequest("GET", "/", native=object()))


@pytest.mark.parametrize(("error", "status"), [(Http404(), 404), (PermissionDenied(), 403)])
def test_settling_sees_the_status_that_an_exception_becomes(error: Exception, status: int):
    @limit("2/hour", settle=lambda _, response: int(response.status == status))
    def login(request: HttpRequest) -> HttpResponse:
        if request.GET["password"] != "right":
            raise error
        return HttpResponse("welcome")

    with project(login=login) as client:
        assert statuses(client, "/login?password=right", 4) == [200] * 4
        assert statuses(client, "/login?password=wrong", 3) == [status, status, 429]


def test_what_a_view_charges_while_it_streams_is_settled_after_the_last_byte():
    @limit("10/hour")
    def generate(request: RateLimitedRequest) -> StreamingHttpResponse:
        def tokens() -> Iterator[str]:
            for _ in range(3):
                request.rate_limit.charge(2)
                yield "token "

        return StreamingHttpResponse(tokens())

    with project(generate=generate) as client:
        first = client.get("/generate")
        assert first.getvalue() == b"token token token "
        first.close()
        second = client.get("/generate")
        second.getvalue()
        second.close()
    assert first["X-RateLimit-Remaining"] == "9"
    assert second["X-RateLimit-Remaining"] == "2", "10 - (1 + 6) - 1"


def slow_down(_: HttpRequest, decision: Any) -> HttpResponse:
    """Answer a denial as a project might."""
    return HttpResponse(f"{decision.limit} and no more", status=420)


def broken(_: HttpRequest, decision: Any) -> HttpResponse:
    """Fail, as a view with a mistake does."""
    raise KeyError("template")


@pytest.mark.parametrize("around", ["decorator", "middleware"])
def test_a_view_that_the_project_names_answers_a_denial_with_the_denials_fields(around: str):
    middleware = ("UpstashMiddleware",) if around == "middleware" else ()
    mapping = {"default_limit": "1/hour"} if around == "middleware" else {}
    view = plain if around == "middleware" else limit("1/hour")(plain)
    with (
        override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=f"{__name__}.slow_down"),
        project(*middleware, mapping=mapping, tea=view) as client,
    ):
        client.get("/tea")
        denied = client.get("/tea")
    assert (denied.status_code, denied.content) == (420, b"1 and no more")
    assert int(denied["Retry-After"]) > 0
    assert denied["X-RateLimit-Remaining"] == "0"
    assert denied["Cache-Control"] == "no-store"


@pytest.mark.anyio
async def test_on_an_event_loop_that_view_runs_in_a_thread():
    async def tea(_: HttpRequest) -> HttpResponse:
        return HttpResponse("tea")

    with (
        override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=slow_down),
        project("UpstashMiddleware", mapping={"default_limit": "1/hour"}, tea=tea),
    ):
        client = AsyncClient(REMOTE_ADDR="203.0.113.9")
        answers = [await client.get("/tea") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 420]


def test_a_named_view_that_raises_leaves_our_own_answer(caplog: pytest.LogCaptureFixture):
    with (
        override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=broken),
        project(tea=limit("1/hour")(plain)) as client,
    ):
        assert statuses(client, "/tea", 2) == [200, 429]
    assert "UPSTASH_MIDDLEWARE_DENIED_VIEW" in caplog.text


@method_decorator(exempt, name="dispatch")
class Health(View):
    """Exempt as a class."""

    def get(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse("well")


def test_the_middleware_lets_exempt_views_pass():
    views: dict[str, Any] = {
        "health": exempt(lambda _: HttpResponse("well")),
        "class": Health.as_view(),
    }
    with project(
        "UpstashMiddleware", mapping={"default_limit": "1/hour"}, tea=plain, **views
    ) as client:
        assert statuses(client, "/health") == statuses(client, "/class") == [200, 200, 200]
        assert statuses(client, "/tea", 2) == [200, 429], "all others are limited as before"
        assert statuses(client, "/absent", 1) == [429]


def test_an_exempt_view_is_free_of_a_decorator():
    with project(tea=exempt(limit("1/hour")(plain))) as client:
        assert statuses(client, "/tea") == [200, 200, 200]


def test_a_page_from_the_cache_carries_no_field_of_a_limit():
    mapping = {"cache": [{"path": "/tea", "ttl": 60}]}
    with project("CacheMiddleware", mapping=mapping, tea=limit("9/hour")(plain)) as client:
        rendered, stored = client.get("/tea"), client.get("/tea")
    assert rendered["X-RateLimit-Remaining"] == "8"
    assert "; hit" in stored["Cache-Status"]
    assert not [name for name in stored.headers if "ratelimit" in name.lower()]


def test_what_is_not_called_as_a_view_is_told_so():
    with pytest.raises(ConfigurationError, match="was not called with a request"):
        limit("1/hour")(lambda: None)()


def test_what_the_cache_fetches_in_the_background_is_charged_to_no_limit():
    rendered: list[Any] = []

    @limit("9/hour")
    def page(request: RateLimitedRequest) -> HttpResponse:
        rendered.append(request.rate_limit.remaining)
        stale_at_once = "max-age=0, stale-while-revalidate=60"
        return HttpResponse("page", headers={"Cache-Control": stale_at_once})

    mapping = {"cache": [{"path": "/page", "ttl": 60}]}
    with project("CacheMiddleware", mapping=mapping, page=page) as client:
        assert statuses(client, "/page", 2) == [200, 200]
    assert rendered == [8, None], "the second one had no client"


@pytest.mark.anyio
async def test_an_async_view_that_fails_settles_and_one_that_is_exempt_is_free():
    @limit("1/hour", settle=lambda _, response: int(response.status == 404))
    async def missing(_: HttpRequest) -> HttpResponse:
        raise Http404

    with project(missing=missing, free=exempt(limit("1/hour")(left_async))):
        client = AsyncClient(REMOTE_ADDR="203.0.113.9")
        assert [(await client.get("/missing")).status_code for _ in range(2)] == [404, 429]
        assert [(await client.get("/free")).status_code for _ in range(2)] == [200, 200]


@pytest.mark.anyio
async def test_a_view_for_denials_answers_for_an_async_view_and_renders_templates():
    with (
        override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=templated, TEMPLATES=[ENGINE]),
        project(tea=limit("1/hour")(left_async)),
    ):
        client = AsyncClient(REMOTE_ADDR="203.0.113.9")
        answers = [await client.get("/tea") for _ in range(2)]
    assert (answers[1].status_code, answers[1].content) == (429, b"1 and no more")


ENGINE = {"BACKEND": "django.template.backends.django.DjangoTemplates"}


def templated(request: HttpRequest, decision: Any) -> TemplateResponse:
    """Answer a denial by a template."""
    template = engines["django"].from_string("{{ decision.limit }} and no more")
    return TemplateResponse(request, template, {"decision": decision}, status=429)


PAUSE = 29


def test_a_view_that_streams_for_longer_than_a_slot_lives_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
):
    clock = MovableClock()
    use_clock(clock, monkeypatch)
    others: list[int] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield b"piece "
            clock.advance(PAUSE)
            others.append(client.get("/stream").status_code)

    def stream(_: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(pieces())

    with project(stream=limit(Concurrency(1, longest=60))(stream)) as client:
        answer: Any = client.get("/stream")
        assert b"".join(answer.streaming_content) == b"piece " * 5
    assert others == [429] * 5


@pytest.mark.anyio
async def test_an_async_view_that_streams_for_longer_than_a_slot_lives_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
):
    clock = MovableClock()
    use_clock(clock, monkeypatch)
    others: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"piece "
            clock.advance(PAUSE)
            others.append((await client.get("/stream")).status_code)

    async def stream(_: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(pieces())

    with project(stream=limit(Concurrency(1, longest=60))(stream)):
        client = AsyncClient(REMOTE_ADDR="203.0.113.9")
        answer: Any = await client.get("/stream")
        assert [piece async for piece in answer.streaming_content] == [b"piece "] * 5
    assert others == [429] * 5


@pytest.mark.parametrize("name", [{}, {"name": "api"}], ids=["unnamed", "named"])
def test_one_limit_that_decorates_a_view_twice_counts_a_request_once(name: Any):
    once = limit("9/hour", **name)
    with project(tea=once(once(left))) as client:
        assert [client.get("/tea").content for _ in range(2)] == [b"8", b"7"]


def test_one_named_limit_before_a_class_and_its_method_counts_a_request_once():
    once = limit("9/hour", name="api")

    @method_decorator(once, name="dispatch")
    class Tea(View):
        @method_decorator(once)
        def get(self, request: RateLimitedRequest) -> HttpResponse:
            return left(request)

    with project(tea=Tea.as_view()) as client:
        assert [client.get("/tea").content for _ in range(2)] == [b"8", b"7"]


@pytest.mark.parametrize("middleware", [(), ("RateLimitMiddleware",)], ids=["alone", "in both"])
@pytest.mark.parametrize("moment", ["the end of the stream", "the signal"])
def test_a_view_may_charge_at_any_moment(middleware: tuple[str, ...], moment: str):
    """At the end of a stream, and when Django says that the request has been closed."""
    decisions: list[Any] = []

    @limit("100/hour", name="chat")
    def chat(request: RateLimitedRequest) -> StreamingHttpResponse:
        decisions.append(request.rate_limit)

        def pieces() -> Iterator[bytes]:
            yield str(request.rate_limit.remaining).encode()
            if moment == "the end of the stream":
                request.rate_limit.charge(10)

        return StreamingHttpResponse(pieces())

    def charge(**_: Any) -> None:
        decisions[-1].charge(10)

    if moment == "the signal":
        request_finished.connect(charge)
    try:
        with project(*middleware, mapping={"default_limit": "1000/hour"}, chat=chat) as client:
            left = [b"".join(client.get("/chat")) for _ in range(3)]
    finally:
        request_finished.disconnect(charge)
    assert left == [b"99", b"88", b"77"]


@pytest.mark.parametrize("where", ["middleware", "decorator"])
def test_an_exempt_view_reads_a_decision_without_figures(where: str):
    @exempt
    def free(request: RateLimitedRequest) -> HttpResponse:
        request.rate_limit.charge(5)
        return HttpResponse(f"{request.rate_limit.allowed} {request.rate_limit.remaining}")

    middleware = ["RateLimitMiddleware"] if where == "middleware" else []
    view = free if where == "middleware" else limit("1/hour")(free)
    with project(*middleware, mapping={"default_limit": "1/hour"}, free=view) as client:
        assert [client.get("/free").content for _ in range(2)] == [b"True None"] * 2


def with_a_field(_request: HttpRequest, _decision: Any) -> HttpResponse:
    return HttpResponse("slow down", status=429, headers={"X-RateLimit-Remaining": "777"})


@pytest.mark.parametrize("where", ["middleware", "decorator"])
@override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=with_a_field)
def test_the_denied_views_limit_fields_are_sent_alone(where: str):
    middleware = ["RateLimitMiddleware"] if where == "middleware" else []
    view = plain if where == "middleware" else limit("1/hour")(plain)
    with project(*middleware, mapping={"default_limit": "1/hour"}, tea=view) as client:
        client.get("/tea")
        fields = client.get("/tea").headers.items()
    assert [(n, v) for n, v in fields if "ratelimit" in n.lower()] == [
        ("X-RateLimit-Remaining", "777")
    ]


@pytest.mark.parametrize(
    "middleware", [(), ("UpstashMiddleware",)], ids=["decorator", "middleware"]
)
def test_a_response_that_a_view_gives_every_time_has_the_fields_of_each_request_alone(
    middleware: tuple[str, ...],
):
    health = HttpResponse("well", headers={"X-Own": "own"})

    def view(_: HttpRequest) -> HttpResponse:
        return health

    mapping = {"default_limit": "9/hour", "cache": [{"path": "/health", "ttl": 60}], **PATIENT}
    with project(
        *middleware, mapping=mapping, health=view if middleware else limit("9/hour")(view)
    ):
        answers = [
            dict(Client(REMOTE_ADDR=f"203.0.113.{n}").post("/health", {"n": n}).headers)
            for n in (1, 1, 2)
        ]
    assert [answer["X-RateLimit-Remaining"] for answer in answers] == ["8", "7", "8"]
    assert {answer["X-Own"] for answer in answers} == {"own"}


def test_a_response_that_a_view_gives_every_time_says_once_what_the_cache_did():
    health = HttpResponse("well")
    mapping = {"cache": [{"path": "/health", "ttl": 60}], **PATIENT}
    with project("CacheMiddleware", mapping=mapping, health=lambda _: health) as client:
        said = [client.get(f"/health?n={number}")["Cache-Status"] for number in range(3)]
    assert [each.count("upstash-middleware") for each in said] == [1, 1, 1]


def test_views_of_two_classes_decorated_as_functions_count_by_themselves():
    """Django's as_view gives all of them the same name."""

    class Search(View):
        def get(self, _: HttpRequest) -> HttpResponse:
            return HttpResponse("search")

    class Export(View):
        def get(self, _: HttpRequest) -> HttpResponse:
            return HttpResponse("export")

    with project(
        search=limit("2/hour")(Search.as_view()), export=limit("1/hour")(Export.as_view())
    ) as client:
        assert statuses(client, "/search") == [200, 200, 429]
        assert statuses(client, "/export") == [200, 429, 429]


class Site:
    """An object whose methods are views, as an AdminSite is."""

    def login(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse("login")


def test_the_same_method_of_two_objects_needs_two_names():
    """By itself it has one, and the order of the first requests would decide who is who."""
    staff, shop = Site(), Site()
    unnamed: dict[str, Any] = {
        "staff": limit("1/hour")(staff.login),
        "shop": limit("1/hour")(shop.login),
    }
    with project(**unnamed) as client:
        assert client.get("/staff").status_code == 200
        with pytest.raises(ConfigurationError, match="give one of them another name="):
            client.get("/shop")
    named: dict[str, Any] = {
        "staff": limit("1/hour", name="staff")(staff.login),
        "shop": limit("1/hour", name="shop")(shop.login),
    }
    with project(**named) as client:
        assert statuses(client, "/staff") == statuses(client, "/shop") == [200, 429, 429]
