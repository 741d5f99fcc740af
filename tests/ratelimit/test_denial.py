"""The bodies of a denial, in the form that the client likes best (RFC 9110 §12.5.1)."""

from __future__ import annotations

import json

import pytest

from upstash_middleware.core.ratelimit.decision import PolicyState, decided
from upstash_middleware.core.ratelimit.decision import denial as denial_of
from upstash_middleware.messages import Headers, HTTPRequest, Response

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def denial(accept: str | None, name: str = "a", retry_after: float | None = 1.5) -> Response:
    headers = Headers() if accept is None else Headers.of(accept=accept)
    policies = (
        PolicyState(name, 5, 60, 0, 30.0, allowed=False, retry_after=retry_after),
        PolicyState("other", 9, 3600, 4, 90.0, allowed=True),
    )
    decision = decided("rule", "ip=1", policies)
    return denial_of(HTTPRequest("GET", "/", headers), decision, 10.0)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/problem+json"),
        ("", "application/problem+json"),
        ("*/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("text/html;q=0.5, application/json", "application/problem+json"),
        ("image/png", "application/problem+json"),
        ("text/html;q=0", "application/problem+json"),
        (BROWSER, "text/html; charset=utf-8"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("text/*", "text/html; charset=utf-8"),
        ("text/plain, text/html;q=0.9", "text/plain; charset=utf-8"),
        ("application/problem+json;q=0.2, TEXT/HTML;q=0.3", "text/html; charset=utf-8"),
    ],
)
def test_the_body_is_what_accept_prefers(accept: str | None, content_type: str) -> None:
    """Programs get problem+json, browsers HTML, terminals text."""
    assert denial(accept).head.headers.get("content-type") == content_type


def test_problem_json_names_the_type_and_the_violated_policies() -> None:
    """draft-ietf-httpapi-ratelimit-headers-10 §6.1, RFC 9457."""
    assert json.loads(denial(None).body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too many requests",
        "status": 429,
        "detail": "Try again in 2 seconds.",
        "violated-policies": ["a"],
    }


def test_text_and_html_say_the_same() -> None:
    """In words, with nothing that a client sent."""
    text = denial("text/plain", retry_after=1).body
    assert text == b"Too many requests. Try again in 1 second.\n"
    assert b"<p>Try again in 2 seconds.</p>" in denial("text/html").body


def test_names_are_quoted_as_structured_strings() -> None:
    """RFC 9651 §3.3.3."""
    found = denial(None, name='say "hi" \\ now').head.headers.get("ratelimit")
    assert found == '"say \\"hi\\" \\\\ now";r=0;t=2, "other";r=4'


@pytest.mark.parametrize(("later", "seconds"), [(-0.0004, 3), (0.0, 3), (0.0004, 3), (0.0006, 4)])
def test_the_seconds_until_a_reset_are_counted_from_whole_milliseconds(later: float, seconds: int):
    """Otherwise the difference of two times in floats would often be a second more."""
    now = 1_790_000_000.0
    policies = (
        PolicyState("a", 5, 60, 0, now + 60, allowed=False, retry_after=60.0),
        PolicyState("other", 9, 60, 4, now + 3 + later, allowed=True),
    )
    answer = denial_of(HTTPRequest("GET", "/", Headers()), decided("r", "ip=1", policies), now)
    assert answer.head.headers.get("ratelimit") == f'"a";r=0;t=60, "other";r=4;t={seconds}'
