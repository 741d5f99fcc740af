"""How an environ reads as a request, and how a changed request is shown to the application."""

from __future__ import annotations

import pytest

from tests.wsgi.fakes import environ_of
from upstash_middleware.messages import Headers, Request
from upstash_middleware.wsgi.environ import fields_of, forwarded, head_of, request_of, status_line


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


def test_a_method_in_lower_case_meets_the_same_rules():
    """Werkzeug routes ``post`` to the handlers of POST."""
    assert request_of(environ_of("post")).method == "POST"


def test_mount_points_belong_to_the_path():
    assert request_of(environ_of(path="/tea", SCRIPT_NAME="/shop")).path == "/shop/tea"


def test_a_path_is_decoded_from_the_bytes_that_pep_3333_hides_in_latin_1():
    request = request_of(environ_of(path="/t\u00c3\u00a9"))
    assert request.path == "/té"
    assert request.raw_path == "/t%C3%A9"


def test_two_paths_that_are_not_utf_8_stay_two():
    one, other = (request_of(environ_of(path=path)).raw_path for path in ("/\xff", "/\xfe"))
    assert one == "/%FF"
    assert other == "/%FE"


@pytest.mark.parametrize("variable", ["RAW_URI", "REQUEST_URI"])
@pytest.mark.parametrize(
    "sent", ["/a%2Fb", "/a%2Fb?q=1", "http://shop.example/a%2Fb", "http://shop.example/a%2Fb?q=/x"]
)
def test_the_path_is_known_as_it_was_sent(variable: str, sent: str):
    """RFC 9112 §3.2: origin-form and absolute-form; an encoded slash is not a slash."""
    request = request_of(environ_of(path="/a/b", **{variable: sent}))
    assert request.path == "/a/b"
    assert request.raw_path == "/a%2Fb"


def test_a_path_that_begins_with_two_slashes_names_no_host():
    request = request_of(environ_of(path="//other.example/a", RAW_URI="//other.example/a"))
    assert request.path == request.raw_path == "//other.example/a"


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
    assert Request("GET", path).raw_path == path


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
    shown = forwarded(environ, was, now)
    assert shown["HTTP_IF_NONE_MATCH"] == '"7"'
    assert shown["HTTP_X_KEPT"] == "é"
    assert "HTTP_COOKIE" not in shown
    assert "HTTP_RANGE" not in shown
    assert environ["HTTP_COOKIE"] == "a=1", "layers outside still see the client's request"


def test_a_content_type_that_changed_goes_back_to_its_own_key():
    environ = environ_of(CONTENT_TYPE="text/plain")
    was = request_of(environ).headers
    assert forwarded(environ, was, was.without("content-type")).get("CONTENT_TYPE") is None


def test_an_environ_of_which_nothing_changed_is_the_same_object():
    environ = environ_of(HTTP_X_A="1")
    was = request_of(environ).headers
    assert forwarded(environ, was, Headers(was.raw)) is environ


def test_a_head_keeps_order_repetition_and_spelling():
    fields = [("X-B", "1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=é")]
    head = head_of("201 Made it", fields)
    assert head.status == 201
    assert fields_of(head.headers) == fields


def test_a_status_line_has_words_whatever_the_status():
    assert status_line(404) == "404 Not Found"
    assert status_line(299) == "299 Unknown"
