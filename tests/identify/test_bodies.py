"""What `form` and `json_field` read of a body: what the application's framework reads, or nothing.

The frameworks' own parsers judge. A body that only some of them accept, or read differently, has to
be refused, since its request would be counted under a name that nobody logs in with.
"""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import unicodedata
from functools import partial
from typing import Any

import msgspec
import pytest
from django.test import RequestFactory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request as WerkzeugRequest

import tests.django.project  # noqa: F401 - Django's requests want settings
from upstash_middleware import (
    ConfigurationError,
    RateLimitRule,
    client_ip,
    combine,
    first_of,
    form,
    hashed,
    json_field,
)
from upstash_middleware.core.identify import Identifier, extract, framework_user
from upstash_middleware.drivers import run
from upstash_middleware.messages import Headers, HTTPRequest, RequestBody

URLENCODED = "application/x-www-form-urlencoded"
NONE = Identifier("form.name", "(no single value)")


class Sent(RequestBody):
    """A body that an adapter has received."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, limit: int) -> bytes | None:
        return self.data if len(self.data) <= limit else None


class Unused:
    """No extractor asks Upstash."""

    def execute(self, pipeline: Any) -> Any:
        raise AssertionError(pipeline)


def found(extractor: Any, body: bytes | None, content_type: str = URLENCODED, **fields: str) -> Any:
    headers = Headers.of(content_type=content_type, **fields)
    sent = None if body is None else Sent(body)
    return run(extract(extractor, HTTPRequest("POST", "/", headers, body=sent)), Unused())


def read(body: bytes, content_type: str = URLENCODED, **fields: str) -> str | None:
    """Return the value of `name` as it is, None if the request counts with all without one."""
    identifier = found(form("name", normalise=None), body, content_type, **fields)
    if identifier == NONE:
        return None
    assert identifier.secret
    return str(identifier.value)


# ------------------------------------------------------------------------------------------------
# What each framework reads


def in_flask(body: bytes, content_type: str) -> list[Any]:
    environ = EnvironBuilder(method="POST", data=b"").get_environ()
    environ |= {"CONTENT_TYPE": content_type, "CONTENT_LENGTH": str(len(body))}
    environ["wsgi.input"] = io.BytesIO(body)
    with WerkzeugRequest(environ) as request:  # which closes its files
        return [*request.form.getlist("name"), *request.files.getlist("name")]


def in_django(body: bytes, content_type: str) -> list[Any]:
    request = RequestFactory().generic("POST", "/", body, content_type=content_type)
    read = [*request.POST.getlist("name"), *request.FILES.getlist("name")]
    request.close()
    return read


def in_starlette(body: bytes, content_type: str) -> list[Any]:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def parsed() -> list[Any]:
        headers = [(b"content-type", content_type.encode("latin-1"))]
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        async with request.form() as form:
            return list(form.getlist("name"))

    return asyncio.run(parsed())


def assert_read_alike(body: bytes, content_type: str) -> None:
    value = read(body, content_type)
    if value is None:
        return
    for parser in (in_flask, in_django, in_starlette):
        assert parser(body, content_type) == [value], parser.__name__


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                "name",
                "na%6de",
                "n%61me",
                "NAME",
                "name ",
                "other",
                "=",
                "&",
                ";",
                "%",
                "%26",
                "%3D",
            ),
            *(
                "+",
                "%20",
                "ada",
                "%C3%A4",
                "%ff",
                "\xe4",
                "\0",
                "\r\n",
                "\n",
                "&&",
                "a=b",
                "%u0061",
            ),
            *("name=", "&name=", "name=ada", "&other=", '"', "name[]=", "charset", "\ufeff"),
            *("+name=bob", "%09name=bob", "%1Cname%0C=bob", "name%C2%A0=bob", "name%00=bob"),
        ]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=400)
@given(PIECES, st.sampled_from(["utf-8", "latin-1"]))
@example("name=ada", "utf-8")
@example("x=1&na%6de=ada&y=2", "utf-8")
def test_a_urlencoded_form_is_read_as_each_framework_reads_it(text: str, encoding: str) -> None:
    assert_read_alike(text.encode(encoding, "replace"), URLENCODED)


BLANKS = (
    *(b" ", b"\t", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x1f", b"\x7f", b"\x01"),
    *(blank.encode() for blank in "\x85\xa0\u1680\u2003\u2028\u3000"),
    *(b"\x85", b"\xa0"),
)
LINES = st.lists(
    st.sampled_from(
        [
            *(b"--b", b"--b--", b"--bb", b"--b ", b" --b", b"\r\n--b\r\n", b"\n--b\n", b"\r--b\r"),
            b'Content-Disposition: form-data; name="name"',
            b'Content-Disposition: form-data; name="other"',
            b"Content-Disposition: form-data; name=name",
            b'Content-Disposition: form-data; name="n%61me"',
            b'Content-Disposition: form-data; name="na\\me"',
            b'Content-Disposition: form-data; name="other"; name="name"',
            b"Content-Disposition: form-data; name*=utf-8''name",
            b'Content-Disposition: form-data; name="name"; filename="a.txt"',
            b'Content-Disposition: form-data; name="other"; filename="a;b.txt"',
            b'Content-Disposition: form-data; name="other"; filename="a\\"; name="name"',
            b'content-disposition: form-data; name="name"',
            *(b'Content-Disposition: form-data; name="%sname"' % blank for blank in BLANKS),
            *(b'Content-Disposition: form-data; name="name%s"' % blank for blank in BLANKS),
            b'Content-Disposition : form-data; name="name"',
            b' ; name="name"',
            b"Content-Type: text/plain",
            b"Content-Type: text/plain; charset=utf-16",
            b"Content-Type: application/octet-stream",
            b"Content-Transfer-Encoding: base64",
            b"Content-Transfer-Encoding: binary",
            *(b"", b"", b"ada", b"YWRh", b"\xff", "ä".encode(), b"a\nb"),
        ]
    ),
    max_size=9,
)


@settings(max_examples=600)
@given(
    LINES,
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
    st.booleans(),
    st.sampled_from(
        ["boundary=b", 'boundary="b"', "charset=latin-1; boundary=b", "boundary=b; boundary=bb", ""]
    ),
)
def test_a_multipart_form_is_read_as_each_framework_reads_it(
    lines: list[bytes], end: bytes, closed: bool, parameters: str
) -> None:
    begun = [b"--b", b'Content-Disposition: form-data; name="name"', b"", b"ada"]
    for first in (lines, [b"", *begun, *lines], [*begun, *lines], [b"--b", *lines]):
        body = end.join(first)
        whole = body + b"\r\n--b--\r\n" if closed else body
        assert_read_alike(whole, f"multipart/form-data; {parameters}")


PARTS = st.lists(
    st.tuples(
        st.sampled_from(["name", "other", "n", "name2"]),
        st.text(max_size=12) | st.sampled_from(["ada", "--", "--b", "\r\n--b", "\r\n"]),
        st.sampled_from([None, "a.txt", "ä.txt", ""]),
    ),
    max_size=4,
)


@settings(max_examples=300)
@given(PARTS)
def test_what_clients_send_is_read(parts: list[tuple[str, str, str | None]]) -> None:
    """Not only refused: a form of a browser's has exactly the values that it was filled with."""
    pieces = []
    for name, value, filename in parts:
        file = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: image/png'
        head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        pieces.append(head.encode() + value.encode("utf-8", "replace") + b"\r\n")
    body = b"".join(pieces) + b"--xyz--\r\n"
    mine = [(value, filename) for name, value, filename in parts if name == "name"]
    expected = mine[0][0].encode("utf-8", "replace").decode() if len(mine) == 1 else None
    if len(mine) == 1 and mine[0][1] is not None:
        expected = None
    assert read(body, "multipart/form-data; boundary=xyz") == (expected or None)
    assert_read_alike(body, "multipart/form-data; boundary=xyz")


