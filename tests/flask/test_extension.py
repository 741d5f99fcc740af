"""The ways in which a Flask application gets the middleware, and what stands there then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Blueprint, Flask, Response, g, send_file, stream_with_context
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.wsgi.fakes import environ_of, served
from upstash_middleware import flask
from upstash_middleware.errors import ConfigurationError, MissingCredentials
from upstash_middleware.flask import (
    CacheMiddleware,
    RateLimitMiddleware,
    UpstashMiddleware,
    purge,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask.testing import FlaskClient

    from upstash_middleware.local import LocalUpstash

LIMIT: dict[str, Any] = {"default_limit": "100/hour"}
CACHE: dict[str, Any] = {"cache": [{"path": "/page", "ttl": 60, "tags": ["pages"]}]}


@pytest.fixture
def make() -> Iterator[Callable[[], Flask]]:
    """Make Flask applications, and close afterwards what their middlewares have opened."""
    made: list[Flask] = []

    def make() -> Flask:
        app = Flask("shop")
        rendered: list[str] = []

        @app.get("/page")
        def page() -> str:
            rendered.append("page")
            return f"rendered {len(rendered)}"

        @app.get("/left")
        def left() -> str:
            return "nothing" if g.rate_limit.remaining is None else str(g.rate_limit.remaining)

        @app.post("/page")
        def edit() -> tuple[str, int]:
            purge("/page")
            return "", 204

        made.append(app)
        return app

    yield make
    for app in made:
        for middleware in app.extensions.get(flask.EXTENSION, {}).values():
            middleware.runtime.close()


@pytest.fixture
def app(make: Callable[[], Flask]) -> Flask:
    """One application."""
    return make()


def got(client: FlaskClient, path: str) -> str:
    """Return the body of the page at ``path``, whose response is closed as a server does."""
    return client.get(path, buffered=True).text


def by_constructor(app: Flask) -> None:
    UpstashMiddleware(app, **LIMIT, **CACHE)


def by_init_app(app: Flask) -> None:
    UpstashMiddleware(**LIMIT, **CACHE).init_app(app)


def by_wsgi_app(app: Flask) -> None:
    app.wsgi_app = UpstashMiddleware(app.wsgi_app, **LIMIT, **CACHE)  # type: ignore[method-assign]


def by_wsgi_app_with_the_application(app: Flask) -> None:
    app.wsgi_app = UpstashMiddleware(app, **LIMIT, **CACHE)  # type: ignore[method-assign]


def by_config(app: Flask) -> None:
    app.config["UPSTASH_MIDDLEWARE"] = {**LIMIT, **CACHE}
    UpstashMiddleware(app)


def by_config_and_keywords(app: Flask) -> None:
    app.config["UPSTASH_MIDDLEWARE"] = LIMIT
    UpstashMiddleware(app, **CACHE)


def by_wsgi_app_through_another_layer(app: Flask) -> None:
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    app.wsgi_app = UpstashMiddleware(app.wsgi_app, **LIMIT, **CACHE)  # type: ignore[method-assign]


WAYS = [
    by_constructor,
    by_init_app,
    by_wsgi_app,
    by_wsgi_app_with_the_application,
    by_config,
    by_config_and_keywords,
    by_wsgi_app_through_another_layer,
]


@pytest.mark.parametrize("add", WAYS)
def test_however_it_is_added_it_counts_once_and_stores(
    add: Callable[[Flask], None], app: Flask, upstash: LocalUpstash
):
    add(app)
    client = app.test_client()
    assert got(client, "/left") == "99"
    assert got(client, "/page") == got(client, "/page") == "rendered 1"
    assert client.post("/page", buffered=True).status_code == 204
    assert got(client, "/page") == "rendered 2"
    assert got(client, "/left") == "94"
    assert len(app.extensions["upstash_middleware"]) == 1


def test_an_extension_that_a_server_calls_in_place_of_its_application_counts_once(
    app: Flask, upstash: LocalUpstash
):
    extension = UpstashMiddleware(app, **LIMIT)
    assert served(extension, environ_of(path="/left")).body == b"99"


def test_an_extension_without_an_application_of_its_own_says_what_to_serve(app: Flask):
    extension = UpstashMiddleware(**LIMIT)
    extension.init_app(app)
    with pytest.raises(RuntimeError, match="serve the Flask application"):
        extension({}, lambda *_: lambda _: None)


def test_one_extension_serves_several_applications(
    make: Callable[[], Flask], upstash: LocalUpstash
):
    extension = UpstashMiddleware(**CACHE)
    one, other = make(), make()
    other.config["UPSTASH_MIDDLEWARE"] = {"prefix": "other"}
    for app in (one, other):
        extension.init_app(app)
    for app in (one, other):
        assert got(app.test_client(), "/page") == "rendered 1"
    with one.app_context():
        purge("/page")
    assert got(one.test_client(), "/page") == "rendered 2"
    assert got(other.test_client(), "/page") == "rendered 1"


def test_the_same_extension_twice_on_an_application_is_refused(app: Flask):
    extension = RateLimitMiddleware(app, **LIMIT)
    with pytest.raises(
        ConfigurationError, match=r"already installed in 'shop'.*call init_app, not both"
    ):
        extension.init_app(app)


def test_a_setting_in_both_places_is_refused_by_name(app: Flask):
    app.config["UPSTASH_MIDDLEWARE"] = LIMIT
    with pytest.raises(ConfigurationError, match="default_limit: given to RateLimitMiddleware and"):
        RateLimitMiddleware(app, **LIMIT)


def test_a_configuration_that_comes_too_late_is_logged(
    app: Flask, upstash: LocalUpstash, caplog: pytest.LogCaptureFixture
):
    UpstashMiddleware(app, **LIMIT)
    app.config["UPSTASH_MIDDLEWARE"] = {"prefix": "late"}
    for _ in range(2):
        app.test_client().get("/left")
    (message,) = [each.getMessage() for each in caplog.records if "config" in each.getMessage()]
    assert message.startswith("app.config['UPSTASH_MIDDLEWARE']: prefix: changed after")


def test_an_error_in_the_configuration_names_it(app: Flask):
    app.config["UPSTASH_MIDDLEWARE"] = {**LIMIT, "deadline": 99}
    with pytest.raises(ConfigurationError, match=r"^UPSTASH_MIDDLEWARE\['deadline'\]: 99 "):
        UpstashMiddleware(app)


def test_an_error_in_a_keyword_names_the_keyword(app: Flask):
    app.config["UPSTASH_MIDDLEWARE"] = LIMIT
    with pytest.raises(ConfigurationError, match=r"^deadline: 99 "):
        UpstashMiddleware(app, deadline=99)


def test_a_configuration_that_is_no_mapping_is_refused(app: Flask):
    app.config["UPSTASH_MIDDLEWARE"] = "100/minute"
    with pytest.raises(ConfigurationError, match="'100/minute' should be a dict"):
        UpstashMiddleware(app)


def test_what_is_no_flask_application_is_refused_and_told_where_to_go():
    with pytest.raises(ConfigurationError, match=r"upstash_middleware\.wsgi"):
        UpstashMiddleware(lambda _environ, _start: [], **LIMIT)


def test_without_anything_to_do_it_says_so(app: Flask):
    with pytest.raises(ConfigurationError, match="neither a limit nor a cache rule"):
        UpstashMiddleware(app)


def test_a_limit_added_after_a_cache_joins_its_round_trip(app: Flask, upstash: LocalUpstash):
    CacheMiddleware(app, **CACHE)
    RateLimitMiddleware(app, **LIMIT)
    client = app.test_client()
    for _ in range(2):
        got(client, "/page")
    upstash.reset_bill()
    assert got(client, "/page") == "rendered 1"
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 4)


def test_a_limit_and_a_cache_in_wsgi_app_join_their_round_trip(app: Flask, upstash: LocalUpstash):
    app.wsgi_app = CacheMiddleware(app.wsgi_app, **CACHE)  # type: ignore[method-assign]
    app.wsgi_app = RateLimitMiddleware(app.wsgi_app, **LIMIT)  # type: ignore[method-assign]
    client = app.test_client()
    for _ in range(2):
        got(client, "/page")
    upstash.reset_bill()
    assert got(client, "/page") == "rendered 1"
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 4)


def test_a_limit_added_before_a_cache_stands_inside_and_hits_are_not_charged(
    app: Flask, upstash: LocalUpstash
):
    RateLimitMiddleware(app, **LIMIT)
    CacheMiddleware(app, **CACHE)
    client = app.test_client()
    for _ in range(3):
        got(client, "/page")
    assert got(client, "/left") == "98"


def test_the_decision_is_there_before_any_function_of_the_application(
    app: Flask, upstash: LocalUpstash
):
    seen: list[Any] = []
    app.before_request(lambda: seen.append(g.rate_limit.remaining))
    RateLimitMiddleware(app, **LIMIT)
    got(app.test_client(), "/left")
    assert seen == [99]


def test_a_decision_does_not_outlive_its_request(app: Flask, upstash: LocalUpstash):
    """Under a pushed application context every request has the same ``g``."""
    RateLimitMiddleware(
        app, rate_limits=[{"name": "left", "path": "/left", "limits": "9/hour"}], default_limit=None
    )
    app.add_url_rule("/also", view_func=lambda: g.rate_limit.settled_by)
    with app.app_context():
        assert got(app.test_client(), "/left") == "8"
        assert got(app.test_client(), "/also") == "unchecked"


def test_blueprints_and_pages_that_do_not_exist_are_limited_too(app: Flask, upstash: LocalUpstash):
    blueprint = Blueprint("api", "api")
    blueprint.add_url_rule("/list", view_func=lambda: "list")
    app.register_blueprint(blueprint, url_prefix="/api")
    RateLimitMiddleware(app, default_limit="2/hour")
    client = app.test_client()
    statuses = [client.get(path).status_code for path in ("/api/list", "/nothing", "/api/list")]
    assert statuses == [200, 404, 429]


def test_settings_come_from_flasks_own_environment_variables(
    app: Flask, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLASK_UPSTASH_MIDDLEWARE__default_limit", "1/hour")
    monkeypatch.setenv("FLASK_UPSTASH_MIDDLEWARE__cache", '[{"path": "/page", "ttl": 60}]')
    app.config.from_prefixed_env()
    UpstashMiddleware(app)
    client = app.test_client()
    assert got(client, "/page") == "rendered 1"
    assert client.get("/page").status_code == 429


def test_a_purge_reaches_the_cache_from_a_command(app: Flask, upstash: LocalUpstash):
    CacheMiddleware(app, **CACHE)
    app.cli.command("edit")(lambda: purge(tags=("pages",)))
    assert got(app.test_client(), "/page") == "rendered 1"
    result = app.test_cli_runner().invoke(args=["edit"])
    assert result.exit_code == 0, result.output
    assert got(app.test_client(), "/page") == "rendered 2"


def test_a_purge_without_a_cache_says_what_is_missing(app: Flask):
    RateLimitMiddleware(app, **LIMIT)
    with app.app_context(), pytest.raises(RuntimeError, match=r"'shop' has no cache to purge"):
        purge(everything=True)


def test_a_page_whose_response_the_test_client_closes_is_stored(app: Flask, upstash: LocalUpstash):
    CacheMiddleware(app, **CACHE)
    with app.test_client() as client:
        with client.get("/page") as response:
            assert response.status_code == 200
        assert got(client, "/page") == "rendered 1"


def test_a_file_that_flask_sends_is_stored_whole(app: Flask, upstash: LocalUpstash, tmp_path: Path):
    """``send_file`` answers with a file wrapper, which servers read without Flask."""
    file = tmp_path / "logo.svg"
    file.write_bytes(b"<svg/>" * 10_000)
    app.add_url_rule("/logo.svg", view_func=lambda: send_file(file, max_age=600))
    CacheMiddleware(app, cache=[{"path": "/logo.svg", "ttl": 600}])
    client = app.test_client()
    answers = [client.get("/logo.svg", buffered=True) for _ in range(2)]
    assert "hit" in answers[1].headers["Cache-Status"]
    for answer in answers:
        assert answer.data == b"<svg/>" * 10_000
        assert answer.mimetype == "image/svg+xml"


def test_a_stream_reads_the_decision_of_its_request(app: Flask, upstash: LocalUpstash):
    @app.get("/stream")
    def stream() -> Response:
        def pieces() -> Iterator[str]:
            for _ in range(2):
                yield f"{g.rate_limit.remaining} "

        return Response(stream_with_context(pieces()))

    RateLimitMiddleware(app, **LIMIT)
    assert got(app.test_client(), "/stream") == "99 99 "


def test_switched_off_for_tests_it_needs_nothing(app: Flask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("UPSTASH_REDIS_REST_URL", raising=False)
    app.config["UPSTASH_MIDDLEWARE"] = {"enabled": False}
    UpstashMiddleware(app, **LIMIT, **CACHE)
    client = app.test_client()
    assert got(client, "/left") == "nothing"
    assert client.post("/page").status_code == 204
    assert [got(client, "/page") for _ in range(2)] == ["rendered 1", "rendered 2"]


def test_missing_credentials_are_told_at_the_first_request(
    app: Flask, monkeypatch: pytest.MonkeyPatch
):
    for name in ("UPSTASH_REDIS_REST_URL", "KV_REST_API_URL"):
        monkeypatch.delenv(name, raising=False)
    UpstashMiddleware(app, **LIMIT)
    with pytest.raises(MissingCredentials, match="UPSTASH_REDIS_REST_URL"):
        got(app.test_client(), "/left")
