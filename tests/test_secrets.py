"""What shows objects in tracebacks shows no secret: their repr, and rich.

FastAPI's command line and Typer print tracebacks by rich, perhaps with local variables, and rich
asks a Struct for all of its fields.
"""

from __future__ import annotations

from typing import Any

import pytest
from rich.pretty import pretty_repr

from upstash_middleware import Decision, SessionSettings
from upstash_middleware.core.flow import Pipeline
from upstash_middleware.core.sessions import CookieChange, SessionLookup, StoredSession
from upstash_middleware.events import RateLimitDecided
from upstash_middleware.local.service import Tokens
from upstash_middleware.messages import Headers, HTTPRequest
from upstash_middleware.settings import settings_from
from upstash_middleware.upstash import Credentials

SECRET = "a-secret-of-forty-characters-or-more-1234"
URL = "https://shop.upstash.io"
REQUEST = HTTPRequest("GET", "/", Headers.of(authorization=SECRET), native={"cookie": SECRET})


@pytest.mark.parametrize(
    "value",
    [
        Credentials(URL, SECRET),
        CookieChange(SECRET, 60.0),
        Decision(True, "rule", "ada", challenge=SECRET),
        RateLimitDecided("rule", "ada", True, 1, request=REQUEST),
        REQUEST,
        SessionLookup(Pipeline(()), SECRET, "", ()),
        SessionSettings(secret_key=SECRET),
        settings_from({"url": URL, "token": SECRET, "secret": SECRET, "cache_keys": [SECRET]}, {}),
        StoredSession(SECRET, "key", 1.0, 1.0, "salt"),
        Tokens(SECRET, SECRET),
    ],
    ids=lambda value: type(value).__name__,
)
def test_neither_repr_nor_rich_shows_a_secret(value: Any) -> None:
    assert SECRET not in repr(value)
    assert SECRET not in pretty_repr({"a local variable": [value]})
