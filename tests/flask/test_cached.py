"""``@cached`` and ``@never_cached`` in Flask, told to the middleware outside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, abort

from upstash_middleware.flask import EXTENSION, UpstashMiddleware, cached, never_cached, purge

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("upstash")

PATIENT: Any = {"deadline": 20.0, "cache_deadline": 20.0}
EVERYTHING: Any = {"cache": [{"path": "/{rest:path}"}], **PATIENT}


@pytest.fixture
def app() -> Iterator[Flask]:
    """An empty application, whose clients are closed afterwards."""
    app = Flask("shop")
    yield app
    for middleware in app.extensions.get(EXTENSION, {}).values():
        middleware.runtime.close()


def second(app: Flask, path: str) -> str:
    """Return the Cache-Status of the second of two requests."""
    client = app.test_client()
    client.get(path, buffered=True)
    return client.get(path, buffered=True).headers["Cache-Status"]


def page(**_: str) -> str:
    return "page"


def test_what_says_so_is_stored_with_its_tags_and_nothing_else(app: Flask):
    UpstashMiddleware(app, **EVERYTHING)
    app.add_url_rule("/page/<id>", "page", cached(60, tags=("product:{id}",))(page))
    app.add_url_rule("/other/<id>", "other", page)
    assert "; hit; ttl=" in second(app, "/page/7")
    assert "; hit; ttl=" in second(app, "/page/8")
    assert "no freshness lifetime" in second(app, "/other/7")
    with app.app_context():
        purge(tags=("product:7",))
    client = app.test_client()
    assert "fwd=" in client.get("/page/7", buffered=True).headers["Cache-Status"]
    answer = client.get("/page/8", buffered=True)
    assert "; hit" in answer.headers["Cache-Status"]
    assert "Upstash-Cache-Control" not in answer.headers


def test_a_part_of_the_path_that_makes_too_long_a_tag_is_stored_nowhere(app: Flask):
    """Which is known before the tag is expanded: each colon of it is an ancestor."""
    UpstashMiddleware(app, **EVERYTHING)
    app.add_url_rule("/page/<id>", "page", cached(60, tags=("product:{id}",))(page))
    began = time.process_time()
    assert "a tag of more than 1024 bytes" in second(app, "/page/" + ":" * 8000)
    assert time.process_time() - began < 1


def test_an_error_is_not_stored(app: Flask):
    UpstashMiddleware(app, **EVERYTHING)
    app.add_url_rule("/", "page", cached(60)(lambda: abort(404)))
    assert "no freshness lifetime" in second(app, "/")


def test_what_is_never_cached_goes_around_a_rule_that_stores_all(app: Flask):
    UpstashMiddleware(app, cache=[{"path": "/{rest:path}", "ttl": 60}], **PATIENT)
    app.add_url_rule("/never", "never", never_cached(page))
    app.add_url_rule("/page", "page", page)
    assert "; hit" in second(app, "/page")
    assert "no-store" in second(app, "/never")


def test_without_a_cache_outside_it_is_said(app: Flask, caplog: pytest.LogCaptureFixture):
    def lonely() -> str:
        return "page"

    app.add_url_rule("/", "page", cached(60)(lonely))
    app.test_client().get("/", buffered=True)
    assert "lonely" in caplog.text
    assert "stores nothing" in caplog.text
