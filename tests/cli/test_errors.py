"""What goes wrong is said in words that help, with an exit code that tells the kinds apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Call

VARIABLES = ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN")


@pytest.mark.parametrize(
    "words",
    [
        ("ping",),
        ("limits", "peek", "generate", "203.0.113.7"),
        ("limits", "explain", "/a"),
        ("cache", "purge", "--everything"),
        ("cache", "list"),
    ],
)
def test_missing_credentials_are_an_exit_code_of_3(
    call: Call, shop: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The variables are named, and how to have a database on this machine."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    told = call(*words, "--app", shop)
    assert (told.code, told.out) == (3, "")
    assert all(name in told.err for name in VARIABLES)
    assert "upstash-middleware local" in told.err


def test_rules_are_checked_without_credentials(
    call: Call, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As continuous integration does."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert call("rules", "check", "--app", shop).code == 0


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nowhere:app", "there is no module 'nowhere'"),
        ("{module}:ap", "has no 'ap'; did you mean '{module}:app'?"),
        ("{module}.py:app", "give a module and the application's name in it"),
        ("{broken}:app", "importing {broken} raised ZeroDivisionError: division by zero"),
        ("{needs}:app", "it needs 'nothing_like_this', which is not installed here"),
        ("{plain}:app", "has no middleware of this package"),
        ("{plain}:make()", "the factory raised RuntimeError: no"),
    ],
)
def test_a_wrong_application_is_an_exit_code_of_3(
    call: Call, shop: str, module: Callable[[str], str], app: str, says: str
) -> None:
    """Each mistake in its own words."""
    names = {
        "module": shop.partition(":")[0],
        "broken": module("1 / 0"),
        "needs": module("import nothing_like_this"),
        "plain": module("def app(): ...\n\ndef make():\n    raise RuntimeError('no')"),
    }
    told = call("rules", "check", "--app", app.format(**names))
    assert told.code == 3
    assert says.format(**names) in told.err


def test_a_factory_is_called(call: Call, module: Callable[[str], str]) -> None:
    """As servers do."""
    name = module("""
from flask import Flask
from upstash_middleware.flask import RateLimitMiddleware

def create_app():
    app = Flask("made", static_folder=None)
    RateLimitMiddleware(app, default_limit="1/s")
    return app
""")
    assert call("rules", "check", "--app", f"{name}:create_app()").code == 0


def test_settings_are_found_through_what_wraps_an_application(
    call: Call, module: Callable[[str], str]
) -> None:
    """Plain ASGI and WSGI included; both halves of it."""
    name = module("""
from upstash_middleware import CacheRule
from upstash_middleware.wsgi import CacheMiddleware, RateLimitMiddleware

def inner(environ, start_response): ...

app = RateLimitMiddleware(
    CacheMiddleware(inner, cache=[CacheRule("/a", ttl=1)], prefix="one"),
    default_limit="1/s",
)
""")
    told = call("rules", "check", "--app", name, "--json").data
    assert (told["findings"], told["routes"]) == ([], None)


def test_a_wrong_setting_is_an_exit_code_of_3(call: Call, module: Callable[[str], str]) -> None:
    """In the settings' own words."""
    app = f"{module('S = dict(default_limit=7)')}:S"
    told = call("rules", "check", "--app", app, "--json")
    assert (told.code, told.data["error"]["kind"]) == (3, "configuration")
    assert "default_limit" in told.data["error"]["message"]


def test_a_database_that_cannot_be_reached_is_an_exit_code_of_4(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the address is doubted."""
    with LocalUpstash() as gone:
        for name, value in gone.env.items():
            monkeypatch.setenv(name, value)
    told = call("cache", "purge", "/a", "--json")
    assert (told.code, told.data["error"]["kind"]) == (4, "upstash")
    assert "UPSTASH_REDIS_REST_URL" in told.data["error"]["hint"]


def test_a_wrong_token_is_an_exit_code_of_5(
    call: Call, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where to find the right one."""
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "wrong")
    told = call("ping")
    assert told.code == 5
    assert "copy the REST token again" in told.err


def test_a_token_that_may_only_read_purges_and_lists_nothing(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told apart from a wrong one."""
    with LocalUpstash(read_only_token="looking") as upstash:
        for name, value in upstash.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "looking")
        for words in (("cache", "purge", "/a"), ("cache", "list")):
            told = call(*words)
            assert told.code == 5
            assert "the token is read-only" in told.err
        told = call("ping", "--json")
        assert (told.code, told.data["may_write"], told.data["may_scan"]) == (0, False, False)
        assert "READ-ONLY" in call("ping").out


def test_ping_tells_latency_server_and_what_the_token_may(
    call: Call, upstash: LocalUpstash
) -> None:
    """And changes nothing."""
    upstash.restore_time()
    told = call("ping", "--count", "3", "--json")
    data = told.data
    assert (told.code, data["url"]) == (0, upstash.url)
    assert 0 < data["latency_ms"]["min"] <= data["latency_ms"]["median"]
    assert data["latency_ms"]["median"] <= data["latency_ms"]["max"]
    assert data["server"].startswith("valkey ")
    assert (data["may_write"], data["may_scan"], data["scripts"], data["binary"]) == (True,) * 4
    assert abs(data["clock_offset_ms"]) < 1000
    assert call("cache", "list", "--json").data["count"] == 0


def test_a_fault_of_the_program_s_own_is_no_exit_code(
    call: Call, shop: str, upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its traceback, so that it can be reported."""

    def broken(*_: object) -> None:
        raise LookupError("a fault")

    monkeypatch.setattr("upstash_middleware.cli.invocation.find", broken)
    with pytest.raises(LookupError, match="a fault"):
        call("ping")


@pytest.mark.parametrize(
    "words", [(), ("limits",), ("cache",), ("rules",), ("cache", "purge"), ("ping",)]
)
def test_help_is_there_for_each_command(call: Call, words: tuple[str, ...]) -> None:
    """It tells what it is for; an option that there is not is an exit code of 2."""
    told = call(*words, "--help")
    assert (told.code, told.err) == (0, "")
    assert f"Usage: upstash-middleware {' '.join(words)}".rstrip() in told.out
    assert call(*words, "--nothing-like-this").code == 2