# ------------------------------------------------------------------------------------------------
# Bodies without exactly one value

BOUNDARY = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nada\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", URLENCODED),
        (b"other=ada", URLENCODED),
        (b"name=", URLENCODED),
        (b"name=++", URLENCODED),
        (b"name=ada&name=ada", URLENCODED),
        (b"name=ada&n%61me=bob", URLENCODED),
        (b"name=ada;x=y", URLENCODED),
        (b"name=%ff", URLENCODED),
        ("name=ä".encode(), URLENCODED),
        (b"name=ada", ""),
        (b"name=ada", "text/plain"),
        (b"name=ada", f"{URLENCODED}; charset=utf-16"),
        (b"name=ada", f"{URLENCODED}; charset=utf-8; charset=utf-7"),
        (b"name=ada", f"{URLENCODED}, text/plain"),
        (b'{"name": "ada"}', "application/json"),
        (b"name=ada", "application/json"),
        (b'{"name":"victim","x":"&name=ada&y="}', URLENCODED),
        (b'\r\n {"name":"victim","x":"&name=ada&y="}', URLENCODED),
        (PART + PART + b"--b--", BOUNDARY),
        (PART, BOUNDARY),
        (b"preamble\r\n" + PART + b"--b--", BOUNDARY),
        (PART + b"--b--\r\nepilogue", BOUNDARY),
        (PART.replace(b"\r\n", b"\n") + b"--b--", BOUNDARY),
        (PART.replace(b"ada", b"a--b") + b"--b--", BOUNDARY),
        (PART.replace(b'"name"', b'"name"; filename=""') + b"--b--", BOUNDARY),
        (PART + b"--b--", "multipart/form-data"),
        (PART + b"--b--", "multipart/mixed; boundary=b"),
    ],
)
def test_a_body_without_one_value_counts_with_all_others_like_it(body: bytes, content_type: str):
    assert found(form("name"), body, content_type) == NONE


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("place", [b"%sname", b"name%s", b"%sname%s"])
@pytest.mark.parametrize("file", [b"", b'; filename="a.txt"'])
def test_a_second_name_with_blanks_around_it_is_no_way_round_the_limit(
    blank: bytes, place: bytes, file: bytes
):
    """Django strips them, and would log in the second."""
    name = place.replace(b"%s", blank)
    second = PART.replace(b'"name"', b'"%s"' % name + file).replace(b"ada", b"victim")
    body = PART + second + b"--b--"
    assert found(form("name"), body, BOUNDARY) == NONE


