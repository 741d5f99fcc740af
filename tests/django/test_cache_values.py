"""What Django's own parts cache, with the default serializer: it comes back as it was."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.sessions.backends.cache import SessionStore
from django.core.cache import cache
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template import Context, Engine
from django.template.backends.django import DjangoTemplates
from django.template.response import ContentNotRenderedError, SimpleTemplateResponse
from django.test import Client, RequestFactory, override_settings
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.cache import cache_page
from django.views.decorators.clickjacking import xframe_options_exempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.response import Response
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from tests.data.test_values import VALUES, same
from tests.django.project import Urls
from upstash_middleware.django.values import DjangoCodec
from upstash_middleware.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

CODEC = DjangoCodec()


@pytest.fixture
def project(upstash: LocalUpstash) -> Iterator[None]:
    alias = {"BACKEND": "upstash_middleware.django.cache.UpstashCache"}
    with override_settings(UPSTASH_MIDDLEWARE={"redis": upstash}, CACHES={"default": alias}):
        yield


def back(value: Any) -> Any:
    return CODEC.decode(CODEC.encode(value))


def assert_same_response(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert one.content == other.content
    assert (one.status_code, one.reason_phrase) == (other.status_code, other.reason_phrase)
    assert (one.headers, one.charset) == (other.headers, other.charset)
    assert one.cookies == other.cookies
    assert one.cookies.output() == other.cookies.output()


FIELDS = st.text(st.characters(codec="latin-1", categories=("L", "N", "P")), max_size=20)
COOKIE_NAMES = st.text("abcXYZ019_-", min_size=1, max_size=8)


@st.composite
def responses(draw: st.DrawFn) -> HttpResponse:
    kind = draw(st.sampled_from([HttpResponse, HttpResponseRedirect, JsonResponse]))
    if kind is HttpResponse:
        response: HttpResponse = HttpResponse(
            draw(st.binary() | st.text(st.characters(codec="ascii"))),
            content_type=draw(st.sampled_from([None, "text/css", "text/html; charset=latin-1"])),
            status=draw(st.sampled_from([None, 200, 201, 404, 503])),
            reason=draw(st.sampled_from([None, "Because"])),
        )
    elif kind is HttpResponseRedirect:
        response = HttpResponseRedirect("/elsewhere?" + draw(st.text("ab%=&", max_size=5)))
    else:
        response = JsonResponse({"a": draw(st.integers())})
    for name in draw(st.lists(st.sampled_from(["X-A", "Vary", "ETag"]), unique=True)):
        response[name] = draw(FIELDS)
    for name in draw(st.lists(COOKIE_NAMES, unique=True, max_size=3)):
        response.set_cookie(
            name,
            draw(st.text(st.characters(codec="latin-1", categories=("L", "N", "P", "S", "Zs")))),
            max_age=draw(st.none() | st.integers(0, 10**6)),
            path=draw(st.sampled_from(["/", "/shop"])),
            domain=draw(st.sampled_from([None, "shop.example"])),
            secure=draw(st.booleans()),
            httponly=draw(st.booleans()),
            samesite=draw(st.sampled_from([None, "Lax", "Strict"])),
        )
    return response


@given(responses())
def test_a_response_comes_back_as_it_was(response: HttpResponse):
    assert_same_response(response, back(response))
    assert not back(response).closed


@given(VALUES)
@settings(max_examples=10)
def test_any_other_value_comes_back_equal_and_of_the_same_type_or_is_refused(value: Any):
    try:
        data = CODEC.encode(value)
    except NotStorable:
        return
    assert same(CODEC.decode(data), value)


@given(st.text(st.characters(codec="utf-8")))
def test_safe_text_stays_safe_and_other_text_does_not_become_it(text: str):
    values = [mark_safe(text), text, {"$safe": text}, mark_safe("")]
    assert [type(value) for value in back(values)] == [SafeString, str, dict, SafeString]
    assert back(values) == values


def test_what_views_and_decorators_set_on_a_response_stays():
    response = xframe_options_exempt(lambda _request: HttpResponse("x"))(HttpRequest())
    assert back(response).xframe_options_exempt is True


def test_a_response_may_be_written_to_when_it_is_back():
    response = back(HttpResponseNotAllowed(["GET"], "no"))
    response.write("thing")
    assert (response.content, response["Allow"]) == (b"nothing", "GET")


def test_a_rendered_template_comes_back_and_one_that_is_not_is_refused():
    engine = DjangoTemplates({"NAME": "", "DIRS": [], "APP_DIRS": False, "OPTIONS": {}})
    template = engine.from_string("hello {{ name }}")
    response = SimpleTemplateResponse(template, {"name": "you"})
    with pytest.raises(ContentNotRenderedError):
        CODEC.encode(response)
    again = back(response.render())
    assert (again.content, again.is_rendered) == (b"hello you", True)
    assert_same_response(response, again)


class OwnResponse(HttpResponse):
    """A response of the project's own, which may have any state."""


