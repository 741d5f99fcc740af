"""Django's requests and responses become this package's values, and back, without a loss."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.http import FileResponse, HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings

import tests.django.project  # noqa: F401 - configures Django
from tests.django.fakes import whole
from upstash_middleware.django.requests import (
    change_head,
    forwarding,
    head_from,
    replacement,
    request_from,
    response_from,
)
from upstash_middleware.messages import Headers, ResponseHead

FACTORIES = pytest.mark.parametrize(
    "factory", [RequestFactory(), AsyncRequestFactory()], ids=["wsgi", "asgi"]
)


@FACTORIES
def test_a_request_is_told_as_django_reads_it(factory: Any) -> None:
    native = factory.get(
        "/green%20tea/",
        query_params={"size": "2"},
        headers={"X-Key": "k", "Accept": "text/html"},
    )
    request = request_from(native)
    assert (request.method, request.path, request.raw_path) == (
        "GET",
        "/green tea/",
        "/green%20tea/",
    )
    assert (request.query, request.scheme) == ("size=2", "http")
    assert (request.host, request.peer) == ("testserver", "127.0.0.1")
    assert request.headers.get("x-key") == "k"
    assert request.headers.get("accept") == "text/html"
    assert request.native is native


def test_a_path_is_decoded_as_utf_8() -> None:
    request = request_from(RequestFactory().get("/caf%C3%A9"))
    assert (request.path, request.raw_path) == ("/café", "/caf%C3%A9")


@FACTORIES
def test_the_fields_without_a_prefix_in_meta_are_there(factory: Any) -> None:
    request = request_from(factory.post("/", b"12345", content_type="text/plain"))
    assert request.headers.get("content-type") == "text/plain"
    assert request.headers.get("content-length") == "5"


def test_a_field_that_was_not_sent_is_not_there() -> None:
    native = RequestFactory().get("/", CONTENT_LENGTH="", HTTP_COOKIE="", HTTP_ACCEPT="")
    assert set(request_from(native).headers.names()) == {"accept"}


def test_the_path_is_path_info_and_the_url_has_the_prefix_too() -> None:
    request = request_from(RequestFactory().get("/tea", SCRIPT_NAME="/shop"))
    assert (request.path, request.root_path) == ("/tea", "/shop")
    assert request.raw_path == "/shop/tea"


def test_the_path_as_sent_is_taken_from_an_asgi_server() -> None:
    native: Any = AsyncRequestFactory().get("/a/b")
    native.scope["raw_path"] = b"/a%2fb"
    request = request_from(native)
    assert (request.path, request.raw_path) == ("/a/b", "/a%2Fb")


def test_the_host_is_in_lower_case_with_its_port() -> None:
    native = RequestFactory().get("/", headers={"Host": "Shop.Example:8000"})
    assert request_from(native).host == "shop.example:8000"


def test_a_rewritten_path_is_another_resource() -> None:
    native: Any = AsyncRequestFactory().get("/tea")
    native.scope["raw_path"] = b"/tea"
    native.path_info = "/b/tea"  # as middleware does that shows some visitors another version
    request = request_from(native)
    assert (request.path, request.raw_path) == ("/b/tea", "/b/tea")


@FACTORIES
def test_a_forced_prefix_is_in_the_url_as_it_is_in_links(factory: Any) -> None:
    with override_settings(FORCE_SCRIPT_NAME="/shop"):
        request = request_from(factory.get("/tea"))
    assert (request.path, request.raw_path) == ("/tea", "/shop/tea")


@pytest.mark.parametrize(("trusted", "host"), [(True, "front.example"), (False, "shop.example")])
def test_a_forwarded_host_counts_only_where_the_project_trusts_it(trusted: bool, host: str) -> None:
    native = RequestFactory().get(
        "/", headers={"Host": "shop.example", "X-Forwarded-Host": "front.example"}
    )
    with override_settings(USE_X_FORWARDED_HOST=trusted):
        assert request_from(native).host == host


def test_the_scheme_is_the_one_that_a_trusted_proxy_tells() -> None:
    native = RequestFactory().get("/", headers={"X-Forwarded-Proto": "https"})
    assert request_from(native).scheme == "http"
    with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")):
        assert request_from(native).scheme == "https"


def test_a_client_behind_a_unix_socket_has_no_address() -> None:
    assert request_from(RequestFactory().get("/", REMOTE_ADDR="")).peer is None


def test_two_values_that_latin_1_cannot_hold_stay_two() -> None:
    one, other = (
        request_from(RequestFactory().get("/", headers={"X-Key": key})).headers.get("x-key")
        for key in ("€", "₤")
    )
    assert one != other


@FACTORIES
def test_the_application_sees_the_fields_wanted_and_what_is_outside_those_that_came(
    factory: Any,
) -> None:
    native = factory.get("/", headers={"Range": "bytes=0-1", "Accept": "*/*"})
    assert native.headers["Range"] == "bytes=0-1"
    came = request_from(native).headers
    with forwarding(native, came, came.without("range").setting("if-none-match", '"v"')):
        assert native.META["HTTP_IF_NONE_MATCH"] == native.headers["If-None-Match"] == '"v"'
        assert "Range" not in native.headers
    assert native.headers["Range"] == native.META["HTTP_RANGE"] == "bytes=0-1"
    assert "If-None-Match" not in native.headers


def test_the_fields_that_came_are_back_when_the_application_has_raised() -> None:
    native = RequestFactory().get("/")
    came = request_from(native).headers
    with pytest.raises(LookupError), forwarding(native, came, came.setting("if-match", "x")):
        raise LookupError
    assert "HTTP_IF_MATCH" not in native.META


def test_a_head_keeps_order_and_spelling_and_has_the_cookies_at_its_end() -> None:
    response = HttpResponse(status=201, headers={"X-Tea": "é", "content-TYPE": "text/plain"})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    head = head_from(HttpRequest(), response)
    assert head.status == 201
    assert head.headers.raw == (
        (b"X-Tea", b"\xe9"),
        (b"content-TYPE", b"text/plain"),
        (b"Set-Cookie", b"a=1; Path=/"),
        (b"Set-Cookie", b"b=2; HttpOnly; Path=/"),
    )


def test_a_changed_head_is_brought_to_the_response_and_the_rest_stays() -> None:
    response = HttpResponse(headers={"Content-Type": "text/plain", "X-Gone": "1", "Vary": "A"})
    response.set_cookie("a", "1")
    was = head_from(HttpRequest(), response)
    headers = was.headers.without("x-gone").setting("vary", "B")
    headers = headers.adding((b"Cache-Status", b"one"), (b"cache-status", b"two"))
    change_head(response, was, ResponseHead(203, headers))
    assert response.status_code == 203
    assert dict(response.headers) == {
        "Content-Type": "text/plain",
        "vary": "B",
        "Cache-Status": "one, two",
    }
    assert response.cookies.output() == "Set-Cookie: a=1; Path=/"


def test_a_response_of_ours_has_the_fields_of_its_head_and_no_others() -> None:
    response = response_from(whole(304, etag='"v"'), without_body=False)
    assert (response.status_code, dict(response.headers)) == (304, {"etag": '"v"'})


def test_a_head_request_gets_no_body_but_its_length() -> None:
    response = response_from(whole(200, b"tea", content_length="3"), without_body=True)
    assert (response.content, response["Content-Length"]) == (b"", "3")


def test_a_replacement_takes_over_what_the_application_s_response_would_have_closed() -> None:
    file = io.BytesIO(b"old")
    replaced = FileResponse(file)
    replaced.set_cookie("a", "1")
    answer = whole(200, b"stored", set_cookie="a=1; Path=/")
    response = replacement(answer, replaced, without_body=False)
    assert response.content == b"stored"
    assert response.cookies.output() == "Set-Cookie: a=1; Path=/"
    response.close()
    assert file.closed


def test_a_replacement_sets_no_cookie_that_its_head_has_not() -> None:
    replaced = HttpResponse()
    replaced.set_cookie("a", "1")
    assert not replacement(whole(200), replaced, without_body=False).cookies


def test_an_unchanged_head_touches_nothing() -> None:
    response = HttpResponse()
    head = ResponseHead(500, Headers())
    change_head(response, head, head)
    assert response.status_code == 200