def test_names_of_other_fields_may_have_blanks_within_and_letters_beyond_ascii():
    for other in ("first name", "citt\u00e0", "\u540d"):
        second = PART.replace(b'"name"', f'"{other}"'.encode())
        assert read(PART + second + b"--b--", BOUNDARY) == "ada"


def test_more_than_one_content_type_and_any_coding_are_unreadable():
    headers = Headers([(b"content-type", URLENCODED.encode()), (b"content-type", b"text/plain")])
    request = HTTPRequest("POST", "/", headers, body=Sent(b"name=ada"))
    assert run(extract(form("name"), request), Unused()) == NONE
    assert found(form("name"), b"name=ada", content_encoding="gzip") == NONE
    assert read(b"name=ada", content_encoding="identity") == "ada"


@pytest.mark.parametrize("announced", [True, False])
def test_padding_is_no_way_round_the_limit(announced: bool):
    body = b"name=ada&padding=" + b"x" * 64 * 1024
    fields = {"content_length": str(len(body))} if announced else {}
    assert found(form("name"), body, **fields) == NONE
    larger = form("name", max_body=len(body))
    assert found(larger, body, **fields) == Identifier("form.name", "ada", secret=True)


def test_an_adapter_without_a_body_and_one_that_fails_count_as_well():
    class Failing(RequestBody):
        def read(self, limit: int) -> bytes | None:
            raise OSError("the client has left")

    assert found(form("name"), None) == NONE
    headers = Headers.of(content_type=URLENCODED)
    request = HTTPRequest("POST", "/", headers, body=Failing())
    assert run(extract(form("name"), request), Unused()) == NONE


# ------------------------------------------------------------------------------------------------
# JSON

NO_JSON = Identifier("json.user.name", "(no single value)")