@pytest.mark.parametrize(
    "value", [OwnResponse("x"), StreamingHttpResponse(["x"]), Engine(), [range(3)]]
)
def test_other_objects_are_refused(value: Any):
    with pytest.raises(NotStorable):
        CODEC.encode(value)


@pytest.mark.parametrize(
    "stored",
    [
        b'{"$response":["os.system",200,null,null,[],[],"",{}]}',
        b'{"$response":["HttpResponse",200,null,null,[["A","b\\r\\nc"]],[],"",{}]}',
        b'{"$response":["HttpResponse",200]}',
        b'{"$response":"HttpResponse"}',
        b'{"$response":["HttpResponse","abc",null,null,[],[],"",{}]}',
        b'{"$response":["HttpResponse",5,null,null,[],[],"",{}]}',
        b'{"$response":["HttpResponse",true,null,null,[],[],"",{}]}',
        b'{"$response":["HttpResponse",200,5,null,[],[],"",{}]}',
        b'{"$response":["HttpResponse",200,"a\\r\\nb",null,[],[],"",{}]}',
        b'{"$response":["HttpResponse",200,null,5,[],[],"",{}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[],5,{}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[],"",5]}',
        b'{"$response":["HttpResponse",200,null,null,[],[["a","b",5,{}]],"",{}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[["a","b","b\\n",{}]],"",{}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[["a","b","b",{"path":"a\\r"}]],"",{}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[],"",{"get":1}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[],"",{"has_header":1}]}',
        b'{"$response":["HttpResponse",200,null,null,[],[],"",{"streaming":true}]}',
        b'{"$response":["HttpResponse",null,null,null,[],[],"",{"status_code":"x"}]}',
        b'{"$response":["HttpResponse",200,null,"no such charset",[],[],"",{}]}',
        b'{"$response":["TemplateResponse",200,null,null,[],[],"",{}]}',
        b'{"$response":["TemplateResponse",200,null,null,[],[],"",{"_is_rendered":false}]}',
        b'{"$response":["Response",200,null,null,[],[],"",{"_is_rendered":1,"data":1}]}',
        b'{"$safe":1}',
    ],
)
@pytest.mark.usefixtures("project")
def test_what_no_response_was_stored_as_is_a_miss(stored: bytes):
    from upstash_middleware.django import redis  # noqa: PLC0415 - it needs the settings

    redis.set("upstash-middleware:data#django::1:a", stored.decode())
    assert cache.get("a", "miss") in {"miss", "1"}


PARTS = st.one_of(st.none(), st.booleans(), st.integers(-5, 999), st.text(max_size=4))
STATES = st.dictionaries(
    st.sampled_from(
        [
            *("get", "items", "has_header", "set_cookie", "streaming", "content", "_container"),
            *("closed", "status_code", "_handler_class", "_resource_closers", "__class__", "json"),
            *("_is_rendered", "_request", "data", "render", "add_post_render_callback", "timing"),
        ]
    ),
    PARTS | st.just({"$response": 1}),
    max_size=3,
)
HEAD_FIELDS = st.tuples(
    st.sampled_from(["Content-Type", "Content-Length", "ETag", "Last-Modified", "Vary", "X-A"]),
    st.sampled_from(["", "x", "text/html", "W/", "*", "é"]) | PARTS,
)
COOKIES = st.tuples(st.just("a") | PARTS, st.just("b") | PARTS, st.just("b") | PARTS, STATES)
FORGED = {
    1: st.sampled_from([304, 204, None]) | PARTS,
    2: PARTS,
    3: st.sampled_from(["utf-8", "latin-1", "rot13", "x", "base64", "idna"]) | PARTS,
    4: st.lists(HEAD_FIELDS, min_size=1, max_size=3) | PARTS,
    5: st.lists(COOKIES, min_size=1, max_size=2) | PARTS,
    6: st.sampled_from(["", "é" * 300]) | PARTS,
    7: STATES,
}


@st.composite
def forged(draw: st.DrawFn) -> list[Any]:
    """Return a stored response of which up to two parts are another's."""
    name = draw(st.sampled_from(["HttpResponse", "JsonResponse", "TemplateResponse", "Response"]))
    parts: list[Any] = [name, 200, None, None, [], [], "<p>text</p>" * 30, {}]
    for place in draw(st.sets(st.sampled_from([*FORGED]), max_size=2)):
        parts[place] = draw(FORGED[place])
    if draw(st.booleans()) and isinstance(parts[7], dict):
        parts[7]["_is_rendered"] = True
    return parts


