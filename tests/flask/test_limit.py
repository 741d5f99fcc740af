"""``@limit`` in front of Flask views and blueprints: what it counts, shows, answers and settles."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    g,
    request,
    stream_with_context,
)
from flask.views import MethodView
from werkzeug.exceptions import TooManyRequests

from upstash_middleware import CacheRule, ConfigurationError, first_of
from upstash_middleware.flask import (
    EXTENSION,
    CacheMiddleware,
    RateLimitExceeded,
    UpstashMiddleware,
    exempt,
    limit,
    purge,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.usefixtures("upstash")


@pytest.fixture
def app() -> Iterator[Flask]:
    """An empty application, whose clients are closed afterwards."""
    app = Flask("shop")
    yield app
    for middleware in app.extensions.get(EXTENSION, {}).values():
        middleware.runtime.close()
    if (own := app.extensions.get("upstash_middleware.limits")) is not None:
        own.close()


def statuses(app: Flask, path: str, times: int = 3, **kwargs: Any) -> list[int]:
    client = app.test_client()
    return [client.get(path, buffered=True, **kwargs).status_code for _ in range(times)]


def left() -> str:
    return f"{g.rate_limit.remaining} left"


async def left_async() -> str:
    return f"{g.rate_limit.remaining} left"


def plain(**_: Any) -> str:
    return "here"


def test_a_view_is_limited_and_says_so(app: Flask):
    app.add_url_rule("/", view_func=limit("2/hour")(left))
    client = app.test_client()
    first, second, denied = (client.get("/", buffered=True) for _ in range(3))
    assert (first.text, second.text) == ("1 left", "0 left")
    assert first.headers["X-RateLimit-Remaining"] == "1"
    assert f'"{__name__}.left";r=1' in first.headers["RateLimit"]
    assert denied.status_code == 429
    assert (denied.json or {})["type"].endswith("quota-exceeded")
    assert denied.content_type == "application/problem+json"
    assert int(denied.headers["Retry-After"]) > 0
    assert denied.headers["Cache-Control"] == "no-store"


def test_views_count_each_by_itself_and_together_under_a_named_limit(app: Flask):
    together = limit("2/hour", name="together")
    for name in ("a", "b"):
        app.add_url_rule(f"/{name}", f"{name}", together(plain))
    app.add_url_rule("/c", "c", limit("2/hour")(left))
    app.add_url_rule("/d", "d", limit("2/hour")(plain))
    assert statuses(app, "/a", 1) + statuses(app, "/b", 2) == [200, 200, 429]
    assert statuses(app, "/c") == statuses(app, "/d") == [200, 200, 429]


def test_a_blueprint_is_limited_by_a_before_request_function_view_by_view(app: Flask):
    api = Blueprint("api", __name__, url_prefix="/api")
    api.before_request(limit("2/hour"))
    api.add_url_rule("/a", view_func=left)
    api.add_url_rule("/b", view_func=exempt(lambda: "free"))
    app.register_blueprint(api)
    app.add_url_rule("/outside", "outside", plain)
    answer = app.test_client().get("/api/a", buffered=True)
    assert (answer.text, answer.headers["X-RateLimit-Remaining"]) == ("1 left", "1")
    assert statuses(app, "/api/a", 2) == [200, 429]
    assert statuses(app, "/api/b") == statuses(app, "/outside") == [200, 200, 200]


def test_a_blueprints_limit_holds_in_those_inside_it_and_a_named_one_counts_all_its_views(
    app: Flask,
):
    api, inner = Blueprint("api", __name__), Blueprint("inner", __name__)
    api.before_request(limit("3/hour", name="all of the api"))
    inner.before_request(limit("2/hour"))
    api.add_url_rule("/a", "a", plain)
    inner.add_url_rule("/b", "b", plain)
    inner.add_url_rule("/c", "c", left)
    api.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(api, url_prefix="/api")
    assert statuses(app, "/api/inner/b") == [200, 200, 429]
    assert statuses(app, "/api/a", 1) == [429], "the three went to the views inside"


def test_before_every_request_of_the_application_404s_are_counted_too(app: Flask):
    app.before_request(limit("2/hour"))
    assert statuses(app, "/absent") == [404, 404, 429]


class Shop(MethodView):
    """A class of views, limited as its documentation says."""

    decorators = [limit("1/hour")]  # noqa: RUF012 - as Flask's documentation has it

    def get(self) -> str:
        return left()


class Branch(MethodView):
    """A limit before one method, and exempt from others."""

    @limit("1/hour")
    def get(self) -> str:
        return left()

    def post(self) -> str:
        return "posted"


def test_views_of_classes_are_limited_each_by_itself(app: Flask):
    app.add_url_rule("/shop", view_func=Shop.as_view("shop"))
    app.add_url_rule("/shop2", view_func=Shop.as_view("shop2"))
    app.add_url_rule("/branch", view_func=Branch.as_view("branch"))
    for path in ("/shop", "/shop2", "/branch"):
        assert statuses(app, path, 2) == [200, 429]
    assert app.test_client().post("/branch", buffered=True).status_code == 200


def test_a_class_or_blueprint_is_refused_with_what_to_write_instead():
    with pytest.raises(ConfigurationError, match="`before_request`"):
        limit("1/hour")(Blueprint("api", __name__))  # type: ignore[call-overload]


def test_of_several_limits_and_the_middleware_the_tightest_is_told(app: Flask):
    UpstashMiddleware(app, default_limit="50/hour")
    app.add_url_rule("/", view_func=limit("100/hour", name="day")(limit("3/hour")(plain)))
    answer = app.test_client().get("/", buffered=True)
    assert answer.headers.getlist("X-RateLimit-Limit") == ["3"]
    policies = ", ".join(answer.headers.getlist("RateLimit-Policy"))
    assert all(f"q={quota};" in policies for quota in (3, 50, 100))


def test_a_limit_takes_one_round_trip(app: Flask, upstash: LocalUpstash):
    app.add_url_rule("/", view_func=limit("9/hour")(left))
    statuses(app, "/", 1)
    upstash.reset_bill()
    statuses(app, "/", 1)
    bill = upstash.bill()
    assert (bill.requests, bill.commands) == (1, 3)


def test_before_request_counts_the_preflights_that_reach_a_view_and_not_those_flask_answers(
    app: Flask,
):
    app.before_request(limit("1/hour"))
    app.get("/tea")(plain)
    app.add_url_rule("/milk", "milk", left, methods=["GET", "OPTIONS"])
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    client = app.test_client()

    def preflights(path: str) -> list[int]:
        return [client.options(path, headers=headers, buffered=True).status_code for _ in range(3)]

    assert preflights("/tea") == [200, 200, 200]
    assert preflights("/milk") == [200, 429, 429]
    assert statuses(app, "/tea", 2) == [200, 429]


def test_a_limit_counts_by_what_before_request_has_found_out(app: Flask):
    @app.before_request
    def authenticate() -> None:
        g.user = request.headers.get("X-Name")

    app.add_url_rule("/", view_func=limit("1/hour", by=lambda _: g.user)(left))
    assert statuses(app, "/", 2, headers={"X-Name": "ada"}) == [200, 429]
    assert statuses(app, "/", 2, headers={"X-Name": "bob"}) == [200, 429]


@pytest.mark.parametrize("key", [429, TooManyRequests, RateLimitExceeded])
@pytest.mark.parametrize("around", ["decorator", "middleware"])
def test_the_applications_error_handler_answers_and_the_denials_fields_stay(
    app: Flask, key: Any, around: str
):
    @app.errorhandler(key)
    def slow_down(error: RateLimitExceeded) -> tuple[str, int]:
        return f"slow down: {error.decision.limit} and no more", 429

    @app.after_request
    def add_cors(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "https://app.example"
        return response

    if around == "middleware":
        UpstashMiddleware(app, default_limit="1/hour")
    app.add_url_rule("/", view_func=limit("1/hour")(left) if around == "decorator" else plain)
    client = app.test_client()
    client.get("/", buffered=True)
    denied = client.get("/", buffered=True)
    assert (denied.status_code, denied.text) == (429, "slow down: 1 and no more")
    assert int(denied.headers["Retry-After"]) > 0
    assert denied.headers["X-RateLimit-Remaining"] == "0"
    assert denied.headers["Access-Control-Allow-Origin"] == "https://app.example"


def test_after_request_functions_see_the_middlewares_own_answer_too(app: Flask):
    @app.after_request
    def add_cors(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "https://app.example"
        return response

    UpstashMiddleware(app, default_limit="1/hour")
    app.add_url_rule("/", view_func=plain)
    client = app.test_client()
    client.get("/", buffered=True)
    denied = client.get("/", buffered=True)
    assert (denied.json or {})["title"] == "Too many requests"
    assert denied.headers.getlist("Access-Control-Allow-Origin") == ["https://app.example"]
    assert denied.headers.getlist("Retry-After") == [denied.headers["Retry-After"]]


def test_an_error_handler_that_raises_leaves_the_middlewares_own_answer(
    app: Flask, caplog: pytest.LogCaptureFixture
):
    @app.errorhandler(429)
    def broken(_: Exception) -> str:
        raise KeyError("template")

    UpstashMiddleware(app, default_limit="1/hour")
    app.add_url_rule("/", view_func=plain)
    assert statuses(app, "/", 2) == [200, 429]
    assert "error handler" in caplog.text


def test_settling_sees_the_status_that_an_exception_becomes(app: Flask):
    @app.get("/")
    @limit("2/hour", settle=lambda _, response: int(response.status == 401))
    def login() -> str:
        if request.args["password"] != "right":
            abort(401)
        return "welcome"

    assert statuses(app, "/?password=right", 4) == [200] * 4
    assert statuses(app, "/?password=wrong", 3) == [401, 401, 429]


def test_what_a_view_charges_while_it_streams_is_settled_after_the_last_byte(app: Flask):
    @app.get("/")
    @limit("10/hour")
    def generate() -> Response:
        def tokens() -> Iterator[str]:
            for _ in range(3):
                g.rate_limit.charge(2)
                yield "token "

        return Response(stream_with_context(tokens()))

    client = app.test_client()
    first, second = (client.get("/", buffered=True) for _ in range(2))
    assert first.headers["X-RateLimit-Remaining"] == "9"
    assert second.headers["X-RateLimit-Remaining"] == "2", "10 - (1 + 6) - 1"


def test_what_is_charged_is_settled_where_the_exception_goes_on_to_the_server(app: Flask):
    app.testing = True  # so that Flask makes no response of exceptions

    @app.get("/")
    @limit("10/hour")
    def fail() -> str:
        g.rate_limit.charge(4)
        if "fail" in request.args:
            raise KeyError("gone")
        return "well"

    client = app.test_client()
    with pytest.raises(KeyError):
        client.get("/?fail", buffered=True)
    assert client.get("/", buffered=True).headers["X-RateLimit-Remaining"] == "4", "10 - 5 - 1"


def test_an_async_view_is_called_as_flask_calls_it(app: Flask):
    pytest.importorskip("asgiref")
    app.add_url_rule("/", view_func=limit("1/hour")(left_async))
    assert statuses(app, "/", 2) == [200, 429]


class Health(MethodView):
    """Exempt as a class."""

    def get(self) -> str:
        return "well"


exempt(Health)


def test_the_middleware_lets_exempt_views_pass(app: Flask):
    UpstashMiddleware(app, default_limit="1/hour")
    app.add_url_rule("/health/<name>", "health", exempt(lambda name: name))
    app.add_url_rule("/class", view_func=Health.as_view("class"))
    app.add_url_rule("/tea", view_func=plain)
    assert statuses(app, "/health/db") == statuses(app, "/class") == [200, 200, 200]
    assert statuses(app, "/tea", 2) == [200, 429], "all others are limited as before"
    assert statuses(app, "/absent", 1) == [429]


def test_a_decorator_uses_the_applications_config(app: Flask, upstash: LocalUpstash):
    app.config["UPSTASH_MIDDLEWARE"] = {"enabled": False}
    app.add_url_rule("/", view_func=limit("1/hour")(lambda: str(g.rate_limit)))
    assert statuses(app, "/") == [200, 200, 200]
    assert upstash.bill().requests == 0


def test_a_page_from_the_cache_carries_no_field_of_a_limit(app: Flask):
    CacheMiddleware(app, cache=[{"path": "/", "ttl": 60}])
    app.add_url_rule("/", view_func=limit("9/hour")(plain))
    client: FlaskClient = app.test_client()
    rendered, stored = (client.get("/", buffered=True) for _ in range(2))
    assert rendered.headers["X-RateLimit-Remaining"] == "8"
    assert "; hit" in stored.headers["Cache-Status"]
    assert not [name for name, _ in stored.headers if "ratelimit" in name.lower()]


def test_what_the_cache_fetches_in_the_background_is_charged_to_no_limit(app: Flask):
    CacheMiddleware(app, cache=[{"path": "/", "ttl": 60}])
    rendered: list[int | None] = []

    @app.get("/")
    @limit("9/hour")
    def page() -> Response:
        rendered.append(g.rate_limit and g.rate_limit.remaining)
        stale_at_once = "max-age=0, stale-while-revalidate=60"
        return Response("page", headers={"Cache-Control": stale_at_once})

    assert statuses(app, "/", 2) == [200, 200]
    assert rendered == [8, None], "the second one had no client"


@pytest.mark.parametrize(
    ("arguments", "status"), [({"deny": ["127.0.0.0/8"]}, 403), ({"on_error": "closed"}, 503)]
)
@pytest.mark.parametrize("handled", [True, False])
def test_a_deny_list_and_a_closed_rule_have_their_own_status_and_error_handler(
    app: Flask, arguments: Any, status: int, handled: bool, upstash_faults: Any
):
    if status == 503:
        upstash_faults(fault="bad-gateway")
    app.add_url_rule("/", view_func=limit("1/hour", **arguments)(plain))
    if handled:
        app.register_error_handler(status, lambda error: (f"own {error.code}", error.code))
    denied = app.test_client().get("/", buffered=True)
    assert denied.status_code == status
    assert (denied.text if handled else (denied.json or {})["status"]) == (
        f"own {status}" if handled else status
    )


@pytest.mark.parametrize("name", [{}, {"name": "api"}], ids=["unnamed", "named"])
@pytest.mark.parametrize("middleware", [True, False])
def test_one_limit_before_application_blueprints_and_view_counts_a_request_once(
    app: Flask, name: Any, middleware: bool
):
    once = limit("9/hour", **name)
    parent, child = Blueprint("parent", __name__), Blueprint("child", __name__)
    for each in (app, parent, child):
        each.before_request(once)
    child.add_url_rule("/", view_func=once(left))
    parent.register_blueprint(child)
    app.register_blueprint(parent)
    if middleware:
        UpstashMiddleware(app, default_limit="100/hour")
    client = app.test_client()
    first, second = (client.get("/", buffered=True) for _ in range(2))
    assert (first.text, second.text) == ("8 left", "7 left")
    assert second.headers["X-RateLimit-Remaining"] == "7"
    assert second.headers["X-RateLimit-Limit"] == "9"


@pytest.mark.parametrize("where", ["middleware", "decorator", "both"])
@pytest.mark.parametrize("moment", ["after_this_request", "after_request", "close", "teardown"])
def test_a_view_may_charge_at_any_moment(app: Flask, where: str, moment: str):
    """Before the response is closed, while it is closed, and after that."""

    def view() -> str:
        decision = g.rate_limit

        def charge(response: Response) -> Response:
            decision.charge(10)
            return response

        if moment == "after_this_request":
            after_this_request(charge)
        g.decision = decision
        return str(decision.remaining)

    @app.after_request
    def in_the_end(response: Response) -> Response:
        decision = g.decision
        if moment == "after_request":
            decision.charge(10)
        if moment == "close":
            response.call_on_close(lambda: decision.charge(10))
        return response

    @app.teardown_request
    def torn_down(_: BaseException | None) -> None:
        if moment == "teardown":
            g.decision.charge(10)

    app.add_url_rule("/", view_func=view if where == "middleware" else limit("100/hour")(view))
    if where != "decorator":
        UpstashMiddleware(app, default_limit="100/hour")
    client = app.test_client()
    assert [client.get("/", buffered=True).text for _ in range(3)] == ["99", "88", "77"]


@pytest.mark.parametrize("where", ["middleware", "decorator"])
def test_an_exempt_view_reads_a_decision_without_figures(app: Flask, where: str):
    @exempt
    def free() -> str:
        g.rate_limit.charge(5)
        return f"{g.rate_limit.allowed} {g.rate_limit.remaining}"

    app.add_url_rule("/", view_func=free if where == "middleware" else limit("1/hour")(free))
    if where == "middleware":
        UpstashMiddleware(app, default_limit="1/hour")
    client = app.test_client()
    assert [client.get("/", buffered=True).text for _ in range(2)] == ["True None"] * 2


@pytest.mark.parametrize("where", ["middleware", "decorator"])
def test_an_error_handlers_limit_fields_are_sent_alone(app: Flask, where: str):
    @app.errorhandler(429)
    def slow_down(_: Exception) -> tuple[str, int, dict[str, str]]:
        return "slow down", 429, {"X-RateLimit-Remaining": "777"}

    if where == "middleware":
        UpstashMiddleware(app, default_limit="1/hour")
    app.add_url_rule("/", view_func=plain if where == "middleware" else limit("1/hour")(plain))
    client = app.test_client()
    client.get("/", buffered=True)
    fields = client.get("/", buffered=True).headers
    assert [(n, v) for n, v in fields if "ratelimit" in n.lower()] == [
        ("X-RateLimit-Remaining", "777")
    ]


def test_the_text_user_is_refused_where_no_user_is_known(app: Flask):
    with pytest.raises(
        ConfigurationError, match=r"by='user'\): this package knows no user .* function"
    ):
        limit("1/hour", by="user")
    with pytest.raises(
        ConfigurationError, match=r"by='user'\): this package knows no user .* function"
    ):
        limit("1/hour", by=first_of("user", "ip"))
    app.config["UPSTASH_MIDDLEWARE"] = {"default_limit": {"limits": "1/hour", "by": "user"}}
    with pytest.raises(ConfigurationError, match=r"\['default_limit'\]\['by'\] = 'user'"):
        UpstashMiddleware(app)


def test_tags_to_purge_are_a_sequence_and_one_text_is_refused(app: Flask):
    """It would purge a tag for each of its letters."""
    CacheMiddleware(app, cache=[CacheRule("/", ttl=60)])
    with app.app_context():
        purge(tags=["tea"])
        with pytest.raises(TypeError, match=r"tags='tea' should be a sequence such as \['tea'\]"):
            purge(tags="tea")


def test_a_response_that_a_view_gives_every_time_has_the_fields_of_each_request_alone(app: Flask):
    health = Response("well", headers={"X-Own": "own"})
    app.add_url_rule("/health", view_func=limit("9/hour")(lambda: health), endpoint="health")
    for number, left in ((1, "8"), (1, "7"), (2, "8")):
        client = app.test_client()
        answer = client.get("/health", environ_base={"REMOTE_ADDR": f"203.0.113.{number}"})
        assert answer.headers.getlist("X-RateLimit-Remaining") == [left]
        assert answer.headers.getlist("X-Own") == ["own"]


@pytest.mark.parametrize("read", ["form", "data", "path"])
def test_a_limit_reads_the_form_whatever_was_read_before(app: Flask, read: str):
    """A function before it may have parsed the form, or read the body."""

    @app.before_request
    def before() -> None:
        getattr(request, read)

    @app.post("/")
    @limit("1/hour", by="form:name")
    def login() -> str:
        photo = request.files.get("photo")
        return request.form["name"] + (photo.read().decode() if photo else "")

    client = app.test_client()
    answers = [client.post("/", data={"name": name}) for name in ("ada", " Ada", "bob")]
    assert [each.status_code for each in answers] == [200, 429, 200]
    sent = {"name": "eve", "photo": (BytesIO(b"tea"), "a.png")}
    with client.post("/", data=sent) as answer:
        assert (answer.status_code, answer.get_data(as_text=True)) == (200, "evetea")
    assert client.post("/", data={"name": "EVE"}).status_code == 429


def test_a_body_that_was_streamed_before_counts_with_those_without_a_name(app: Flask):
    @app.before_request
    def before() -> None:
        request.stream.read()

    app.post("/")(limit("1/hour", by="form:name")(left))
    client = app.test_client()
    assert [client.post("/", data={"name": name}).status_code for name in "ab"] == [200, 429]