@pytest.mark.parametrize("value", ["ada", 7, -1, "7", "ä", "\U0001f600"])
def test_a_text_or_whole_number_in_json_is_the_value(value: str | int):
    body = json.dumps({"user": {"id": 1, "name": value}, "x": [1]}).encode()
    identifier = found(json_field("user.name"), body, "text/plain")
    assert identifier == Identifier("json.user.name", str(value), secret=True)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"ada"', b"null", b'{"user": "ada"}', b'{"user.name": "ada"}'),
        *(
            b'{"user": {"name": %s}}' % v
            for v in (b"null", b"true", b"1.5", b"{}", b'["a"]', b'""')
        ),
        b'{"user": {"name": "ada", "name": "ada"}}',
        b'{"user": {"name": "ada"}, "us\\u0065r": {"name": "bob"}}',
        b'{"user": {"name": "ada"}} x',
        b'{"user": {"name": "\xff"}}',
        b'\xef\xbb\xbf{"user": {"name": "ada"}}',
        '{"user": {"name": "ada"}}'.encode("utf-16"),
        b'{"user": {"name": %s}}' % (b"9" * 5000),
        b'{"user": {"name": ' * 3000,
        b"[" * 60_000,
    ],
    ids=range(22),
)
def test_json_without_one_value_counts_with_all_others_like_it(body: bytes):
    assert found(json_field("user.name"), body, "application/json") == NO_JSON


TRAP = b'{"user": {"name": "decoy"}, "x": "&user.name=victim&y="}'


@pytest.mark.parametrize(
    "content_types",
    [
        [URLENCODED],
        [URLENCODED.upper()],
        [f" {URLENCODED} ; charset=utf-8"],
        ["multipart/form-data; boundary=x"],
        ["Multipart/Form-Data"],
        [f"application/json, {URLENCODED}"],
        [f"application/json;{URLENCODED}"],
        ["application/json", URLENCODED],
        ["application/json", "application/json"],
    ],
)
def test_json_that_an_application_may_read_as_a_form_has_no_value(content_types: list[str]):
    headers = Headers([(b"content-type", each.encode()) for each in content_types])
    request = HTTPRequest("POST", "/", headers, body=Sent(TRAP))
    assert run(extract(json_field("user.name"), request), Unused()) == NO_JSON


@pytest.mark.parametrize("content_type", ["", "application/json", "application/merge-patch+json"])
def test_json_of_any_other_type_is_read(content_type: str):
    identifier = found(json_field("user.name"), TRAP, content_type)
    assert identifier == Identifier("json.user.name", "decoy", secret=True)


JSON_PIECES = st.lists(
    st.sampled_from(
        [
            *('"user":', '"us\\u0065r":', '"USER":', '"name":', '"n\\u0061me":', '"other":'),
            *("{", "}", "[", "]", ",", '"ada"', '"b\\u0000"', '"\\ud83d\\ude00"', '"\\ud800"'),
            *("7", "-0", "7.0", "1e2", "NaN", "Infinity", "true", "null", '""', "//", " ", "\n"),
            *("\ufeff", "\0", '"user": {"name": "ada"}', '{"user": {"name": ', "}}", "'", "\xa0"),
        ]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=400)
@given(JSON_PIECES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]), st.booleans())
@example('{"user": {"name": "ada"}}', "utf-8", False)
def test_json_is_read_as_other_parsers_read_it(text: str, encoding: str, framed: bool) -> None:
    """Where they read it at all."""
    text = f'{{"user": {{"name": {text}}}}}' if framed else text
    body = text.encode(encoding, "replace")
    identifier = found(json_field("user.name", normalise=None), body, "application/json")
    if identifier == NO_JSON:
        return
    for parse in (json.loads, msgspec.json.decode):
        try:
            value = parse(body)["user"]["name"]
        except (ValueError, msgspec.DecodeError):
            continue
        assert str(value) == identifier.value, parse


# ------------------------------------------------------------------------------------------------
# Spellings


def value_of(text: str, **options: Any) -> Any:
    body = json.dumps({"name": text}).encode()
    return found(json_field("name", **options), body, "application/json").value


