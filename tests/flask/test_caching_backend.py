"""The backend of Flask-Caching, through Flask-Caching."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, abort, make_response
from flask_caching import Cache, CachedResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from werkzeug.exceptions import Forbidden

from tests.data.test_values import VALUES, same
from tests.sessions.site import ask
from upstash_middleware.core.values import Unreadable
from upstash_middleware.errors import ConfigurationError, NotStorable, UpstashError
from upstash_middleware.events import UpstashFailed
from upstash_middleware.flask_caching_backend import FlaskCodec
from upstash_middleware.local import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

TYPE = "upstash_middleware.flask.caching_backend"
PREFIX = "test-flask-caching"


@pytest.fixture
def observed() -> list[Any]:
    return []


@pytest.fixture
def app(upstash: LocalUpstash, observed: list[Any]) -> Flask:
    app = Flask(__name__)
    app.debug = True  # Flask-Caching then raises what its backend does
    app.secret_key = "of a test"
    app.config["CACHE_TYPE"] = TYPE
    app.config["UPSTASH_MIDDLEWARE"] = {
        "redis": upstash,
        "prefix": PREFIX,
        "observers": [observed.append],
    }
    return app


@pytest.fixture
def cache(app: Flask) -> Iterator[Cache]:
    cache = Cache(app)
    with app.app_context():
        yield cache


@pytest.mark.parametrize("serializer", ["json", "signed-pickle"])
def test_views_of_all_kinds_are_cached(app: Flask, serializer: str):
    cache, calls = Cache(app, config={"CACHE_OPTIONS": {"serializer": serializer}}), []

    @app.get("/<kind>")
    @cache.cached(timeout=60)
    def view(kind: str) -> Any:
        calls.append(kind)
        match kind:
            case "text":
                return f"page {len(calls)}"
            case "response":
                response = make_response(f"é {len(calls)}".encode(), 201, {"X-Own": "é"})
                response.set_cookie("seen", "1")
                return response
            case "tuple":
                return {"n": len(calls)}, 202, {"X-Own": "a"}
            case "bytes":
                return Response(b"\xff%d" % len(calls), mimetype="image/png")
            case "timed":
                return CachedResponse(make_response(f"timed {len(calls)}"), 30)
        return abort(404, f"none {len(calls)}")

    client = app.test_client()
    for kind in ("text", "response", "tuple", "bytes", "timed", "missing"):
        first, second = (client.get(f"/{kind}") for _ in range(2))
        assert (first.status, first.data) == (second.status, second.data)
        assert list(first.headers) == list(second.headers)
        assert calls.count(kind) == 1


def test_a_response_that_streams_is_refused_with_a_remedy(cache: Cache):
    with pytest.raises(NotStorable, match="freeze"):
        cache.set("a", Response(iter(["a", "b"])))


def test_results_of_functions_are_memoized_and_forgotten(cache: Cache):
    calls: list[int] = []

    @cache.memoize(60)
    def price(product: int) -> tuple[int, Markup]:
        calls.append(product)
        return product * 10, Markup("<b>") + str(len(calls))

    assert price(7) == price(7) == (70, Markup("<b>1"))
    assert type(price(7)[1]) is Markup
    price(8)
    cache.delete_memoized(price, 7)
    price(7)
    price(8)
    assert calls == [7, 8, 7]
    cache.delete_memoized(price)
    price(8)
    assert calls == [7, 8, 7, 8]


def test_all_methods(cache: Cache):
    assert cache.set("a", 1) is True
    assert cache.get("a") == 1
    assert cache.add("a", 2) is False
    assert cache.add("b", None) is True
    assert (cache.has("b"), cache.has("c")) == (True, False)
    assert cache.set_many({"c": 3, "d": "four"}) == ["c", "d"]
    assert cache.get_many("a", "c", "nothing") == [1, 3, None]
    assert cache.get_dict("d") == {"d": "four"}
    backend = cache.cache
    assert (backend.inc("a", 2), backend.dec("a"), backend.inc("new")) == (3, 2, 1)
    assert cache.delete("a") is True
    assert cache.delete_many("b", "nothing") == ["b", "nothing"]
    assert cache.unlink("c") == ["c"]
    assert cache.clear() is True
    assert cache.get("d") is None


def test_zero_is_for_ever_and_less_is_nothing(cache: Cache, upstash: LocalUpstash):
    for name, timeout in (("a", 0), ("b", None), ("c", timedelta(hours=1)), ("d", -1)):
        cache.set(name, 1, timeout=timeout)
    assert cache.add("e", 1, timeout=-1) is True
    assert cache.get_many("a", "b", "c", "d", "e") == [1, 1, 1, None, None]
    upstash.advance(301)
    assert cache.get_many("a", "b", "c") == [1, None, 1]
    upstash.advance(399 * 86400)
    assert cache.get("a") == 1


def test_prefixes_have_their_own_keys_and_their_own_clear(app: Flask):
    one, other = (Cache(app, config={"CACHE_KEY_PREFIX": name}) for name in ("one:", "other:"))
    with app.app_context():
        one.set("a", 1)
        other.set("a", 2)
        one.clear()
        assert (one.get("a"), other.get("a")) == (None, 2)


def test_a_call_takes_one_round_trip(cache: Cache, upstash: LocalUpstash):
    def cost(function: Any, *args: Any) -> tuple[int, int]:
        upstash.reset_bill()
        function(*args)
        bill = upstash.bill()
        return bill.requests, bill.commands

    cache.get("a")
    assert cost(cache.set, "a", 1) == (1, 1)
    assert cost(cache.get, "a") == (1, 1)
    assert cost(cache.get_many, "a", "b") == (1, 1)
    assert cost(cache.set_many, {"a": 1, "b": 2}) == (1, 2)
    assert cost(cache.delete_many, "a", "b") == (1, 1)
    assert cost(cache.clear) == (1, 1)


def test_in_an_outage_views_are_rendered_and_writes_dropped_with_an_event(
    app: Flask, cache: Cache, upstash: LocalUpstash, observed: list[Any]
):
    app.get("/")(cache.cached()(lambda: "page"))
    with upstash.faults(fault=Fault.DROP_BEFORE):
        assert app.test_client().get("/").data == b"page"
        assert cache.set("a", 1) is False
        assert cache.set_many({"a": 1}) == []
        assert cache.add("a", 1) is False
        assert cache.delete_many("a") == []
        assert cache.cache.inc("a") is None
        assert cache.clear() is False
    assert any(isinstance(event, UpstashFailed) for event in observed)
    strict = Cache(app, config={"CACHE_OPTIONS": {"strict": True}})
    with upstash.faults(fault=Fault.DROP_BEFORE):
        assert strict.get("a") is None
        for call in (lambda: strict.set("a", 1), strict.clear, lambda: strict.delete_many("a")):
            with pytest.raises(UpstashError):
                call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serializer": "pickle"}, "'pickle' should be 'json' or 'signed-pickle'"),
        ({"serialiser": "json"}, "did you mean 'serializer'"),
    ],
)
def test_wrong_options_stop_the_start(app: Flask, options: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        Cache(app, config={"CACHE_OPTIONS": options})


def test_pickles_are_signed_with_the_secret_key(app: Flask):
    cache = Cache(app, config={"CACHE_OPTIONS": {"serializer": "signed-pickle"}})
    with app.app_context():
        cache.set("a", range(3))
        assert cache.get("a") == range(3)
        app.secret_key = "another"
        assert cache.get("a") is None
        app.config["SECRET_KEY_FALLBACKS"] = ["of a test"]
        assert cache.get("a") == range(3)
        app.secret_key = None
        with pytest.raises(ConfigurationError, match="SECRET_KEY"):
            cache.set("a", range(3))


def test_what_cannot_be_stored_names_the_serializer_that_can(cache: Cache):
    with pytest.raises(NotStorable, match="'serializer': 'signed-pickle'"):
        cache.set("a", range(3))


@given(VALUES)
@settings(max_examples=10)
def test_any_value_comes_back_equal_and_of_the_same_type_or_is_refused(value: Any):

    try:
        data = FlaskCodec().encode(value)
    except NotStorable:
        return
    assert same(FlaskCodec().decode(data), value)


def test_an_exception_with_a_response_comes_back():

    codec = FlaskCodec()
    error = Forbidden("no", response=Response(b"own", status=403))
    again = codec.decode(codec.encode(error))
    assert type(again) is Forbidden
    assert (again.description, again.get_response().data) == ("no", b"own")


@pytest.mark.parametrize(
    "stored",
    [
        b'{"$response":["os","system","200 OK",[],"",{}]}',
        b'{"$response":["flask.wrappers","Response","abc",[],"",{}]}',
        b'{"$response":["flask.wrappers","Response",5,[],"",{}]}',
        b'{"$response":["flask.wrappers","Response","200 OK\\r\\na: b",[],"",{}]}',
        b'{"$response":["flask.wrappers","Response","200 OK",[["a","b\\r\\nc"]],"",{}]}',
        b'{"$response":["flask.wrappers","Response","200 OK",[],5,{}]}',
        b'{"$response":["flask.wrappers","Response","200 OK",[],"",5]}',
        b'{"$response":["flask.wrappers","Response","200 OK",[],"",{"set_cookie":1}]}',
        b'{"$response":["flask.wrappers","Response","200 OK",[],"",{"is_sequence":false}]}',
        b'{"$response":["flask.wrappers","Response","200 OK",[],"",{"max_cookie_size":"x"}]}',
        b'{"$exception":["NotFound",{"get_headers":1}]}',
        b'{"$exception":["OSError",{}]}',
        b'{"$exception":["NotFound",{"description":null,"response":5}]}',
        b'{"$exception":["NotFound",{"description":null,"response":null,"code":"abc"}]}',
        b'{"$exception":["MethodNotAllowed",{"description":null,"response":null,"valid_methods":[5]}]}',
    ],
)
def test_what_no_response_was_stored_as_is_refused(stored: bytes):
    with pytest.raises(Unreadable):
        FlaskCodec().decode(stored)


PARTS = st.one_of(st.none(), st.booleans(), st.integers(-5, 999), st.text(max_size=4))
STATES = st.dictionaries(
    st.sampled_from(
        [
            *("get", "data", "headers", "status", "set_cookie", "direct_passthrough", "timeout"),
            *("implicit_sequence_conversion", "max_cookie_size", "_on_close", "call_on_close"),
            *("response", "description", "code", "get_response", "get_body", "www_authenticate"),
            *("valid_methods", "range", "length", "units", "original_exception", "retry_after"),
        ]
    ),
    PARTS,
    max_size=3,
)
FIELDS = st.tuples(
    st.sampled_from(["Content-Type", "Content-Length", "ETag", "Vary", "Set-Cookie", "X-A"]),
    st.sampled_from(["", "x", "text/html; charset=x", "é", "☃"]) | PARTS,
)
FORGED = {
    2: st.sampled_from(["304 NOT MODIFIED", "204", "999 "]) | PARTS,
    3: st.lists(FIELDS, min_size=1, max_size=3) | PARTS,
    4: PARTS,
    5: STATES,
}


@st.composite
def forged(draw: st.DrawFn) -> dict[str, Any]:
    """Return a stored response of which up to two parts are another's."""
    parts: list[Any] = ["flask.wrappers", "Response", "200 OK", [], "text", {}]
    for place in draw(st.sets(st.sampled_from([*FORGED]), min_size=1, max_size=2)):
        parts[place] = draw(FORGED[place])
    return {"$response": parts}


