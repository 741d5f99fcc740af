"""What the command line's tests share: one way to call it, and applications to call it about."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from upstash_middleware.cli.commands import app

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Called:
    """What came of a call."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output, read as JSON."""
        return json.loads(self.out)


Call = Callable[..., Called]

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.starlette import UpstashMiddleware


async def page(request):
    return PlainTextResponse("page", headers={"Vary": request.query_params.get("vary", "Accept")})


SETTINGS = {
    "rate_limits": [RateLimitRule("/api/generate", "2/h", name="generate", dynamic=True)],
    "default_limit": "100/minute",
    "sessions": {"secret_key": "a long random text"},
    "cache": [CacheRule("/products/{id}", ttl=60, tags=("product:{id}",))],
    "purge_directories": True,
}
app = Starlette(
    routes=[
        Route("/api/generate", page, methods=["POST"]),
        Route("/products/{id:int}", page),
        Mount("/inner", routes=[Route("/x", page)]),
    ]
)
app.add_middleware(UpstashMiddleware, **SETTINGS)
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command in this process, with these words."""
    for name in ("UPSTASH_MIDDLEWARE_APP", "DJANGO_SETTINGS_MODULE"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str, application: object = None, typed: str = "") -> Called:
        result = CliRunner().invoke(app, words, input=typed, obj=application)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Called(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that can be imported while the test runs; return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"made_for_{abs(hash((text, str(tmp_path))))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def shop(module: Callable[[str], str]) -> str:
    """Return a Starlette application's import path."""
    return f"{module(STARLETTE)}:app"
