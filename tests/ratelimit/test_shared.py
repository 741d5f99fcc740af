"""No client's limits on a response that a shared cache may store (RFC 9111 §3)."""

from __future__ import annotations

from typing import Any

import pytest

from upstash_middleware.core.ratelimit.decision import may_be_shared
from upstash_middleware.messages import NO_HEADERS, Headers, HTTPRequest, ResponseHead

AUTHORIZED = Headers.of(authorization="Bearer x")


def shared(
    method: str = "GET", status: int = 200, request: Headers = NO_HEADERS, **fields: str
) -> bool:
    head = ResponseHead(status, Headers.of(**fields))
    return may_be_shared(HTTPRequest(method, "/", request), head)


@pytest.mark.parametrize(
    "fields",
    [
        {"age": "0"},
        {"cache_control": "max-age=60"},
        {"cache_control": "S-MaxAge=60"},
        {"cache_control": 'foo="no-store, private", public'},
        {"cache_control": 'private="set-cookie", max-age=5'},
        {"cache_control": "no-cache", "etag": '"a"'},
        {"expires": "0"},
        {"etag": '"a"'},
        {"last_modified": "Mon, 23 Nov 2026 06:00:00 GMT"},
        {"cache_control": "no-store", "cdn_cache_control": "max-age=60"},
        {"cache_control": "private", "vercel_cdn_cache_control": "max-age=60"},
        {"surrogate_control": "max-age=60"},
        {"cache_control": "no-store", "age": "3"},
    ],
)
def test_where_a_cache_finds_any_reason_to_store_nothing_is_told(fields: dict[str, Any]) -> None:
    """Explicit freshness, public, validators, targeted fields, and what is from a cache."""
    assert shared(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cache_control": "no-store"},
        {"cache_control": "private, max-age=60"},
        {"cache_control": "max-age=60", "pragma": "x", "cdn_cache_control": "no-store"}
        | {"cache_control": "private"},
        {"cache_control": "no-cache"},
        {"content_type": "application/json"},
    ],
)
def test_where_no_shared_cache_may_store_the_fields_are_there(fields: dict[str, Any]) -> None:
    """The usual answer of an API."""
    assert not shared(**fields)


def test_authorized_answers_are_stored_only_if_they_say_so() -> None:
    """RFC 9111 §3.5."""
    assert not shared(request=AUTHORIZED, etag='"a"')
    assert not shared(request=AUTHORIZED, cache_control="max-age=60")
    assert shared(request=AUTHORIZED, cache_control="public, max-age=60")
    assert shared(request=AUTHORIZED, cache_control="s-maxage=60")
    assert shared(request=AUTHORIZED, cache_control="max-age=60, must-revalidate")


def test_heuristics_need_a_method_and_status_that_allow_them() -> None:
    """RFC 9111 §4.2.2, RFC 9110 §15.1."""
    assert not shared(method="POST", etag='"a"')
    assert not shared(status=201, etag='"a"')
    assert shared(status=304, etag='"a"')
    assert shared(method="POST", cache_control="max-age=60")
