"""Limits by what the body contains: who is counted, and that the application gets its body."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from django.http import HttpRequest
from starlette.requests import HTTPConnection
from upstash_redis import Redis
from werkzeug.wrappers import Request

from tests.contract.neutral import Reply, Seen
from upstash_middleware import RateLimitRule, client_ip, combine, form, json_field

if TYPE_CHECKING:
    from tests.contract.conftest import Guarded, Serve
    from tests.contract.neutral import Answer, Backend, Served
    from upstash_middleware import HTTPRequest
    from upstash_middleware.local import LocalUpstash

    Sent = tuple[bytes, str]

URLENCODED = "application/x-www-form-urlencoded"
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"


def echo(request: Seen) -> Reply:
    return Reply(request.body)


def urlencoded(name: str) -> Sent:
    return urlencode({"password": "p&=;", "name": name}).encode(), URLENCODED


def multipart(name: str) -> Sent:
    lines = [
        f"--{BOUNDARY}",
        'Content-Disposition: form-data; name="photo"; filename="me.png"',
        "Content-Type: image/png",
        "",
        "\x89PNG\r\n\x1a\n",
        f"--{BOUNDARY}",
        'Content-Disposition: form-data; name="name"',
        "",
        name,
        f"--{BOUNDARY}--",
        "",
    ]
    return "\r\n".join(lines).encode(), f"multipart/form-data; boundary={BOUNDARY}"


def in_json(name: str) -> Sent:
    return json.dumps({"user": {"name": name}, "password": "p"}).encode(), "application/json"


def post(
    served: Served, sent: Sent, *, peer: str = "203.0.113.9", announced: bool = True
) -> Answer:
    body, content_type = sent
    fields = (("content-type", content_type),)
    return served.request("POST", "/login", fields, body, peer=peer, announced=announced)


def statuses(served: Served, *sent: Sent) -> list[int]:
    """Send each from an address of its own, which must not be what is counted by."""
    peers = (f"203.0.113.{number}" for number in range(1, 250))
    return [post(served, each, peer=peer).status for each, peer in zip(sent, peers, strict=False)]


def layer(by: Any, limits: str = "1/hour", **more: Any) -> tuple[str, dict[str, Any]]:
    rule = {"path": "/login", "methods": ["POST"], "limits": limits, "by": by, **more}
    return "RateLimitMiddleware", {"rate_limits": [rule], "default_limit": None}


KINDS: list[tuple[Any, Any]] = [
    ("form:name", urlencoded),
    ("post:name", multipart),
    (form("name"), multipart),
    ("json:user.name", in_json),
    (json_field("user.name"), in_json),
]


@pytest.mark.parametrize(("by", "sent"), KINDS)
def test_each_name_has_a_quota_of_its_own_from_any_address(serve: Serve, by: Any, sent: Any):
    served = serve(echo, layer(by))
    answers = [post(served, sent("ada"), peer=f"203.0.113.{n}") for n in (1, 2)]
    assert [each.status for each in answers] == [200, 429]
    assert statuses(served, sent(" ADA "), sent("bob"), sent("Bob")) == [429, 200, 429]


@pytest.mark.parametrize(("by", "sent"), KINDS)
def test_the_application_reads_its_body_as_if_nothing_had(serve: Serve, by: Any, sent: Any):
    served = serve(echo, layer(by, "9/hour"))
    assert post(served, sent("ada")).body == sent("ada")[0]
    padded = sent("ada")[0] + b"x" * 70_000
    assert post(served, (padded, sent("ada")[1])).body == padded
    assert post(served, (b"", "text/plain")).body == b""


@pytest.mark.parametrize("padding", [0, 70_000])
def test_a_body_without_content_length_is_read_and_passed_on_too(serve: Serve, padding: int):
    """If the framework reads one at all; under WSGI, Django sees no body then."""
    served = serve(echo, layer("form:name"))
    body = urlencoded("ada")[0] + b"&padding=" + b"x" * padding
    answer = post(served, (body, URLENCODED), announced=False)
    assert (answer.status, answer.body) in {(200, body), (200, b"")}
    assert post(served, (body, URLENCODED), announced=False).status == 429


WITHOUT_VALUE: list[Sent] = [
    (b"", ""),
    (b"other=1", URLENCODED),
    (b"name=", URLENCODED),
    (b"name=ada&n%61me=bob", URLENCODED),
    (urlencoded("ada")[0] + b"&padding=" + b"x" * 65536, URLENCODED),
    (b"name=ada;other=1", URLENCODED),
    (b"name=ada", f"{URLENCODED}; charset=utf-7"),
    (b"name=ada", "text/plain"),
    (multipart("ada")[0].replace(b"\r\n", b"\n"), multipart("")[1]),
    (multipart("ada")[0][:-8], multipart("")[1]),
    in_json("ada"),
]


def test_all_bodies_without_one_value_share_one_quota(serve: Serve):
    """So that no body is free, and none takes what belongs to a name."""
    served = serve(echo, layer("form:name", "2/hour"))
    assert statuses(served, *WITHOUT_VALUE) == [200, 200] + [429] * (len(WITHOUT_VALUE) - 2)
    assert statuses(served, urlencoded("ada"), urlencoded("(no single value)")) == [200, 200]


def test_json_without_one_value_shares_one_quota(serve: Serve):
    served = serve(echo, layer("json:user.name", "1/hour"))
    bodies = [b"", b"{", b'{"user": {"name": "ada", "name": "bob"}}', b'{"user": {}}', b"[" * 9999]
    sent = [(body, "application/json") for body in bodies]
    assert statuses(served, *sent) == [200, 429, 429, 429, 429]


def test_a_coded_body_counts_with_those_without_a_value(serve: Serve):
    served = serve(echo, layer("form:name"))
    fields = (("content-type", URLENCODED), ("content-encoding", "gzip"))
    for name, expected in (("ada", 200), ("bob", 429)):
        body = urlencoded(name)[0]
        assert served.request("POST", "/login", fields, body).status == expected


def test_no_key_contains_what_was_sent(serve: Serve, upstash: LocalUpstash):
    served = serve(echo, layer("form:name"))
    post(served, urlencoded("ada-lovelace"))
    with Redis(upstash.url, upstash.token) as redis:
        (key,) = redis.keys("*login*")
    assert "form.name=#" in key
    assert "lovelace" not in key


def test_a_pair_of_name_and_address_is_one_identity(serve: Serve):
    served = serve(echo, layer(combine(form("name"), client_ip())))
    for peer, name, expected in (
        ("203.0.113.1", "ada", 200),
        ("203.0.113.1", "ada", 429),
        ("203.0.113.2", "ada", 200),
        ("203.0.113.1", "bob", 200),
    ):
        assert post(served, urlencoded(name), peer=peer).status == expected


def test_several_rules_read_one_body(serve: Serve):
    """By address, by name, and by both."""
    rules = [
        RateLimitRule("/login", "4/hour", name="address"),
        RateLimitRule("/login", "3/hour", name="name", by="form:name"),
        RateLimitRule("/login", "2/hour", name="both", by=combine(form("name"), client_ip())),
    ]
    settings = {"rate_limits": rules, "default_limit": None, "match": "all"}
    served = serve(echo, ("RateLimitMiddleware", settings))
    sent = [("1", "ada"), ("1", "ada"), ("1", "ada"), ("2", "ada"), ("3", "ada"), ("3", "bob")]
    answers = [post(served, urlencoded(name), peer=f"203.0.113.{n}") for n, name in sent]
    assert [each.status for each in answers] == [200, 200, 429, 200, 429, 200]
    assert answers[-1].body == urlencoded("bob")[0]


@pytest.mark.parametrize("by", ["form:name", form("name")])
def test_a_limit_in_front_of_a_handler_reads_the_body_too(guarded: Guarded, by: Any):
    served = guarded(lambda _: Reply(), "1/hour", by=by)
    assert statuses(served, urlencoded("ada"), urlencoded("ada"), urlencoded("bob")) == [
        200,
        429,
        200,
    ]
    assert statuses(served, multipart("bob"), multipart("eve"), (b"", "")) == [429, 200, 200]
    assert statuses(served, (b"name=a&name=b", URLENCODED)) == [429]


def test_a_handler_behind_its_own_limit_reads_its_body(serve: Serve):
    """Also behind a middleware that has read it, and another decorator that does."""
    limits = [("9/hour", {"by": "json:user.name", "name": "a"}), ("9/hour", {"by": "form:name"})]
    served = serve(echo, layer("form:name", "9/hour"), limits=limits)
    for sent in (urlencoded("ada"), in_json("ada"), (b"x" * 70_000, URLENCODED)):
        assert post(served, sent).body == sent[0]


def test_only_requests_under_the_rule_have_their_body_read(serve: Serve):
    """Others of the same application are passed on untouched."""
    served = serve(echo, layer("form:name"))
    for _ in range(2):
        answer = served.request("POST", "/other", (("content-type", URLENCODED),), b"name=ada")
        assert (answer.status, answer.body) == (200, b"name=ada")


def kind_of_native(request: HTTPRequest) -> str:
    """Return what the documentation says of a framework's own request."""
    native = request.native
    if isinstance(native, HttpRequest):
        return f"HttpRequest {native.headers['x-shop']}"
    if "wsgi.input" in native:
        return f"environ {Request(native).headers['x-shop']}"
    return f"scope {HTTPConnection(native).headers['x-shop']}"


