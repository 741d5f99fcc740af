"""``Depends(limit(…))`` in FastAPI: routes, routers and whole applications."""

import base64
import re
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    Form,
    HTTPException,
    UploadFile,
)
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import (
    APIKeyHeader,
    HTTPBasic,
    HTTPBearer,
    HTTPDigest,
    OAuth2PasswordBearer,
)
from starlette.requests import HTTPConnection, Request
from starlette.testclient import TestClient
from upstash_redis import Redis

from upstash_middleware import ConfigurationError, Decision, Identifier, RateLimitRule, starlette
from upstash_middleware.fastapi import (
    RequestDenied,
    UpstashMiddleware,
    cached,
    exempt,
    limit,
    never_cached,
)
from upstash_middleware.local import LocalUpstash

Serve = Callable[[Any], TestClient]


def statuses(client: TestClient, path: str, times: int = 3) -> list[int]:
    return [client.get(path).status_code for _ in range(times)]


def plain() -> str:
    return "here"


def test_a_route_is_limited_and_the_handler_gets_the_decision(client: Serve):
    app = FastAPI()
    allowed = limit("2/hour")

    @app.get("/")
    def tea(decision: Annotated[Decision, Depends(allowed)]) -> int | None:
        return decision.remaining

    served = client(app)
    first, second, denied = (served.get("/") for _ in range(3))
    assert (first.json(), second.json()) == (1, 0)
    assert first.headers["x-ratelimit-remaining"] == "1"
    assert "tea" in first.headers["ratelimit"]
    assert denied.status_code == 429
    assert denied.headers["content-type"] == "application/problem+json"
    assert denied.json()["type"].endswith("quota-exceeded")
    assert int(denied.headers["retry-after"]) > 0


def test_the_schema_tells_nothing_of_a_limit(client: Serve):
    app = FastAPI()
    app.get("/", dependencies=[Depends(limit("2/hour"))])(plain)
    (operation,) = client(app).get("/openapi.json").json()["paths"]["/"].values()
    assert "parameters" not in operation


def test_a_routers_limit_counts_each_route_and_a_named_one_all_together(client: Serve):
    app = FastAPI()
    each = APIRouter(prefix="/each", dependencies=[Depends(limit("2/hour"))])
    both = APIRouter(prefix="/both", dependencies=[Depends(limit("2/hour", name="both"))])
    for router in (each, both):
        router.get("/a")(plain)
        router.get("/b")(also)
        app.include_router(router)
    served = client(app)
    assert statuses(served, "/each/a") == statuses(served, "/each/b") == [200, 200, 429]
    assert statuses(served, "/both/a", 1) + statuses(served, "/both/b", 2) == [200, 200, 429]


def also() -> str:
    return "there"


@pytest.mark.parametrize("outside", [True, False])
def test_of_a_routers_limit_and_a_routes_the_tightest_is_told(client: Serve, outside: bool):
    app = FastAPI(dependencies=[Depends(limit("100/hour"))])
    app.get("/", dependencies=[Depends(limit("3/hour"))])(plain)
    if outside:
        app.add_middleware(UpstashMiddleware, default_limit="50/hour")
    answer = client(app).get("/")
    assert answer.headers.get_list("x-ratelimit-limit") == ["3"]
    policies = ", ".join(answer.headers.get_list("ratelimit-policy"))
    assert all(f"q={quota};" in policies for quota in (3, 100, *([50] if outside else [])))


def own_response() -> JSONResponse:
    return JSONResponse("here")


def test_with_the_middleware_outside_a_response_of_the_functions_own_has_the_fields_too(
    client: Serve,
):
    app = FastAPI()
    app.get("/", dependencies=[Depends(limit("3/hour"))])(own_response)
    app.add_middleware(UpstashMiddleware, default_limit=None)
    assert client(app).get("/").headers["x-ratelimit-remaining"] == "2"


def test_the_applications_exception_handler_answers(client: Serve):
    app = FastAPI()
    app.get("/", dependencies=[Depends(limit("1/hour"))])(plain)

    @app.exception_handler(RequestDenied)
    def slow_down(_: Request, error: RequestDenied) -> JSONResponse:
        return JSONResponse({"wait": error.decision.retry_after}, 429, headers=error.headers)

    served = client(app)
    served.get("/")
    denied = served.get("/")
    assert denied.json()["wait"] > 0
    assert int(denied.headers["retry-after"]) > 0


