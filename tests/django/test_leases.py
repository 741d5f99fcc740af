"""Leases in Django: what is left of them when the settings change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.test import Client, override_settings
from upstash_redis import Redis

from tests.django.project import Urls

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

PATIENT = {"deadline": 20.0}


def test_changed_settings_give_slices_back(upstash: LocalUpstash) -> None:
    with override_settings(
        MIDDLEWARE=["upstash_middleware.django.RateLimitMiddleware"],
        ROOT_URLCONF=Urls(anything=lambda _: HttpResponse("page")),
        UPSTASH_MIDDLEWARE={"default_limit": "fixed 1000/h lease 1m", **PATIENT},
    ):
        client = Client()
        for _ in range(30):
            assert client.get("/").status_code == 200
        with Redis(upstash.url, upstash.token) as redis:
            (key,) = redis.keys("*")
            assert int(redis.get(key) or 0) > 30
            with override_settings(
                UPSTASH_MIDDLEWARE={"default_limit": "9/h", "prefix": "other", **PATIENT}
            ):
                client.get("/")
                assert int(redis.get(key) or 0) == 30
