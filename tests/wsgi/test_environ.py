"""How an environ reads as a request, and how a changed request is shown to the application."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.wsgi.fakes import environ_of
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.wsgi import SwappedFields, fields_of, head_of, request_of, status_line


def test_a_request_is_told_whole():
    environ = environ_of(
        "POST", "/tea", QUERY_STRING="size=2&x=%20", HTTP_HOST="Shop.Example:8080", HTTP_X_A="1"
    )
    request = request_of(environ)
    assert (request.method, request.path, request.query) == ("POST", "/tea", "size=2&x=%20")
    assert (request.scheme, request.host, request.peer) == (
        "http",
        "shop.example:8080",
        "203.0.113.9",
    )
    assert request.headers.get("x-a") == "1"
    assert request.native is environ


def test_long_names_are_read_and_not_remembered():
    """A client can send many fields, each with a name as long as the server allows."""
    tracemalloc.start()
    before = None
    try:
        for number in range(500):
            name = f"HTTP_X_{number}_{'A' * 8000}"
            headers = request_of(environ_of(**{name: "1"})).headers
            assert headers.get(f"x-{number}-{'a' * 8000}") == "1"
            if number == 100:
                before = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - (before or 0)
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000


def test_a_cookie_field_without_cookies_is_none():
    """apig-wsgi sets it in each request, so that nothing would be stored."""
    assert "cookie" not in request_of(environ_of(HTTP_COOKIE="")).headers
    assert "x-a" in request_of(environ_of(HTTP_X_A="")).headers


def test_a_method_in_lower_case_meets_the_same_rules():
    """Werkzeug routes ``post`` to the handlers of POST."""
    assert request_of(environ_of("post")).method == "POST"


def test_the_path_is_path_info_and_the_url_has_the_prefix_too():
    """PEP 3333, URL Reconstruction."""
    request = request_of(environ_of(path="/tea", SCRIPT_NAME="/shop"))
    assert (request.path, request.root_path) == ("/tea", "/shop")
    assert request.raw_path == "/shop/tea"


@pytest.mark.parametrize("sent", ["/shop/a%2Fb", "/a%2Fb"])
def test_the_prefix_is_in_the_url_whether_or_not_a_proxy_has_removed_it(sent: str):
    request = request_of(environ_of(path="/a/b", SCRIPT_NAME="/shop", RAW_URI=sent))
    assert (request.path, request.raw_path) == ("/a/b", "/shop/a%2Fb")


@pytest.mark.parametrize("path", ["//tea", "///tea", "/tea"])
def test_the_path_begins_with_one_slash_as_werkzeug_routes_on_it(path: str):
    assert request_of(environ_of(path=path)).path == "/tea"


def test_a_path_is_decoded_from_the_bytes_that_pep_3333_hides_in_latin_1():
    request = request_of(environ_of(path="/t\u00c3\u00a9"))
    assert request.path == "/té"
    assert request.raw_path == "/t%C3%A9"


def test_two_paths_that_are_not_utf_8_stay_two():
    one, other = (request_of(environ_of(path=path)).raw_path for path in ("/\xff", "/\xfe"))
    assert one == "/%FF"
    assert other == "/%FE"


@pytest.mark.parametrize("variable", ["RAW_URI", "REQUEST_URI"])
@pytest.mark.parametrize("sent", ["/a%2Fb", "/a%2Fb?q=1"])
def test_the_path_is_known_as_it_was_sent(variable: str, sent: str):
    """RFC 9112 §3.2.1; an encoded slash is not a slash."""
    request = request_of(environ_of(path="/a/b", **{variable: sent}))
    assert request.path == "/a/b"
    assert request.raw_path == "/a%2Fb"


@pytest.mark.parametrize("variable", ["RAW_URI", "REQUEST_URI"])
@pytest.mark.parametrize("sent", ["http://evil.example/a", '/a#"><x', '/a?q#"><x'])
def test_a_target_with_an_authority_or_a_fragment_is_a_url_of_its_own(variable: str, sent: str):
    """An application that shows it would have others get it from the cache (RFC 9112 §3.2.2)."""
    request = request_of(environ_of(path="/a", **{variable: sent}))
    assert request.path == "/a"
    assert request.raw_path not in {"/a", request_of(environ_of(path="/a")).raw_path}


def test_a_path_that_begins_with_two_slashes_names_no_host():
    request = request_of(environ_of(path="//other.example/a", RAW_URI="//other.example/a"))
    assert request.path == "/other.example/a"
    assert request.raw_path == "//other.example/a"


@pytest.mark.parametrize(
    ("sent", "environ"),
    [
        ("/one", {"path": "/two"}),
        ("/tea", {"path": "/tea", "SCRIPT_NAME": "/shop"}),
        ("*", {"path": "/"}),
        ("/t\u00c3\u00a9", {"path": "/t\u00c3\u00a9"}),
    ],
)
def test_what_was_sent_counts_only_as_far_as_it_is_what_the_application_sees(
    sent: str, environ: dict[str, str]
):
    """A layer outside that rewrites PATH_INFO must not make two resources one."""
    rewritten = request_of(environ_of(**environ, RAW_URI=sent))
    assert rewritten.raw_path == request_of(environ_of(**environ)).raw_path


def test_a_path_has_one_spelling_whether_the_server_tells_it_or_not():
    path = "/a:b@c/d+e,f;g=h!$&'()*~"
    told = request_of(environ_of(path=path, RAW_URI=path))
    assert told.raw_path == request_of(environ_of(path=path)).raw_path == path
    assert HTTPRequest("GET", path).raw_path == path


@pytest.mark.parametrize(
    ("scheme", "port", "host"),
    [
        ("http", "80", "inside.example"),
        ("https", "443", "inside.example"),
        ("https", "80", "inside.example:80"),
    ],
)
def test_without_a_host_field_the_server_s_own_name_counts(scheme: str, port: str, host: str):
    environ = environ_of(
        HTTP_HOST="", SERVER_NAME="Inside.Example", SERVER_PORT=port, **{"wsgi.url_scheme": scheme}
    )
    assert request_of(environ).host == host


def test_a_unix_socket_has_no_peer():
    assert request_of(environ_of(REMOTE_ADDR="")).peer is None


def test_content_type_and_length_are_header_fields_where_they_are_told():
    headers = request_of(environ_of(CONTENT_TYPE="text/plain", CONTENT_LENGTH="")).headers
    assert headers.get("content-type") == "text/plain"
    assert "content-length" not in headers


def test_a_field_that_pretends_to_be_content_type_is_none():
    environ = environ_of(CONTENT_TYPE="text/plain", HTTP_CONTENT_TYPE="text/html")
    assert request_of(environ).headers.lines("content-type") == ["text/plain"]


def test_field_values_keep_every_byte():
    value = "".join(map(chr, range(0x20, 0x100)))
    headers = request_of(environ_of(HTTP_X_BYTES=value)).headers
    assert dict(headers.raw)[b"x-bytes"] == bytes(range(0x20, 0x100))


def test_a_field_value_that_breaks_pep_3333_is_no_error():
    assert request_of(environ_of(HTTP_X_USER="→")).headers.get("x-user") == "\\u2192"


def test_only_the_fields_that_changed_are_translated_back():
    environ = environ_of(HTTP_COOKIE="a=1", HTTP_RANGE="bytes=0-1", HTTP_X_KEPT="é")
    was = request_of(environ).headers
    now = was.without("cookie", "range").setting("if-none-match", '"7"')
    swapping = SwappedFields(environ, was, now)
    client = dict(environ)
    with swapping:
        assert environ["HTTP_IF_NONE_MATCH"] == '"7"'
        assert environ["HTTP_X_KEPT"] == "é"
        assert not {"HTTP_COOKIE", "HTTP_RANGE"} & set(environ)
        with swapping:
            assert environ == client, "code outside, called from within"
        assert environ["HTTP_IF_NONE_MATCH"] == '"7"'
    assert environ == client, "code outside sees the client's request"


def test_a_content_type_that_changed_goes_back_to_its_own_key():
    environ = environ_of(CONTENT_TYPE="text/plain")
    was = request_of(environ).headers
    with SwappedFields(environ, was, was.without("content-type")):
        assert "CONTENT_TYPE" not in environ
    assert environ["CONTENT_TYPE"] == "text/plain"


def test_a_head_keeps_order_repetition_and_spelling():
    fields = [("X-B", "1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=é")]
    head = head_of("201 Made it", fields)
    assert head.status == 201
    assert fields_of(head.headers) == fields


def test_a_status_line_has_words_whatever_the_status():
    assert status_line(404) == "404 Not Found"
    assert status_line(299) == "299 Unknown"