@pytest.mark.parametrize("outside", [True, False])
def test_what_is_charged_is_settled_after_the_last_byte(client: Serve, outside: bool):
    app = FastAPI()
    allowed = limit("10/hour")

    @app.get("/")
    def generate(decision: Annotated[Decision, Depends(allowed)]) -> StreamingResponse:
        def tokens() -> Iterator[str]:
            for _ in range(3):
                decision.charge(2)
                yield "token "

        return StreamingResponse(tokens())

    if outside:
        app.add_middleware(UpstashMiddleware, default_limit=None)
    served = client(app)
    served.get("/")
    assert statuses(served, "/", 2) == [200, 429], "7 of 10 are gone, then 8 and more"


def test_settling_sees_the_response_where_the_middleware_stands_outside(client: Serve):
    app = FastAPI()
    failures = limit("2/hour", settle=lambda _, response: int(response.status == 401))

    @app.get("/", dependencies=[Depends(failures)])
    def login(password: str) -> str:
        if password != "right":
            raise HTTPException(401)
        return "welcome"

    app.add_middleware(UpstashMiddleware, default_limit=None)
    served = client(app)
    assert statuses(served, "/?password=right", 4) == [200] * 4
    assert statuses(served, "/?password=wrong", 3) == [401, 401, 429]


def test_settling_is_refused_where_nothing_shows_the_response(client: Serve):
    app = FastAPI()
    settled = limit("2/hour", settle=lambda _, response: 1)
    app.get("/", dependencies=[Depends(settled)])(plain)
    with pytest.raises(ConfigurationError, match="add UpstashMiddleware"):
        client(app).get("/")


def test_an_exempt_route_is_free_of_its_routers_limit_and_of_the_middlewares(client: Serve):
    app = FastAPI(dependencies=[Depends(limit("1/hour"))])
    router = APIRouter(prefix="/router")
    router.get("/health")(exempt(lambda: "well"))
    app.include_router(router)
    app.get("/")(plain)
    app.add_middleware(UpstashMiddleware, default_limit="9/hour")
    served = client(app)
    assert statuses(served, "/router/health", 12) == [200] * 12
    assert statuses(served, "/", 2) == [200, 429]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", [{}, {"name": "api"}], ids=["unnamed", "named"])
def test_one_limit_of_application_routers_and_route_counts_a_request_once(
    client: Serve, name: Any, use_cache: bool
):
    once = limit("9/hour", **name)
    depends = [Depends(once, use_cache=use_cache)]
    app = FastAPI(dependencies=depends)
    parent, child = APIRouter(dependencies=depends), APIRouter(dependencies=depends)

    @child.get("/", dependencies=depends)
    def left(decision: Annotated[Decision, Depends(once, use_cache=use_cache)]) -> int | None:
        return decision.remaining

    parent.include_router(child)
    app.include_router(parent)
    served = client(app)
    assert [served.get("/").json() for _ in range(2)] == [8, 7]


