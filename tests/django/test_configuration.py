"""The setting UPSTASH_MIDDLEWARE is read when it is needed, followed when it changes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings

import upstash_middleware.django
from tests.django.fakes import OURS, FakeHalf, FakeRuntime, around, project, whole
from tests.django.project import Urls
from upstash_middleware.django import (
    CacheMiddleware,
    RateLimitMiddleware,
    UpstashMiddleware,
    apurge,
    purge,
)
from upstash_middleware.django.conf import Configured
from upstash_middleware.errors import MissingCredentials
from upstash_middleware.runtime import Features

if TYPE_CHECKING:
    from django.http import HttpRequest

    from upstash_middleware.local import LocalUpstash

CACHED = {"cache": [{"path": "/page", "ttl": 60, "tags": ["page"]}]}


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"hello")


def test_importing_needs_no_settings() -> None:
    code = "import upstash_middleware.django, upstash_middleware.django.apps"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={})


@pytest.mark.parametrize(
    ("middleware", "setting", "message"),
    [
        (UpstashMiddleware, {"defualt_limit": "1/s"}, "did you mean 'default_limit'"),
        (UpstashMiddleware, {}, "neither a limit nor a cache rule in UPSTASH_MIDDLEWARE"),
        (RateLimitMiddleware, CACHED, "has no limit in UPSTASH_MIDDLEWARE"),
        (CacheMiddleware, {"default_limit": "1/s"}, "has no rule in UPSTASH_MIDDLEWARE"),
        (CacheMiddleware, ["/page"], "should be a mapping"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_says_what_is_wrong(
    middleware: type, setting: object, message: str
) -> None:
    with (
        override_settings(UPSTASH_MIDDLEWARE=setting),
        pytest.raises(ImproperlyConfigured, match=message),
    ):
        middleware(hello)


def test_a_project_without_the_setting_is_told_what_is_missing() -> None:
    with pytest.raises(ImproperlyConfigured, match="give for instance 'default_limit'"):
        UpstashMiddleware(hello)


@override_settings(UPSTASH_MIDDLEWARE={"enabled": False})
@pytest.mark.parametrize("cls", [UpstashMiddleware, RateLimitMiddleware, CacheMiddleware])
def test_what_is_switched_off_needs_no_rules_and_no_credentials(cls: Any) -> None:
    assert cls(hello)(RequestFactory().get("/")).content == b"hello"


def test_a_handler_that_was_built_before_follows_the_setting() -> None:
    denying = FakeHalf(response=whole(429))
    with around(denying, hello=hello) as runtime:
        client = Client()
        assert client.get("/hello").status_code == 429
        with override_settings(UPSTASH_MIDDLEWARE={"enabled": False}):
            runtime.enabled = False
            assert client.get("/hello").status_code == 200
        assert runtime.closed == 1
        runtime.enabled = True
        assert client.get("/hello").status_code == 429


@override_settings(UPSTASH_MIDDLEWARE=CACHED)
def test_a_gateway_is_kept_as_long_as_the_setting_is_the_same() -> None:
    configured = Configured(Features.CACHE)
    assert configured.runtime() is configured.runtime()
    assert Configured(Features.CACHE).runtime() is not configured.runtime()


def test_missing_credentials_are_missed_at_the_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("UPSTASH_REDIS_REST_URL", "KV_REST_API_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.replace("URL", "TOKEN"), raising=False)
    shop = {
        "MIDDLEWARE": [f"{OURS}UpstashMiddleware"],
        "ROOT_URLCONF": Urls(hello=hello),
        "UPSTASH_MIDDLEWARE": {"default_limit": "100/minute"},
    }
    with override_settings(**shop):
        WSGIHandler()
        with pytest.raises(MissingCredentials, match="UPSTASH_REDIS_REST_URL"):
            Client().get("/hello")


class Purged(FakeRuntime):
    """A runtime that remembers what was purged through it."""

    def __init__(self) -> None:
        super().__init__(FakeHalf())
        self.purged: list[Any] = []

    def purge(self, *urls: str, **options: Any) -> None:
        self.purged.append((urls, options))

    async def apurge(self, *urls: str, **options: Any) -> None:
        self.purged.append((urls, options))


@pytest.mark.anyio
async def test_purging_goes_through_the_client_of_the_middleware_that_stores() -> None:
    given: dict[str, Any] = {
        "tags": ["page"],
        "directories": ["/a/"],
        "rules": ["/{id}"],
        "soft": True,
    }
    purged = ("/page",), {**given, "everything": False}
    runtimes: dict[Features, Any] = {
        half: Purged() for half in (Features.CACHE, Features.RATE_LIMIT)
    }
    with project(runtimes=runtimes):
        CacheMiddleware(hello)
        RateLimitMiddleware(hello)
        purge("/page", **given)
        await apurge("/page", **given)
    assert runtimes[Features.CACHE].purged == [purged, purged]
    assert runtimes[Features.RATE_LIMIT].purged == []


@override_settings(UPSTASH_MIDDLEWARE={"enabled": False})
def test_purging_does_nothing_where_it_is_switched_off() -> None:
    purge("/page")


PURGES_ALONE = """
from django.conf import settings
from upstash_middleware.django import purge

