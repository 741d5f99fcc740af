"""What the middleware puts before the application, and which two share one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.asgi.fakes import FakeHalf, whole
from tests.wsgi.fakes import TEXT, around, environ_of, replying, served
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.runtime import Features
from upstash_middleware.wsgi import CacheMiddleware, RateLimitMiddleware, UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from tests.wsgi.fakes import FakeRuntime
    from upstash_middleware.wsgi import Middleware


def looking(seen: dict[str, Any]) -> WSGIApplication:
    """Return an application that notes the environ that it is called with."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.clear()
        seen.update(environ)
        start_response("200 OK", list(TEXT))
        return [b"x", b"y"]

    return app


def test_switched_off_it_is_not_there():
    half = FakeHalf()
    app = replying(b"x")
    served(around(app, half, enabled=False))
    assert half.requests == []
    middleware = around(app, half, enabled=False)
    result = middleware(environ_of(), lambda *_: lambda _: None)
    assert isinstance(result, list), "the application's own iterable"


def test_the_application_reads_the_decision_and_the_cache():
    seen: dict[str, Any] = {}
    middleware = around(looking(seen), FakeHalf(decision="decided"))
    served(middleware)
    assert seen["upstash_middleware.rate_limit"] == "decided"
    assert seen["upstash_middleware.cache"] is middleware.runtime


@pytest.mark.parametrize("enabled", [True, False])
def test_the_application_finds_both_keys_where_nothing_was_decided(enabled: bool):
    seen: dict[str, Any] = {}
    served(around(looking(seen), FakeHalf(), enabled=enabled))
    assert seen["upstash_middleware.rate_limit"].settled_by == "unchecked"
    assert "upstash_middleware.cache" in seen


def test_a_decision_made_outside_is_not_hidden_by_a_layer_that_decides_nothing():
    seen: dict[str, Any] = {}
    inside = around(looking(seen), FakeHalf(), Features.BOTH)
    served(around(inside, FakeHalf(decision="decided"), Features.RATE_LIMIT))
    assert seen["upstash_middleware.rate_limit"] == "decided"


def test_a_request_with_a_validator_is_shown_so_to_the_application_alone():
    def forward(request: HTTPRequest) -> HTTPRequest:
        headers = request.headers.setting("if-none-match", '"7"')
        return HTTPRequest(request.method, request.path, headers)

    seen: dict[str, Any] = {}
    environ = environ_of(HTTP_COOKIE="a=1")
    served(around(looking(seen), FakeHalf(forward=forward)), environ)
    assert seen["HTTP_IF_NONE_MATCH"] == '"7"'
    assert seen["HTTP_COOKIE"] == "a=1"
    assert "HTTP_IF_NONE_MATCH" not in environ


def test_an_upgrade_field_lets_nobody_past():
    half = FakeHalf()
    served(around(replying(b"x"), half), environ_of(HTTP_UPGRADE="websocket"))
    assert len(half.requests) == 1


class Pair:
    """A rate limit and a cache, with an application inside of both."""

    def __init__(self, seen: dict[str, Any], **outer: Any) -> None:
        self.limit, self.cache = FakeHalf(**outer), FakeHalf()
        self.inside = around(looking(seen), self.cache, Features.CACHE)

    def outside(self, app: WSGIApplication, halves: Features = Features.RATE_LIMIT) -> Middleware:
        return around(app, self.limit, halves)

    def joined(self, outside: Middleware) -> bool:
        """Whether a request is looked up in the outer one's round trip, and once only."""
        served(outside)
        runtime, inner = cast("list[FakeRuntime]", [outside.runtime, self.inside.runtime])
        assert len(self.cache.requests) == 1
        assert self.limit.finished == self.cache.finished == [True]
        if runtime.inners == [None]:
            assert inner.inners == [None]
            return False
        assert runtime.inners == [inner]
        assert inner.inners == [], "it has begun nothing of its own"
        return True


def test_a_limit_directly_outside_a_cache_takes_its_lookup_along():
    seen: dict[str, Any] = {}
    pair = Pair(seen, decision="decided")
    assert pair.joined(pair.outside(pair.inside))
    assert seen["upstash_middleware.rate_limit"] == "decided"
    assert seen["upstash_middleware.cache"] is pair.inside.runtime
    assert "upstash_middleware.handed" not in seen


def test_a_limit_around_an_object_whose_wsgi_app_is_a_cache_takes_its_lookup_along():
    """That is how a Flask application stands: what its ``wsgi_app`` is, is asked at each call."""
    pair = Pair({})

    class Framework:
        wsgi_app: WSGIApplication = staticmethod(replying(b"x"))

        def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            return self.wsgi_app(environ, start)

    framework = Framework()
    outside = pair.outside(framework)
    framework.wsgi_app = pair.inside
    assert pair.joined(outside)


def test_with_a_layer_between_each_goes_by_itself():
    pair = Pair({})

    def between(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        return pair.inside(environ, start)

    assert not pair.joined(pair.outside(between))


@pytest.mark.parametrize("halves", [Features.BOTH, Features.CACHE])
def test_a_cache_outside_a_cache_does_not_ask_on_its_behalf(halves: Features):
    """Its hits answer without the inner one, whose locks would have been taken for nothing."""
    pair = Pair({})
    assert not pair.joined(pair.outside(pair.inside, halves))


def test_what_was_handed_to_a_cache_that_is_not_reached_is_finished_by_the_limit():
    pair = Pair({})

    class Elsewhere:
        wsgi_app = pair.inside

        def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            return replying(b"x")(environ, start)

    served(pair.outside(Elsewhere()))
    assert pair.limit.finished == [True]
    assert pair.cache.finished == [False]


def test_what_was_handed_to_another_cache_is_left_to_the_limit():
    seen: dict[str, Any] = {}
    pair, other = Pair(seen), Pair(seen)

    class Elsewhere:
        wsgi_app = pair.inside

        def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            return other.inside(environ, start)

    served(pair.outside(Elsewhere()))
    assert pair.cache.finished == [False]
    assert other.cache.finished == [True]


def test_a_denial_finishes_what_it_had_looked_up_inside():
    pair = Pair({}, response=whole(429, b"wait"))
    assert served(pair.outside(pair.inside)).status == "429 Too Many Requests"
    assert pair.cache.finished == [False]


@pytest.mark.parametrize(
    ("cls", "halves", "arguments"),
    [
        (UpstashMiddleware, Features.BOTH, {"default_limit": "5/minute"}),
        (RateLimitMiddleware, Features.RATE_LIMIT, {"default_limit": "5/minute"}),
        (CacheMiddleware, Features.CACHE, {"cache": [{"path": "/tea", "ttl": 60}]}),
    ],
)
def test_each_class_switches_its_halves_on(
    cls: Callable[..., Middleware], halves: Features, arguments: dict[str, Any]
):
    app = replying(b"x")
    middleware = cls(app, **arguments)
    assert middleware.runtime.features is halves
    assert middleware.app is app
    with pytest.raises(ConfigurationError, match="dead_line"):
        cls(app, dead_line=1, **arguments)