def test_one_name_is_one_identity_however_it_is_written():
    spellings = [
        "Straße",
        " strasse\t",
        "STRASSE",
        "\u3000\uff33\uff34\uff32\uff21\uff33\uff33\uff25",
        "stra\u017f\u017fe",
    ]
    assert {value_of(text) for text in spellings} == {"strasse"}
    assert value_of(" Ada", normalise=None) == " Ada"
    assert value_of("Ada@x.example", normalise=lambda text: text.partition("@")[0]) == "Ada"


@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing(text: str):
    once = value_of(text)
    if once != "(no single value)":
        assert value_of(once) == once
        assert value_of(unicodedata.normalize("NFD", text)) == once


def raising(text: str) -> str:
    raise ValueError(text)


@pytest.mark.parametrize("normalise", [raising, lambda _: "", lambda _: 7])
def test_a_value_that_the_own_function_refuses_counts_with_those_without_one(normalise: Any):
    assert value_of("ada", normalise=normalise) == "(no single value)"


# ------------------------------------------------------------------------------------------------
# In rules


WRONG_NAMES: list[Any] = [None, 5, b"a", ""]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: form(""), "1 to 64"),
        *((partial(form, name), "should be 1 to 64 ASCII") for name in WRONG_NAMES),
        *((partial(json_field, name), "should be the names") for name in WRONG_NAMES),
        (lambda: form("a", max_body=0), "max_body=0 should be"),
        (lambda: form("a", max_body=True), "max_body=True should be"),
        (lambda: json_field("a", normalise="lower"), "normalise='lower' should be"),  # type: ignore[arg-type]
        (lambda: json_field("a..b"), "'user.name'"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "extractor"),
    [
        ("form:name", form("name")),
        ("post:name", form("name")),
        ("json:user.name", json_field("user.name")),
        ("ip", client_ip()),
        ("user", framework_user),
    ],
)
def test_a_rule_takes_a_name_of_an_extractor(text: str, extractor: Any):
    rule = RateLimitRule("/login", "5/minute", by=text)
    assert rule == RateLimitRule("/login", "5/minute", by=extractor)
    assert pickle.loads(pickle.dumps(rule)) == rule


NAMES = {
    each.__name__: each for each in (RateLimitRule, form, json_field, combine, first_of, hashed)
}


@pytest.mark.parametrize(
    "by",
    [
        "user",
        form("name"),
        json_field("user.name", max_body=100),
        combine(form("a"), hashed(json_field("b"))),
        first_of(form("a", normalise=None)),
    ],
    ids=repr,
)
def test_a_rules_text_makes_the_rule(by: Any):
    rule = RateLimitRule("/login", "5/minute", by=by)
    assert eval(repr(rule), NAMES.copy()) == rule


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("headers:X-Key", "did you mean 'header:X-Key'?"),
        ("from:name", "did you mean 'form:name'?"),
        ("body:name", "did you mean 'json:name'?"),
        ("jsn:user.name", "did you mean 'json:user.name'?"),
        ("usr", "did you mean 'user'?"),
        ("user:7", "did you mean 'user'?"),
        ("remote_addr", "did you mean 'ip'?"),
        ("form", "write 'user', 'ip'"),
        ("form:", "write 'user', 'ip'"),
        ("", "write 'user', 'ip'"),
        ("xyz:abc", "write 'user', 'ip'"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_a_hint(text: str, hint: str):
    with pytest.raises(ConfigurationError) as refused:
        RateLimitRule("/login", "5/minute", by=text)
    assert f"RateLimitRule.by = {text!r}: {hint}" in str(refused.value)


def test_what_is_made_of_others_takes_their_names_too():
    assert combine("form:name", "ip") == combine(form("name"), client_ip())
    assert first_of("json:a.b", hashed("form:c")) == first_of(json_field("a.b"), hashed(form("c")))
    with pytest.raises(
        ConfigurationError, match=r"combine\('from:name'\): did you mean 'form:name'"
    ):
        combine("from:name", "ip")