def from_cache(_request: HttpRequest) -> HttpResponse:
    """A view that sends what is stored, as views do that cache their responses themselves."""
    response = cache.get("a")
    if not isinstance(response, HttpResponse):
        return HttpResponse("a miss")
    response.set_cookie("seen", "1")
    response.write(b"more")
    assert response.has_header("Content-Type") == ("Content-Type" in dict(response.items()))
    with suppress(UnicodeError):  # of a charset that the content is not in
        assert response.text is not None
    return response


@pytest.mark.usefixtures("project")
@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(forged())
def test_a_response_that_anybody_has_stored_works_or_is_a_miss(parts: Any):
    from upstash_middleware.django import redis  # noqa: PLC0415 - it needs the settings

    redis.set("upstash-middleware:data#django::1:a", json.dumps({"$response": parts}))
    layers = ("gzip.GZip", "http.ConditionalGet", "common.Common", "clickjacking.XFrameOptions")
    with override_settings(
        MIDDLEWARE=[f"django.middleware.{layer}Middleware" for layer in layers],
        ROOT_URLCONF=Urls(page=from_cache),
    ):
        Client().get("/page")  # raises what the view or a middleware raises


# --- Its users ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("project")
def test_cache_page_answers_from_the_cache():
    calls: list[int] = []

    @cache_page(60)
    def page(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        response = HttpResponse(f"page {len(calls)}".encode(), headers={"X-Own": "é"})
        response.set_cookie("seen", "1", max_age=60)
        return response

    with override_settings(ROOT_URLCONF=Urls(page=page)):
        first, second = (Client().get("/page") for _ in range(2))
    del second["Age"]
    assert_same_response(first, second)
    assert calls == [1]


OURS = "upstash_middleware.django.UpstashMiddleware"
SITEWIDE = [
    "django.middleware.cache.UpdateCacheMiddleware",
    OURS,
    "django.middleware.cache.FetchFromCacheMiddleware",
]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("middleware", [[], [OURS], SITEWIDE])
@pytest.mark.parametrize("is_decorated", [True, False])
def test_djangos_cache_of_pages_works_around_this_packages_limits(
    upstash: LocalUpstash, middleware: list[str], is_decorated: bool
):
    from upstash_middleware.django import limit  # noqa: PLC0415 - it needs the settings

    calls: list[int] = []

    def page(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        return HttpResponse(f"page {len(calls)}")

    limited = limit("5/minute")(page)
    view = cache_page(60)(limited if is_decorated else page)
    setting = {"redis": upstash, "default_limit": "1000/minute"}
    with override_settings(
        ROOT_URLCONF=Urls(page=view), MIDDLEWARE=middleware, UPSTASH_MIDDLEWARE=setting
    ):
        answers = [Client().get("/page") for _ in range(3)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"page 1")] * 3
    assert calls == [1]


@pytest.mark.usefixtures("project")
def test_a_template_fragment_is_rendered_once():
    template = Engine(libraries={"cache": "django.templatetags.cache"}).from_string(
        "{% load cache %}{% cache 60 greeting name %}<b>{{ name }}</b>{% endcache %}"
    )
    first = template.render(Context({"name": "<you>"}))
    second = template.render(Context({"name": "<you>"}))
    assert first == second == "<b>&lt;you&gt;</b>"


@pytest.mark.usefixtures("project")
def test_rest_framework_throttles_and_its_cached_responses():
    class TwoPerMinute(SimpleRateThrottle):
        rate = "2/min"

        def get_cache_key(self, _request: Any, _view: Any) -> str:
            return "throttle"

    class View(APIView):
        throttle_classes = (TwoPerMinute,)

        def get(self, _request: Any) -> Response:
            return Response({"price": 7, "tags": ["a"]}, headers={"X-A": "b"})

    view = cache_page(60)(View.as_view())
    factory = RequestFactory()
    first = view(factory.get("/a")).render()
    second = view(factory.get("/a"))
    del second["Age"]
    assert_same_response(first, second)
    assert second.data == {"price": 7, "tags": ["a"]}
    bare = View.as_view()
    assert [bare(factory.get("/")).status_code for _ in range(3)] == [200, 429, 429]


@pytest.mark.usefixtures("project")
def test_djangos_cached_sessions_work():
    session = SessionStore()
    session["basket"] = {"7": 2}
    session.save()
    again = SessionStore(session.session_key)
    assert again["basket"] == {"7": 2}
    again.flush()
    assert not SessionStore().exists(session.session_key or "")
