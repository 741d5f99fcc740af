"""What the log says at the first request of a process about settings that are left out."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from upstash_middleware.flask import RateLimitMiddleware, UpstashMiddleware

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

APPLICATIONS = """
import httpx, json, logging, sys
from flask import Flask
from upstash_middleware.flask import CacheMiddleware, RateLimitMiddleware, purge

lines = []

class Collect(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logging.getLogger("upstash_middleware").addHandler(Collect(logging.WARNING))
down = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=[])))
for _ in range(2):
    app = Flask(__name__)
    given = {"url": "https://shop.upstash.io", "token": "t", "transport": down, **eval(sys.argv[1])}
    CacheMiddleware(app, cache=[{"path": "/page", "ttl": 60}], **given)
    RateLimitMiddleware(app, default_limit="9/minute", **given)
    with app.app_context():
        try:
            purge("/page")
        except Exception:
            pass
    for _ in range(2 * (sys.argv[2] == "serve")):
        app.test_client().get("/page")
print(json.dumps([line for line in lines if line.startswith("prefix")]))
"""


def lines(given: dict[str, Any], *, serve: bool = True) -> list[str]:
    """Return what a process logs about its prefix, that has several middleware classes."""
    run = subprocess.run(
        [sys.executable, "-c", APPLICATIONS, repr(given), "serve" if serve else "purge"],
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(run.stdout)
    return found


def test_that_the_prefix_is_left_out_is_said_once_for_a_process() -> None:
    (line,) = lines({})
    assert line == (
        "prefix: it is not set: applications that use this database with the same prefix share "
        "limits, stored responses and purges; set it to the name of this application, or to "
        "'upstash-middleware' if no other application uses the database"
    )


@pytest.mark.parametrize("prefix", ["shop", "upstash-middleware"])
def test_nothing_is_said_of_a_prefix_that_is_set(prefix: str) -> None:
    assert lines({"prefix": prefix}) == []


def test_nothing_is_said_by_a_process_that_serves_no_request() -> None:
    """As a management command that purges."""
    assert lines({}, serve=False) == []


def test_nothing_is_said_with_a_database_on_this_machine(
    upstash: LocalUpstash, caplog: pytest.LogCaptureFixture
) -> None:
    """In local development, and in tests."""
    app = Flask(__name__)
    UpstashMiddleware(app, default_limit="9/minute", url=upstash.url, token=upstash.token)
    app.test_client().get("/")
    assert caplog.records == []


def test_a_platform_that_is_used_without_a_setting_is_named_once(
    upstash: LocalUpstash, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At level INFO, since nothing has to be done."""
    monkeypatch.setenv("FLY_APP_NAME", "shop")
    monkeypatch.setenv("FLY_MACHINE_ID", "148e21eb")
    app = Flask(__name__)
    RateLimitMiddleware(app, default_limit="9/minute", redis=upstash)
    with caplog.at_level(logging.INFO, "upstash_middleware"):
        for _ in range(2):
            app.test_client().get("/")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert vars(record)["upstash_event"] == "PlatformDetected"
    assert record.getMessage() == (
        "client_ip: this runs on Fly, so client addresses are read as with client_ip='fly'"
    )