NATIVE = {"starlette": "scope", "flask": "environ", "django": "HttpRequest"}


def test_the_frameworks_own_request_is_what_the_documentation_says(serve: Serve, backend: Backend):
    """In the middleware and in front of a handler."""
    seen: list[str] = []

    def by(request: HTTPRequest) -> str:
        seen.append(kind_of_native(request))
        return "one"

    served = serve(echo, layer(by, "9/hour"), limits=[("9/hour", {"by": by})])
    served.request("POST", "/login", (("x-shop", "tea"),))
    assert seen == [f"{NATIVE[backend.name.partition('-')[0]]} tea"] * 2


def test_a_page_that_read_an_unannounced_body_is_not_stored(serve: Serve):
    """Also where a limit has read it before."""
    rule = {"path": "/page", "limits": "9/hour", "by": "form:name"}
    settings = {
        "rate_limits": [rule],
        "default_limit": None,
        "cache": [{"path": "/page", "ttl": 9}],
    }
    served = serve(echo, ("UpstashMiddleware", settings))
    fields = (("content-type", URLENCODED),)
    for _ in range(2):
        answer = served.request("GET", "/page", fields, b"name=ada", announced=False)
        assert answer.body in {b"name=ada", b""}
        assert served.request("GET", "/page").body == b""