EXCEPTIONS = st.tuples(
    st.sampled_from(
        [
            *("NotFound", "Forbidden", "MethodNotAllowed", "Unauthorized", "InternalServerError"),
            *("TooManyRequests", "RequestedRangeNotSatisfiable", "HTTPException"),
        ]
    ),
    STATES,
).map(lambda parts: {"$exception": parts})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forged() | EXCEPTIONS)
def test_what_anybody_has_stored_is_sent_or_a_miss(app: Flask, upstash: LocalUpstash, stored: Any):
    app = Flask(__name__)
    app.testing = True  # the client raises what is no response
    app.config["UPSTASH_MIDDLEWARE"] = {"redis": upstash, "prefix": PREFIX}
    cache = Cache(app, config={"CACHE_TYPE": TYPE})

    @app.get("/")
    @cache.cached(key_prefix="page")
    def page() -> str:
        return "a miss"

    @app.after_request
    def mark(response: Response) -> Response:
        response.set_cookie("seen", "1")
        response.headers["X-Length"] = str(len(response.get_data()))
        return response

    with app.test_request_context():
        cache.set("page", "x")
    (key,) = ask(upstash, "KEYS", f"{PREFIX}:data#flask*")
    ask(upstash, "SET", key, json.dumps(stored), "EX", 100)
    response = app.test_client(use_cookies=False).get("/")
    for text in (response.status, *response.headers.keys(), *response.headers.values()):
        assert text.encode("latin-1") is not None  # as a server sends it
