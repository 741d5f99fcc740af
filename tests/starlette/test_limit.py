"""``@limit`` in front of Starlette endpoints: what it counts, shows, answers and settles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from upstash_redis import Redis

from upstash_middleware import CacheRule, ConfigurationError
from upstash_middleware.core.ratelimit import Concurrency
from upstash_middleware.starlette import (
    CacheMiddleware,
    RateLimitMiddleware,
    RequestDenied,
    UpstashMiddleware,
    exempt,
    limit,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from upstash_middleware.local import LocalUpstash

    Serve = Callable[[Any], TestClient]


@limit("2/hour")
async def tea(request: Request) -> Response:
    return PlainTextResponse(f"{request.state.rate_limit.remaining} left")


@limit("2/hour")
def coffee(request: Request) -> Response:
    return PlainTextResponse(f"{request.state.rate_limit.remaining} left")


async def water(_: Request) -> Response:
    return PlainTextResponse("water")


def statuses(client: TestClient, path: str, times: int = 3, **kwargs: Any) -> list[int]:
    return [client.get(path, **kwargs).status_code for _ in range(times)]


@pytest.mark.parametrize("endpoint", [tea, coffee])
def test_an_endpoint_is_limited_and_says_so_whether_async_or_not(client: Serve, endpoint: Any):
    served = client(Starlette(routes=[Route("/", endpoint), Route("/water", water)]))
    first, second, denied = (served.get("/") for _ in range(3))
    assert (first.text, second.text) == ("1 left", "0 left")
    assert first.headers["x-ratelimit-remaining"] == "1"
    assert f'"{__name__}.{endpoint.__name__}";r=1' in first.headers["ratelimit"]
    assert denied.status_code == 429
    assert denied.headers["content-type"] == "application/problem+json"
    assert denied.json()["type"].endswith("quota-exceeded")
    assert int(denied.headers["retry-after"]) > 0
    assert denied.headers["cache-control"] == "no-store"
    assert statuses(served, "/water") == [200, 200, 200], "what is not decorated is not limited"


def test_each_endpoint_counts_by_itself(client: Serve):
    served = client(Starlette(routes=[Route("/tea", tea), Route("/coffee", coffee)]))
    assert statuses(served, "/tea") == [200, 200, 429]
    assert statuses(served, "/coffee") == [200, 200, 429]


def test_a_named_limit_before_several_endpoints_counts_them_together(client: Serve):
    drinks = limit("2/hour", name="drinks")
    served = client(
        Starlette(routes=[Route("/a", drinks(tea_plain)), Route("/b", drinks(coffee_plain))])
    )
    assert statuses(served, "/a", 1) + statuses(served, "/b", 2) == [200, 200, 429]


async def tea_plain(_: Request) -> Response:
    return PlainTextResponse("tea")


def coffee_plain(_: Request) -> Response:
    return PlainTextResponse("coffee")


def test_two_limits_of_one_name_are_refused_rather_than_shared(client: Serve):
    served = client(
        Starlette(
            routes=[
                Route("/a", limit("2/hour", name="drinks")(tea_plain)),
                Route("/b", limit("9/hour", name="drinks")(coffee_plain)),
            ]
        )
    )
    assert served.get("/a").status_code == 200
    with pytest.raises(ConfigurationError, match="already has the name 'drinks'"):
        served.get("/b")


def made(kind: str) -> Any:
    @limit("2/hour")
    async def endpoint(_: Request) -> Response:
        return PlainTextResponse(kind)

    return endpoint


def test_two_functions_of_one_name_are_refused_rather_than_shared(client: Serve):
    served = client(Starlette(routes=[Route("/a", made("a")), Route("/b", made("b"))]))
    assert served.get("/a").status_code == 200
    with pytest.raises(ConfigurationError, match="give one of them another name="):
        served.get("/b")


def test_two_applications_made_by_one_factory_have_their_functions_each(client: Serve):
    one, other = (client(Starlette(routes=[Route("/", made("page"))])) for _ in range(2))
    assert statuses(one, "/", 1) + statuses(other, "/", 2) == [200, 200, 429]


def test_a_name_that_a_rule_of_the_middleware_has_is_refused(client: Serve):
    served = client(
        Starlette(
            routes=[Route("/", limit("2/hour", name="default")(tea_plain))],
            middleware=[Middleware(UpstashMiddleware, default_limit="9/hour")],
        )
    )
    with pytest.raises(ConfigurationError, match=r"'default': .* has this name already"):
        served.get("/")


class Shop(HTTPEndpoint):
    """Two methods, one of them limited."""

    @limit("1/hour")
    async def get(self, request: Request) -> Response:
        return PlainTextResponse(str(request.state.rate_limit.remaining))

    async def post(self, _: Request) -> Response:
        return PlainTextResponse("posted")


class Branch(Shop):
    """The same methods, for another place."""


def test_a_method_of_an_endpoint_class_is_limited_for_each_class(client: Serve):
    served = client(Starlette(routes=[Route("/shop", Shop), Route("/branch", Branch)]))
    assert statuses(served, "/shop", 2) == [200, 429]
    assert statuses(served, "/branch", 2) == [200, 429]
    assert served.post("/shop").status_code == 200


def test_a_class_is_refused_with_what_to_decorate_instead():
    with pytest.raises(ConfigurationError, match="decorate the methods"):
        limit("1/hour")(HTTPEndpoint)


def test_of_several_limits_all_count_and_the_tightest_is_told(client: Serve):
    endpoint = limit("100/hour")(limit("3/hour")(tea_plain))
    served = client(Starlette(routes=[Route("/", endpoint)]))
    answers = [served.get("/") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers.get_list("x-ratelimit-limit") == ["3"]
    policies = ", ".join(answers[0].headers.get_list("ratelimit-policy"))
    assert f'"{__name__}.tea_plain 2";q=3' in policies
    assert f'"{__name__}.tea_plain";q=100' in policies


@pytest.mark.parametrize(
    ("outer", "inner", "told"), [("100/hour", "3/hour", "3"), ("3/hour", "9/hour", "3")]
)
def test_with_the_middleware_outside_the_tightest_is_told_too(
    client: Serve, outer: str, inner: str, told: str
):
    served = client(
        Starlette(
            routes=[Route("/", limit(inner)(shown))],
            middleware=[Middleware(UpstashMiddleware, default_limit=outer)],
        )
    )
    answer = served.get("/")
    assert answer.headers.get_list("x-ratelimit-limit") == [told]
    assert answer.json() == {"limit": int(told), "policies": 2}


async def shown(request: Request) -> Response:
    decision = request.state.rate_limit
    return JSONResponse({"limit": decision.limit, "policies": len(decision.policies)})


def test_a_limit_takes_one_round_trip(client: Serve, upstash: LocalUpstash):
    served = client(Starlette(routes=[Route("/", tea)]))
    served.get("/")
    upstash.reset_bill()
    served.get("/")
    bill = upstash.bill()
    assert (bill.requests, bill.commands) == (1, 3)


class Visitors(AuthenticationBackend):
    """Believes whatever name a request gives."""

    async def authenticate(self, conn: Any) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-name")
        return (AuthCredentials(), SimpleUser(name)) if name else None


@pytest.mark.parametrize("by", [user, "user"])
@pytest.mark.parametrize("where", ["decorator", "middleware"])
def test_a_limit_counts_by_the_user_whom_authentication_outside_has_found(
    client: Serve, by: Any, where: str
):
    """``"user"`` is how settings say it."""
    endpoint: Any = tea_plain
    middleware = [Middleware(AuthenticationMiddleware, backend=Visitors())]
    if where == "decorator":
        endpoint = limit("1/hour", by=by)(tea_plain)
    else:
        rules = [{"path": "/", "limits": "1/hour", "by": by}]
        middleware += [Middleware(RateLimitMiddleware, rate_limits=rules, default_limit=None)]
    served = client(Starlette(routes=[Route("/", endpoint)], middleware=middleware))
    assert statuses(served, "/", 2, headers={"x-name": "ada"}) == [200, 429]
    assert statuses(served, "/", 2, headers={"x-name": "bob"}) == [200, 429]


@pytest.mark.parametrize("outside", [True, False])
def test_settling_sees_the_status_that_an_exception_becomes(client: Serve, outside: bool):
    @limit("2/hour", settle=lambda _, response: int(response.status == 401))
    async def login(request: Request) -> Response:
        if request.query_params["password"] != "right":
            raise HTTPException(401)
        return PlainTextResponse("welcome")

    middleware = [Middleware(UpstashMiddleware, default_limit=None)] if outside else []
    served = client(Starlette(routes=[Route("/", login)], middleware=middleware))
    assert statuses(served, "/?password=right", 4) == [200] * 4
    assert statuses(served, "/?password=wrong", 3) == [401, 401, 429]


@pytest.mark.parametrize("outside", [True, False])
def test_what_a_handler_charges_while_it_streams_is_settled_after_the_last_byte(
    client: Serve, outside: bool
):
    @limit("10/hour")
    async def generate(request: Request) -> Response:
        def tokens() -> Iterator[str]:
            for _ in range(3):
                request.state.rate_limit.charge(2)
                yield "token "

        return StreamingResponse(tokens())

    middleware = [Middleware(UpstashMiddleware, default_limit=None)] if outside else []
    served = client(Starlette(routes=[Route("/", generate)], middleware=middleware))
    first, second = served.get("/"), served.get("/")
    assert first.headers["x-ratelimit-remaining"] == "9"
    assert second.headers["x-ratelimit-remaining"] == "2", "10 - (1 + 6) - 1"


def test_a_charge_counts_in_every_limit_that_the_request_has_passed(client: Serve):
    async def generate(request: Request) -> Response:
        request.state.rate_limit.charge(4)
        return PlainTextResponse("")

    served = client(
        Starlette(
            routes=[Route("/", limit("100/hour", name="inner")(generate))],
            middleware=[Middleware(UpstashMiddleware, default_limit="10/hour")],
        )
    )
    served.get("/")
    fields = ", ".join(served.get("/").headers.get_list("ratelimit"))
    assert '"inner";r=94' in fields
    assert '"default";r=4' in fields


@pytest.mark.parametrize("outside", [True, False])
def test_a_slot_of_a_concurrency_limit_is_given_back_on_every_way_out(client: Serve, outside: bool):
    @limit(Concurrency(1))
    async def one_at_a_time(request: Request) -> Response:
        if "fail" in request.query_params:
            raise HTTPException(400)
        return PlainTextResponse("here")

    middleware = [Middleware(UpstashMiddleware, default_limit=None)] if outside else []
    served = client(Starlette(routes=[Route("/", one_at_a_time)], middleware=middleware))
    assert statuses(served, "/") == [200, 200, 200]
    assert statuses(served, "/?fail") == [400, 400, 400]


def test_other_decorators_outside_may_change_the_response(client: Serve):
    def teapot(endpoint: Any) -> Any:
        async def changed(request: Request) -> Response:
            response: Response = await endpoint(request)
            response.status_code = 418
            response.headers["x-outside"] = "1"
            return response

        return changed

    served = client(Starlette(routes=[Route("/", teapot(tea))]))
    answer = served.get("/")
    assert (answer.status_code, answer.headers["x-outside"]) == (418, "1")
    assert answer.headers["x-ratelimit-remaining"] == "1"


@pytest.mark.parametrize("key", [429, RequestDenied, HTTPException])
@pytest.mark.parametrize("around", ["decorator", "middleware"])
def test_the_applications_exception_handler_answers_a_denial(client: Serve, key: Any, around: str):
    async def handler(_: Request, error: Any) -> Response:
        return PlainTextResponse("slow down", error.status_code, headers={"x-own": "1"})

    routes = [Route("/", limit("1/hour")(tea_plain) if around == "decorator" else water)]
    middleware = [Middleware(RateLimitMiddleware, default_limit="1/hour")]
    served = client(
        Starlette(
            routes=routes,
            middleware=middleware if around == "middleware" else [],
            exception_handlers={key: handler},
        )
    )
    served.get("/")
    denied = served.get("/")
    assert (denied.status_code, denied.text) == (429, "slow down")
    assert denied.headers["x-own"] == "1"
    if around == "middleware":  # whose fields a handler cannot forget
        assert int(denied.headers["retry-after"]) > 0
        assert denied.headers["x-ratelimit-remaining"] == "0"


def test_a_handler_for_denials_that_raises_leaves_the_default_answer(
    client: Serve, caplog: pytest.LogCaptureFixture
):
    def handler(_: Request, error: Any) -> Response:
        raise KeyError("template")

    served = client(
        Starlette(
            routes=[Route("/", water)],
            middleware=[Middleware(RateLimitMiddleware, default_limit="1/hour")],
            exception_handlers={429: handler},
        )
    )
    served.get("/")
    denied = served.get("/")
    assert (denied.status_code, denied.json()["title"]) == (429, "Too many requests")
    assert "exception handler" in caplog.text


def test_a_denial_carries_the_cors_fields_of_the_middleware_outside(client: Serve):
    served = client(
        Starlette(
            routes=[Route("/", limit("1/hour")(tea_plain))],
            middleware=[Middleware(CORSMiddleware, allow_origins=["https://app.example"])],
        )
    )
    answers = [served.get("/", headers={"origin": "https://app.example"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["access-control-allow-origin"] == "https://app.example"


@exempt
async def health(_: Request) -> Response:
    return PlainTextResponse("well")


class Health(HTTPEndpoint):
    """Exempt as a whole."""

    async def get(self, _: Request) -> Response:
        return PlainTextResponse("well")


exempt(Health)


def test_the_middleware_lets_exempt_endpoints_pass_through_mounts_too(client: Serve):
    inside = Starlette(routes=[Route("/health", health)])
    served = client(
        Starlette(
            routes=[
                Route("/health", health),
                Route("/class", Health),
                Route("/tea", tea_plain),
                Mount("/mounted", routes=[Route("/health", health)]),
                Mount("/app", inside),
            ],
            middleware=[Middleware(UpstashMiddleware, default_limit="1/hour")],
        )
    )
    for path in ("/health", "/class", "/mounted/health", "/app/health"):
        assert statuses(served, path) == [200, 200, 200]
    assert statuses(served, "/tea", 2) == [200, 429], "all others are limited as before"
    assert statuses(served, "/absent", 1) == [429]


class Unroutable(Route):
    """A route that fails when it is asked."""

    def matches(self, scope: Any) -> Any:
        """Fail for the path that is said to."""
        if scope["path"] == "/broken":
            raise KeyError("no such tenant")
        return super().matches(scope)


def test_where_the_route_cannot_be_looked_up_the_request_is_counted(
    client: Serve, caplog: pytest.LogCaptureFixture
):
    served = client(
        Starlette(
            routes=[Unroutable("/health", health)],
            middleware=[Middleware(UpstashMiddleware, default_limit="1/hour")],
        )
    )
    with pytest.raises(KeyError):
        served.get("/broken")
    assert served.get("/broken").status_code == 429
    assert "exempt" in caplog.text


def test_around_an_application_its_routes_and_exception_handlers_are_found_too(client: Serve):
    def slow_down(_: Request, error: Any) -> Response:
        return PlainTextResponse("slow down", error.status_code)

    app = Starlette(
        routes=[Route("/health", health), Route("/tea", tea_plain)],
        exception_handlers={429: slow_down},
    )
    cache = CacheMiddleware(app, cache=[{"path": "/none", "ttl": 60}])
    served = client(RateLimitMiddleware(cache, default_limit="1/hour"))
    assert statuses(served, "/health") == [200, 200, 200]
    assert [served.get("/tea").text for _ in range(2)] == ["tea", "slow down"]


def test_an_exempt_endpoint_is_free_of_decorators_inside_and_outside(client: Serve):
    outside, inside = limit("1/hour")(exempt(copy("a"))), exempt(limit("1/hour")(copy("b")))
    served = client(Starlette(routes=[Route("/a", outside), Route("/b", inside)]))
    assert statuses(served, "/a") == statuses(served, "/b") == [200, 200, 200]


def copy(name: str) -> Any:
    async def endpoint(_: Request) -> Response:
        return PlainTextResponse(name)

    return endpoint


def test_a_decorator_uses_the_prefix_of_the_middleware_outside(
    client: Serve, upstash: LocalUpstash
):
    served = client(
        Starlette(
            routes=[Route("/", limit("1/hour", name="tea")(tea_plain))],
            middleware=[Middleware(UpstashMiddleware, default_limit=None, prefix="shop")],
        )
    )
    served.get("/")
    with Redis.from_env() as redis:
        (key,) = redis.keys("*")
    assert key.startswith("shop:tea:ip=")


def test_where_the_middleware_is_switched_off_so_are_the_decorators(
    client: Serve, upstash: LocalUpstash
):
    served = client(
        Starlette(
            routes=[Route("/", limit("1/hour")(reads_decision))],
            middleware=[Middleware(UpstashMiddleware, enabled=False)],
        )
    )
    assert statuses(served, "/") == [200, 200, 200]
    assert upstash.bill().requests == 0


def test_switched_off_by_the_environment_handlers_still_read_a_decision(
    client: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UPSTASH_MIDDLEWARE_ENABLED", "0")
    routes = [Route("/a", limit("1/hour")(reads_decision)), Route("/b", limit("1/hour")(reads))]
    served = client(Starlette(routes=routes))
    assert served.get("/a").text == served.get("/b").text == "unchecked"


def reads(request: Request) -> Response:
    return PlainTextResponse(request.state.rate_limit.settled_by)


async def reads_decision(request: Request) -> Response:
    return PlainTextResponse(request.state.rate_limit.settled_by)


def test_a_page_from_the_cache_carries_no_field_of_a_limit(client: Serve):
    served = client(
        Starlette(
            routes=[Route("/", limit("9/hour")(tea_plain))],
            middleware=[Middleware(CacheMiddleware, cache=[{"path": "/", "ttl": 60}])],
        )
    )
    rendered, stored = served.get("/"), served.get("/")
    assert rendered.headers["x-ratelimit-remaining"] == "8"
    assert "; hit" in stored.headers["cache-status"]
    assert not [name for name in stored.headers if "ratelimit" in name]


def test_missing_credentials_are_said_at_the_first_request_and_not_before(
    monkeypatch: pytest.MonkeyPatch, client: Serve
):
    for name in ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"):
        monkeypatch.delenv(name)
    served = client(Starlette(routes=[Route("/", limit("1/hour")(tea_plain))]))
    with pytest.raises(ConfigurationError, match="UPSTASH_REDIS_REST_URL"):
        served.get("/")


@pytest.mark.parametrize(
    ("limits", "arguments", "problem"),
    [
        ("5/fortnight", {}, "limits"),
        ("5/minute", {"path": "/tea"}, "path: a limit on a handler"),
        ("5/minute", {"bye": 1}, "bye: there is no such setting"),
        ("unlimited", {}, "@exempt"),
    ],
)
def test_a_wrong_limit_is_an_error_where_it_is_written(limits: str, arguments: Any, problem: str):
    with pytest.raises(ConfigurationError, match=problem):
        limit(limits, **arguments)


def test_a_handler_that_gets_no_request_is_told_of_fastapis_limit(client: Serve):
    with pytest.raises(ConfigurationError, match=r"upstash_middleware\.fastapi"):
        limit("1/hour")(lambda: None)()


def test_what_the_cache_fetches_in_the_background_is_charged_to_no_limit(client: Serve):
    rendered: list[Any] = []

    @limit("9/hour")
    async def page(request: Request) -> Response:
        decision = request.state.rate_limit
        rendered.append(decision and decision.remaining)
        return PlainTextResponse("page", headers={"cache-control": STALE_AT_ONCE})

    rules = [{"path": "/", "ttl": 60}]
    middleware = [Middleware(CacheMiddleware, cache=rules)]
    served = client(Starlette(routes=[Route("/", page)], middleware=middleware))
    assert served.get("/").status_code == served.get("/").status_code == 200
    assert rendered == [8, None], "the second one had no client"


STALE_AT_ONCE = "max-age=0, stale-while-revalidate=60"


def test_a_sync_endpoint_that_fails_settles_and_gives_its_slot_back(client: Serve):
    @limit(Concurrency(1))
    def one_at_a_time(_: Request) -> Response:
        raise HTTPException(400, headers={"x-own": "1"})

    served = client(Starlette(routes=[Route("/", one_at_a_time)]))
    assert statuses(served, "/") == [400, 400, 400]


@pytest.mark.parametrize(
    ("arguments", "status"), [({"deny": ["203.0.113.0/24"]}, 403), ({"on_error": "closed"}, 503)]
)
def test_a_deny_list_and_a_closed_rule_have_their_own_status(
    client: Serve, arguments: Any, status: int, upstash_faults: Any
):
    if status == 503:
        upstash_faults(fault="bad-gateway")
    served = client(Starlette(routes=[Route("/", limit("1/hour", **arguments)(tea_plain))]))
    denied = served.get("/")
    assert (denied.status_code, denied.json()["status"]) == (status, status)


@pytest.mark.parametrize(
    ("outermost_first", "told"),
    [
        ([CORSMiddleware, RateLimitMiddleware], 0),
        ([RateLimitMiddleware, CORSMiddleware], 1),
        ([UpstashMiddleware, GZipMiddleware, CORSMiddleware], 1),
        ([CacheMiddleware, CORSMiddleware], 0),
    ],
    ids=["outside", "inside", "further inside", "a cache alone"],
)
def test_a_cors_middleware_that_does_not_see_denials_is_told(
    caplog: pytest.LogCaptureFixture, outermost_first: list[Any], told: int
):
    """Once, when the application puts its middleware together."""
    arguments: dict[Any, dict[str, Any]] = {
        RateLimitMiddleware: {"default_limit": "9/hour"},
        UpstashMiddleware: {"default_limit": "9/hour", "cache": [CacheRule("/a", ttl=9)]},
        CacheMiddleware: {"cache": [CacheRule("/a", ttl=9)]},
    }
    middleware = [Middleware(cls, **arguments.get(cls, {})) for cls in outermost_first]
    Starlette(middleware=middleware).build_middleware_stack()
    assert len([line for line in caplog.messages if "CORSMiddleware" in line]) == told


@pytest.mark.parametrize("name", [{}, {"name": "api"}], ids=["unnamed", "named"])
def test_one_limit_before_several_parts_of_an_endpoint_counts_a_request_once(
    client: Serve, name: Any
):
    once = limit("9/hour", **name)

    async def inner(request: Request) -> Response:
        return PlainTextResponse(f"{request.state.rate_limit.remaining} left")

    guarded = once(once(inner))
    served = client(Starlette(routes=[Mount("/api", routes=[Route("/", guarded)])]))
    assert [served.get("/api/").text for _ in range(2)] == ["8 left", "7 left"]


def test_an_endpoint_that_calls_another_of_one_named_limit_counts_once(client: Serve):
    once = limit("9/hour", name="api")

    @once
    async def inner(request: Request) -> Response:
        return PlainTextResponse(f"{request.state.rate_limit.remaining} left")

    @once
    async def outer(request: Request) -> Response:
        response: Response = await inner(request)
        return response

    served = client(Starlette(routes=[Route("/", outer)]))
    assert [served.get("/").text for _ in range(2)] == ["8 left", "7 left"]


@pytest.mark.parametrize("outside", [True, False], ids=["in a middleware", "alone"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_background_task_charges_the_request_that_it_belongs_to(
    client: Serve, outside: bool, is_async: bool
):
    @limit("100/hour", name="chat")
    async def chat(request: Request) -> Response:
        decision = request.state.rate_limit

        async def count_tokens() -> None:
            decision.charge(10)

        task = BackgroundTask(count_tokens) if is_async else BackgroundTask(decision.charge, 10)
        return PlainTextResponse(str(decision.remaining), background=task)

    middleware = [Middleware(UpstashMiddleware, default_limit=None)] if outside else []
    served = client(Starlette(routes=[Route("/", chat)], middleware=middleware))
    assert [served.get("/").text for _ in range(3)] == ["99", "88", "77"]


def test_under_trio_a_late_charge_on_the_event_loop_is_refused(upstash: LocalUpstash):
    """No task can be started there without a nursery; nothing is lost in silence."""
    decisions: list[Any] = []

    async def chat(request: Request) -> Response:
        decisions.append(request.state.rate_limit)
        return PlainTextResponse("here")

    app = Starlette(routes=[Route("/", chat)])
    app.add_middleware(RateLimitMiddleware, default_limit="100/hour", deadline=20.0)
    with TestClient(app, backend="trio") as served:
        served.get("/")

        async def charge_late() -> None:
            with pytest.raises(RuntimeError, match="under trio, charge before the last byte"):
                decisions[0].charge(10)

        assert served.portal is not None
        served.portal.call(charge_late)
        decisions[0].charge(10)  # from this thread
        assert served.get("/").headers["x-ratelimit-remaining"] == "88"


@pytest.mark.parametrize("where", ["middleware", "decorator"])
def test_an_exempt_endpoint_reads_a_decision_without_figures(client: Serve, where: str):
    @exempt
    async def free(request: Request) -> Response:
        decision = request.state.rate_limit
        decision.charge(5)
        return PlainTextResponse(f"{decision.allowed} {decision.remaining}")

    middleware = [Middleware(RateLimitMiddleware, default_limit="1/hour")]
    if where == "decorator":
        served = client(Starlette(routes=[Route("/", limit("1/hour")(free))]))
    else:
        served = client(Starlette(routes=[Route("/", free)], middleware=middleware))
    assert [served.get("/").text for _ in range(2)] == ["True None"] * 2


@pytest.mark.parametrize("where", ["middleware", "decorator"])
def test_an_exception_handlers_limit_fields_are_sent_alone(client: Serve, where: str):
    def slow_down(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestDenied)
        return PlainTextResponse("slow down", 429, {"X-RateLimit-Remaining": "777"})

    outside = Middleware(RateLimitMiddleware, default_limit="1/hour")
    app = Starlette(
        routes=[Route("/", tea_plain if where == "middleware" else limit("1/hour")(tea_plain))],
        middleware=[outside] if where == "middleware" else [],
        exception_handlers={RequestDenied: slow_down},
    )
    served = client(app)
    served.get("/")
    fields = served.get("/").headers
    assert [(n, v) for n, v in fields.items() if "ratelimit" in n] == [
        ("x-ratelimit-remaining", "777")
    ]
