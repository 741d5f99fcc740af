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

from tests.django.fakes import OURS, FakeGateway, FakeHalf, around, project, whole
from tests.django.project import Urls
from upstash_middleware.django import (
    CacheMiddleware,
    RateLimitMiddleware,
    UpstashMiddleware,
    apurge,
    configuration,
    purge,
)
from upstash_middleware.django.configuration import Configured
from upstash_middleware.errors import MissingCredentials
from upstash_middleware.gateway import Halves

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
    with pytest.raises(ImproperlyConfigured, match="give default_limit"):
        UpstashMiddleware(hello)


@override_settings(UPSTASH_MIDDLEWARE={"enabled": False})
@pytest.mark.parametrize("cls", [UpstashMiddleware, RateLimitMiddleware, CacheMiddleware])
def test_what_is_switched_off_needs_no_rules_and_no_credentials(cls: Any) -> None:
    assert cls(hello)(RequestFactory().get("/")).content == b"hello"


def test_a_handler_that_was_built_before_follows_the_setting() -> None:
    denying = FakeHalf(response=whole(429))
    with around(denying, hello=hello) as gateway:
        client = Client()
        assert client.get("/hello").status_code == 429
        with override_settings(UPSTASH_MIDDLEWARE={"enabled": False}):
            gateway.enabled = False
            assert client.get("/hello").status_code == 200
        assert gateway.closed == 1
        gateway.enabled = True
        assert client.get("/hello").status_code == 429


@override_settings(UPSTASH_MIDDLEWARE=CACHED)
def test_a_gateway_is_kept_as_long_as_the_setting_is_the_same() -> None:
    configured = Configured(Halves.CACHE)
    assert configured.gateway() is configured.gateway()
    assert Configured(Halves.CACHE).gateway() is not configured.gateway()


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


class Purged(FakeGateway):
    """A gateway that remembers what was purged through it."""

    def __init__(self) -> None:
        super().__init__(FakeHalf())
        self.purged: list[Any] = []

    def purge(self, *urls: str, **options: Any) -> None:
        self.purged.append((urls, options))

    async def apurge(self, *urls: str, **options: Any) -> None:
        self.purged.append((urls, options))


@pytest.mark.anyio
async def test_purging_goes_through_the_client_of_the_middleware_that_stores() -> None:
    purged = ("/page",), {"tags": ("page",), "everything": False, "soft": True}
    gateways: dict[Halves, Any] = {half: Purged() for half in (Halves.CACHE, Halves.RATE_LIMIT)}
    with project(gateways=gateways):
        CacheMiddleware(hello)
        RateLimitMiddleware(hello)
        purge("/page", tags=["page"], soft=True)
        await apurge("/page", tags=["page"], soft=True)
    assert gateways[Halves.CACHE].purged == [purged, purged]
    assert gateways[Halves.RATE_LIMIT].purged == []


@override_settings(UPSTASH_MIDDLEWARE={"enabled": False})
def test_purging_does_nothing_where_it_is_switched_off() -> None:
    purge("/page")


def test_a_process_without_a_handler_purges_what_servers_have_stored(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = list[int]()

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
    monkeypatch.setattr(configuration, "_for_purging", Configured(Halves(0)))
    with override_settings(UPSTASH_MIDDLEWARE={}):
        purge(tags=["page"])
    with override_settings(**shop):
        client.get("/page")
    assert len(rendered) == 2