@pytest.mark.parametrize("outside", [True, False], ids=["in a middleware", "alone"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_background_task_charges_the_request_that_it_belongs_to(
    client: Serve, outside: bool, is_async: bool
):
    app = FastAPI()

    @app.get("/")
    def chat(
        decision: Annotated[Decision, Depends(limit("100/hour"))], tasks: BackgroundTasks
    ) -> int | None:
        async def count_tokens() -> None:
            decision.charge(10)

        if is_async:
            tasks.add_task(count_tokens)
        else:
            tasks.add_task(decision.charge, 10)
        return decision.remaining

    if outside:
        app.add_middleware(UpstashMiddleware, default_limit=None)
    served = client(app)
    assert [served.get("/").json() for _ in range(3)] == [99, 88, 77]


def policies(client: TestClient, path: str) -> str:
    return ", ".join(client.get(path).headers.get_list("ratelimit"))


@pytest.mark.parametrize("outside", [True, False], ids=["in a middleware", "alone"])
@pytest.mark.parametrize("late", [True, False])
def test_a_decision_of_a_dependency_charges_its_own_limit_only(
    client: Serve, outside: bool, late: bool
):
    app = FastAPI(dependencies=[Depends(limit("100/hour", name="outer"))])
    tokens = limit("1000/hour", name="tokens")
    calls = limit("10/hour", name="calls")

    @app.get("/")
    def chat(
        budget: Annotated[Decision, Depends(tokens)],
        other: Annotated[Decision, Depends(calls)],
        tasks: BackgroundTasks,
    ) -> list[int | None]:
        if late:
            tasks.add_task(budget.charge, 120)
        else:
            budget.charge(120)
        return [budget.remaining, other.remaining]

    if outside:
        app.add_middleware(UpstashMiddleware, default_limit="50/hour")
    served = client(app)
    assert served.get("/").json() == [999, 9]
    states = policies(served, "/")
    assert '"tokens";r=878' in states
    assert '"outer";r=98' in states
    assert '"calls";r=8' in states
    assert ('"default";r=48' in states) is outside


def test_the_decision_of_a_request_charges_every_limit_beside_those_of_dependencies(client: Serve):
    app = FastAPI()

    @app.get("/")
    def chat(
        request: Request, budget: Annotated[Decision, Depends(limit("1000/hour", name="tokens"))]
    ) -> None:
        budget.charge(100)
        request.state.rate_limit.charge(4)

    app.add_middleware(UpstashMiddleware, default_limit="50/hour")
    served = client(app)
    served.get("/")
    states = policies(served, "/")
    assert '"tokens";r=894' in states
    assert '"default";r=44' in states


def test_a_dependency_that_does_not_apply_charges_nothing(client: Serve):
    app = FastAPI()
    never = limit("1000/hour", name="tokens", when=lambda _: False)

    @app.get("/")
    def chat(budget: Annotated[Decision, Depends(never)]) -> int | None:
        budget.charge(40)
        return budget.remaining

    app.add_middleware(UpstashMiddleware, default_limit="50/hour")
    served = client(app)
    assert served.get("/").json() is None
    assert '"default";r=48' in policies(served, "/")


def test_a_limit_that_a_request_passes_twice_counts_once_and_can_be_charged(client: Serve):
    tokens = limit("1000/hour", name="tokens")
    app = FastAPI()

    @app.get("/", dependencies=[Depends(tokens)])
    def chat(budget: Annotated[Decision, Depends(tokens, use_cache=False)]) -> None:
        budget.charge(100)

    served = client(app)
    served.get("/")
    assert '"tokens";r=898' in policies(served, "/")


def test_an_exempt_route_gets_a_decision_without_figures(client: Serve):
    app = FastAPI(dependencies=[Depends(limit("1/hour"))])

    @app.get("/")
    @exempt
    def free(decision: Annotated[Decision, Depends(limit("1/hour"))]) -> str:
        decision.charge(5)
        return f"{decision.allowed} {decision.remaining}"

    served = client(app)
    assert [served.get("/").json() for _ in range(2)] == ["True None"] * 2


@pytest.mark.parametrize("outside", [True, False], ids=["in a middleware", "alone"])
def test_a_limit_field_that_the_route_sets_is_sent_alone(client: Serve, outside: bool):
    """Whether on the response that FastAPI merges, or on one of its own."""
    app = FastAPI(dependencies=[Depends(limit("100/hour"))])

    @app.get("/merged", dependencies=[Depends(limit("10/hour"))])
    def merged(response: Response) -> str:
        response.headers["X-RateLimit-Remaining"] = "777"
        return "here"

    @app.get("/own", dependencies=[Depends(limit("10/hour"))])
    def own() -> JSONResponse:
        return JSONResponse("here", headers={"X-RateLimit-Remaining": "777"})

    if outside:
        app.add_middleware(UpstashMiddleware, default_limit="1000/hour")
    served = client(app)
    for path in ("/merged", "/own"):
        fields = served.get(path).headers
        assert [(n, v) for n, v in fields.multi_items() if "ratelimit" in n] == [
            ("x-ratelimit-remaining", "777")
        ]


DEPENDENCIES = {
    "limit('5/minute')": limit("5/minute"),
    "cached(60)": cached(60),
    "never_cached": never_cached,
}


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_a_dependency_used_as_a_decorator_says_what_to_write(name: str):
    async def page() -> str:
        return "page"

    decorate: Any = DEPENDENCIES[name]
    with pytest.raises(TypeError) as raised:
        decorate(page)
    assert f"write dependencies=[Depends({name})]" in str(raised.value)


# Identities that a dependency finds


class Shopper:
    def __init__(self, key: Any) -> None:
        self.id = key


def shopper(found: Callable[[str], Any]) -> tuple[Any, list[str]]:
    """Return a dependency that finds a shopper, and for whom it was called."""
    called: list[str] = []

    def current_user(request: Request) -> Any:
        name = request.headers["authorization"]
        called.append(name)
        if name == "nobody":
            raise HTTPException(401)
        return found(name)

    return current_user, called


def visits(served: TestClient, *names: str) -> list[int]:
    return [served.get("/", headers={"authorization": name}).status_code for name in names]


VALUES: list[Callable[[str], Any]] = [
    str,
    Shopper,
    lambda name: Shopper(ord(name[0])),
    lambda name: uuid.uuid5(uuid.NAMESPACE_DNS, name),
    lambda name: Identifier("account", name),
]


@pytest.mark.parametrize("found", VALUES)
@pytest.mark.parametrize("where", ["first", "last", "default", "route", "application", "alone"])
def test_a_dependency_identifies_wherever_it_stands(
    client: Serve, found: Callable[[str], Any], where: str
):
    """FastAPI calls it once for each request, also for the function itself."""
    current_user, called = shopper(found)
    user = Depends(current_user)
    allowed = Depends(limit("1/hour", by=user))
    app = FastAPI(dependencies=[allowed] if where == "application" else [])

    def first(one: Annotated[Decision, allowed], user: Annotated[Any, user]) -> bool:
        return one.allowed and user is not None

    async def last(user: Annotated[Any, user], one: Annotated[Decision, allowed]) -> bool:
        return one.allowed and user is not None

    def default(one: Decision = allowed, user: Any = user) -> bool:
        return one.allowed and user is not None

    functions = {"first": first, "last": last, "default": default}
    own = Depends(limit("1/hour", by=Depends(current_user)))
    app.get("/", dependencies={"route": [allowed], "alone": [own]}.get(where))(
        functions.get(where, plain)
    )
    served = client(app)
    assert visits(served, "ada", "ada", "bob") == [200, 429, 200]
    assert called == ["ada", "ada", "bob"]
    (operation,) = served.get("/openapi.json").json()["paths"]["/"].values()
    assert "parameters" not in operation


def test_a_request_that_the_dependency_refuses_is_not_counted(client: Serve):
    current_user, _ = shopper(str)
    app = FastAPI()
    app.get("/", dependencies=[Depends(limit("1/hour", by=Depends(current_user)))])(plain)
    assert visits(client(app), "nobody", "nobody", "ada") == [401, 401, 200]


def test_visitors_without_an_identity_count_by_address(client: Serve):
    current_user, _ = shopper(lambda name: None if name == "guest" else name)
    app = FastAPI()
    app.get("/", dependencies=[Depends(limit("1/hour", by=Depends(current_user)))])(plain)
    assert visits(client(app), "guest", "guest", "ada") == [200, 429, 200]


def test_a_value_without_identity_is_reported(client: Serve, caplog: pytest.LogCaptureFixture):
    current_user, _ = shopper(lambda name: {"name": name})
    app = FastAPI()
    app.get("/", dependencies=[Depends(limit("1/hour", by=Depends(current_user)))])(plain)
    assert visits(client(app), "ada", "bob") == [200, 429]
    assert "returned a dict; it should return text" in caplog.text


BASIC = "Basic " + base64.b64encode(b"ada:sesame-99").decode()


@pytest.mark.parametrize(
    ("scheme", "sent"),
    [
        (OAuth2PasswordBearer("token"), "Bearer sesame-99"),
        (HTTPBearer(), "Bearer sesame-99"),
        (HTTPBasic(), BASIC),
        (HTTPDigest(), "Digest sesame-99"),
        (APIKeyHeader(name="Authorization"), "sesame-99"),
    ],
)
@pytest.mark.parametrize("through", [False, True])
def test_what_a_security_scheme_returns_is_written_nowhere(
    client: Serve, upstash: LocalUpstash, scheme: Any, sent: str, through: bool
):
    """Not in keys, nor in decisions; also where a dependency hands on the scheme's object."""

    def handed_on(value: Annotated[Any, Depends(scheme)]) -> Any:
        return Identifier("id", value, secret=True) if isinstance(value, str) else value

    app = FastAPI()
    by = Depends(handed_on if through else scheme)
    allowed = Depends(limit("1/hour", by=by))

    def decided(one: Annotated[Decision, allowed]) -> str:
        return repr(one)

    app.get("/")(decided)
    served = client(app)
    answers = [served.get("/", headers={"authorization": sent}) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 429]
    others = {"Bearer": "Bearer other", "Digest": "Digest other", "Basic": "Basic Ym9iOng="}
    other = others.get(sent.partition(" ")[0], "other")
    assert served.get("/", headers={"authorization": other}).status_code == 200
    with Redis(upstash.url, upstash.token) as redis:
        keys = str(redis.keys("*"))
    assert "id=#" in keys
    for written in (keys, answers[0].text):
        assert not {"ada", "sesame"} & set(re.findall(r"[a-z]+", written))


@pytest.mark.parametrize("found", [lambda name: 7, *VALUES[:4]])
def test_whatever_an_own_security_scheme_returns_is_hashed(
    client: Serve, upstash: LocalUpstash, found: Callable[[str], Any]
):
    class Own(APIKeyHeader):
        async def __call__(self, request: HTTPConnection) -> Any:
            return found(request.headers["authorization"])

    app = FastAPI()
    by = Depends(Own(name="Authorization"))
    app.get("/", dependencies=[Depends(limit("1/hour", by=by, name="own"))])(plain)
    assert visits(client(app), "ada", "ada") == [200, 429]
    with Redis(upstash.url, upstash.token) as redis:
        (key,) = (key for key in redis.keys("*") if ":own:" in key)
    assert re.search(r":own:(id|user)=#[0-9a-f]{32}", key)


def test_two_limits_may_depend_on_the_same_and_on_other_dependencies(client: Serve):
    current_user, called = shopper(str)

    def team(user: Annotated[str, Depends(current_user)]) -> str:
        return user[0]

    by_team = limit("2/hour", by=Depends(team), name="team")
    app = FastAPI(dependencies=[Depends(by_team)])
    app.get("/", dependencies=[Depends(limit("1/hour", by=Depends(current_user)))])(plain)
    assert visits(client(app), "ada", "ada", "amy", "bob") == [200, 429, 429, 200]
    assert called == ["ada", "ada", "amy", "bob"]


@pytest.mark.parametrize("make", [starlette.limit, partial(RateLimitRule, "/")])
def test_only_a_dependency_can_depend(make: Any):
    with pytest.raises(ConfigurationError, match=r"Depends\(limit\(..., by=...\)\)"):
        make("1/hour", by=Depends(plain))


# Limits by what the body contains


def test_a_limit_reads_the_form_that_fastapi_has_parsed(client: Serve):
    app = FastAPI()

    @app.post("/", dependencies=[Depends(limit("1/hour", by="form:name"))])
    async def login(name: Annotated[str, Form()], photo: UploadFile | None = None) -> str:
        return name + ("" if photo is None else (await photo.read()).decode())

    served = client(app)
    answers = [served.post("/", data={"name": name}) for name in ("ada", "Ada", "bob")]
    assert [each.status_code for each in answers] == [200, 429, 200]
    assert answers[0].json() == "ada"
    sent = served.post("/", data={"name": "eve"}, files={"photo": b"tea"})
    assert (sent.status_code, sent.json()) == (200, "evetea")
    assert served.post("/", data={"name": "EVE"}).status_code == 429
    assert served.post("/", data={"name": ["a", "b"]}).status_code == 200
    assert served.post("/", data={"name": ["c", "d"]}).status_code == 429


def test_a_limit_reads_the_json_that_fastapi_has_read(client: Serve):
    app = FastAPI()

    @app.post("/", dependencies=[Depends(limit("1/hour", by="json:user.name"))])
    def login(user: Annotated[dict[str, str], Body(embed=True)]) -> str:
        return user["name"]

    served = client(app)
    answers = [served.post("/", json={"user": {"name": name}}) for name in ("ada", "ADA", "bob")]
    assert [each.status_code for each in answers] == [200, 429, 200]
    assert answers[2].json() == "bob"


def test_a_route_reads_the_body_after_a_limit(client: Serve):
    app = FastAPI()

    @app.post("/", dependencies=[Depends(limit("9/hour", by="form:name"))])
    async def login(request: Request) -> str:
        return (await request.body()).decode()

    served = client(app)
    for data in ({"name": "ada"}, {"name": "ada", "padding": "x" * 70_000}):
        assert served.post("/", data=data).json().startswith("name=ada")
