"""The package as a whole: its names, and what importing it costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import metadata, requires
from inspect import isclass

import pytest

import upstash_middleware

PUBLIC = """
    AsyncRedis Concurrency Redis Session SessionSettings SlidingLog as_upstash_limiter jwt_claim
    CacheRule CircuitOpen CommandError ConfigurationError ConnectionLost DeadlineExceeded Decision
    FixedWindow GCRA HTTPRequest Headers Identifier MissingCredentials NotConnected PolicyState
    Purge PurgeNotPassedOn Warmed awarm warm
    RateLimitRule Refused SlidingWindow TokenBucket UNLIMITED UnexpectedAnswer UpstashError
    Data Lease SyncData Limiter NotStorable RateLimited SyncLimiter
    UpstashMiddlewareError client_ip combine cookie first_of form hashed header json_field query
"""

HEAVY = {"anyio", "django", "fastapi", "flask", "httpx", "redis", "starlette"} | {
    "upstash_ratelimit",
    "upstash_redis",
    "werkzeug",
}


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that a new interpreter holds after a statement."""
    program = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    unmeasured = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=unmeasured
    )
    return set(output.stdout.split())


def test_the_public_names_are_these():
    assert set(upstash_middleware.__all__) == set(PUBLIC.split())
    assert all(hasattr(upstash_middleware, name) for name in upstash_middleware.__all__)


@pytest.mark.parametrize("framework", ["fastapi", "flask", "django.http"])
def test_no_public_name_is_one_that_applications_import_from_their_framework(framework):
    """Beside ``fastapi.Request``, a ``Request`` of ours is an obscure error of FastAPI's."""
    classes = {name for name, value in vars(import_module(framework)).items() if isclass(value)}
    assert not classes & set(upstash_middleware.__all__)


def test_importing_the_package_imports_no_framework_and_no_http_client():
    assert not imported_by("import upstash_middleware") & (HEAVY | {"asyncio", "socket", "ssl"})


@pytest.mark.parametrize(
    ("module", "own"),
    [
        ("asgi", {"anyio"}),
        ("wsgi", {"anyio"}),
        ("starlette", {"anyio", "starlette"}),
        ("flask", {"anyio", "flask", "werkzeug"}),
        ("django", {"anyio", "django"}),
    ],
)
def test_an_adapter_imports_its_own_framework_only(module, own):
    assert imported_by(f"import upstash_middleware.{module}") & HEAVY <= own


def requirements_of(extra: str) -> set[str]:
    """Return what an extra adds, without the markers of the extra itself."""
    return {
        re.sub(r" (and|or)$", "", each.partition(f"extra == '{extra}'")[0].rstrip("; "))
        for each in requires("upstash-middleware") or ()
        if f"extra == '{extra}'" in each
    }


def test_the_extra_all_is_all_extras():
    extras = set(metadata("upstash-middleware").get_all("Provides-Extra") or ()) - {"all"}
    assert {"cli", "django", "fastapi", "flask", "local", "starlette"} < extras
    assert requirements_of("all") == set[str]().union(*map(requirements_of, extras))


def test_the_extra_of_fastapi_has_starlette_too():
    """Its adapter is Starlette's, with what FastAPI adds."""
    assert requirements_of("fastapi") > requirements_of("starlette")