settings.configure(UPSTASH_MIDDLEWARE={})
purge(tags=["page"])
"""


def test_a_process_without_a_handler_purges_what_servers_have_stored(
    upstash: LocalUpstash,
) -> None:
    rendered = list[int]()
    upstash.restore_time()  # to that of the other process

    def page(request: HttpRequest) -> HttpResponse:
        rendered.append(len(rendered))
        return HttpResponse(b"page")

    shop = {
        "MIDDLEWARE": [f"{OURS}CacheMiddleware"],
        "ROOT_URLCONF": Urls(page=page),
        "UPSTASH_MIDDLEWARE": CACHED,
    }
    with override_settings(**shop):
        client = Client()
        client.get("/page")
        client.get("/page")
        assert len(rendered) == 1
    subprocess.run([sys.executable, "-c", PURGES_ALONE], check=True, timeout=60)
    with override_settings(**shop):
        client.get("/page")
    assert len(rendered) == 2


@pytest.mark.parametrize(
    ("layer", "mapping", "told"),
    [
        ("RateLimitMiddleware", {}, "'default_limit': '100/minute'"),
        ("CacheMiddleware", {}, "'cache': [{'path': '/p/{id}', 'ttl': 60}]"),
        ("UpstashMiddleware", {}, "'default_limit': '100/minute'"),
        (
            "UpstashMiddleware",
            {"rate_limits": [{"path": "/a", "limits": "5/"}], "default_limit": None},
            "UPSTASH_MIDDLEWARE['rate_limits'][0]['limits'] = '5/'",
        ),
        (
            "UpstashMiddleware",
            {"rate_limits": [{"path": "/a", "limit": "5/s"}], "default_limit": None},
            "['rate_limits'][0]['limit']: there is no such setting; did you mean 'limits'?",
        ),
        (
            "UpstashMiddleware",
            {"rate_limits": {"path": "/a"}, "default_limit": None},
            "should be a list of rules such as {'path': '/api/generate', 'limits': '10/10s'}",
        ),
        (
            "UpstashMiddleware",
            {"default_limit": {"limits": "5/s", "path": "/a"}},
            "UPSTASH_MIDDLEWARE['default_limit']['path'] = '/a'",
        ),
        (
            "UpstashMiddleware",
            {"cache": [{"path": "/a", "ttl": "60"}]},
            "UPSTASH_MIDDLEWARE['cache'][0]['ttl'] = '60' should be a number of seconds above 0",
        ),
        (
            "UpstashMiddleware",
            {"path": "/a", "limits": "5/s"},
            "it belongs to a rule of rate_limits or cache, such as {'path': '/api/generate', ",
        ),
    ],
)
def test_an_error_shows_the_syntax_of_the_setting(
    layer: str, mapping: dict[str, Any], told: str
) -> None:
    """A dict's, in which keyword arguments and calls of classes would be wrong."""
    middleware = getattr(upstash_middleware.django, layer)
    with (
        override_settings(UPSTASH_MIDDLEWARE=mapping),
        pytest.raises(ImproperlyConfigured) as error,
    ):
        middleware(lambda _: HttpResponse())
    assert told in str(error.value)
    assert "Rule(" not in str(error.value)
    assert "=[" not in str(error.value)
