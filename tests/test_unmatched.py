"""A rule that nothing has matched after many requests is logged, once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.asgi.fakes import body, call, http_scope, sending, start
from tests.wsgi.fakes import environ_of, replying, served
from upstash_middleware import CacheRule, RateLimitRule, asgi, wsgi

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("upstash")

MANY = 10_000
RULES: dict[str, Any] = {
    "rate_limits": [
        RateLimitRule("/shop/login", "1/hour"),
        RateLimitRule("/health", "unlimited"),
        RateLimitRule(None, "unlimited", name="others"),
    ],
    "default_limit": None,
    "cache": [CacheRule("/shop/tea", ttl=60), CacheRule("/tea", ttl=60)],
}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is logged: the settings that it is about."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert record.levelno == logging.WARNING
            assert "rules check" in record.getMessage()
            found.append(str(getattr(record, "upstash_where", "")))

    handler = Handler()
    logger = logging.getLogger("upstash_middleware")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


UNMATCHED = ["cache[0].path", "rate_limits[0].path"]


def test_under_wsgi(told: list[str]):
    app = wsgi.UpstashMiddleware(replying(b"ok"), **RULES)
    served(app, environ_of(path="/tea"))
    for _ in range(MANY - 1):
        served(app, environ_of(path="/health"))
    assert told == []
    for _ in range(2):
        served(app, environ_of(path="/health"))
    assert sorted(told) == UNMATCHED


def test_under_asgi(told: list[str]):
    app = asgi.UpstashMiddleware(sending(start(), body()), **RULES)

    async def ask() -> None:
        await call(app, http_scope(path="/tea", raw_path=b"/tea"))
        for _ in range(MANY + 1):
            await call(app, http_scope(path="/health", raw_path=b"/health"))

    anyio.run(ask)
    assert sorted(told) == UNMATCHED


def test_rules_that_have_all_been_matched_are_not_reported(told: list[str]):
    app = wsgi.UpstashMiddleware(replying(b"ok"), **RULES)
    for path in ("/shop/login", "/shop/tea", "/tea", *["/health"] * (MANY + 1)):
        served(app, environ_of(path=path))
    assert told == []
