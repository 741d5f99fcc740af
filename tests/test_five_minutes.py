"""The README's first examples behind each kind of proxy, with two clients.

Each client has its own quota: as printed, behind one proxy that appends; without ``client_ip`` on
a platform that is known; and elsewhere with the value of ``client_ip`` that the log names.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from examples.platforms.aws_lambda import events
from tests.identify.test_platforms import AUTOMATIC, CLIENT, DEPLOYED, FORGED, FRONTS
from tests.patience import patient_calls, patient_environment  # noqa: F401 - a fixture
from tests.test_readme import section
from upstash_middleware import client_ip
from upstash_middleware.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from upstash_middleware.local import LocalUpstash

FIRST, SECOND = "198.51.100.7", "192.0.2.8"
AS_PRINTED = "as printed"
APPENDING = ["nginx on the same machine", "nginx on another", "a proxy at a public address"]


class Arriving(NamedTuple):
    """What a request looks like to the application."""

    peer: str
    fields: dict[str, str]
    around: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """What the server adds to scope or environ."""


class Front(NamedTuple):
    """A proxy in front of the application."""

    environ: dict[str, str]
    arriving: Callable[[str, bool], Arriving]
    """By the client's address, and whether it has forged what it can."""
    automatic: bool = False
    named: int = 0
    """Which of the values that the log names is meant."""


def of_platform(name: str) -> Front:
    def arriving(client: str, forged: bool) -> Arriving:
        peer, honest, lying = FRONTS[name]
        fields = dict(lying if forged else honest)
        return Arriving(peer, {key: value.replace(CLIENT, client) for key, value in fields.items()})

    # Nothing tells DigitalOcean's requests from others but their field.
    named = -1 if name in {"digitalocean", "google-cloud-load-balancer"} else 0
    environ = DEPLOYED.get(name, DEPLOYED["google-cloud-run"] if "google" in name else {})
    return Front(environ, arriving, name in AUTOMATIC, named)


def of_proxy(peer: str, template: str, field: str = "x-forwarded-for") -> Front:
    def arriving(client: str, forged: bool) -> Arriving:
        written = template.format(client)
        return Arriving(
            peer, {field: f"{template.format(FORGED)}, {written}" if forged else written}
        )

    return Front({}, arriving)


def of_lambda(front: Callable[[str, str], events.Event]) -> Front:
    def arriving(client: str, forged: bool) -> Arriving:
        event = json.loads(
            json.dumps(front("/", FORGED if forged else "")).replace(events.SOURCE, client)
        )
        fields = {name.lower(): value for name, value in event["headers"].items()}
        return Arriving(client, fields, {"aws.event": event, "apig_wsgi.full_event": event})

    return Front(DEPLOYED["aws-lambda"], arriving, automatic=True)


ALL = {
    **{name: of_platform(name) for name in FRONTS},
    "nginx on the same machine": of_proxy("127.0.0.1", "{}"),
    "nginx on another": of_proxy("10.0.0.9", "{}"),
    "a load balancer and nginx": of_proxy("10.0.0.9", "{}, 10.0.0.3"),
    "a proxy at a public address": of_proxy("203.0.113.200", "{}"),
    "a proxy that writes Forwarded": of_proxy("10.0.0.9", "for={};proto=https", "forwarded"),
    "a function URL": of_lambda(events.function_url),
    "API Gateway": of_lambda(events.http_api),
    "an edge-optimised API": of_lambda(events.edge_rest_api),
}

fronts = pytest.mark.parametrize("front", ALL.values(), ids=ALL)


def values_named(message: str) -> list[Any]:
    """Return the values of ``client_ip`` that a line of the log names to be set."""
    value = r"client_ip\(.*?\)|'[^']*'|\d+"
    found = re.findall(rf"set client_ip=({value})|or ({value}) behind", message)
    return [
        eval(text, {"client_ip": client_ip}) if "(" in text else ast.literal_eval(text)
        for text in ("".join(each) for each in found)
    ]


def in_one_window(check: Callable[[], None]) -> None:
    """Repeat a check that has failed while a window of the limit ended, as in a stalled process."""
    while True:
        window = SystemClock.wall() // 10
        try:
            check()
        except AssertionError:
            if SystemClock.wall() // 10 == window:
                raise
        else:
            return


def hold(front: Front, serve: Callable[[Any], Callable[[Arriving], str]], lines: list[str]) -> None:
    """Check one front.

    ``serve`` returns the application with a value of ``client_ip``, and an empty database;
    ``lines`` are those of the log.
    """
    in_one_window(lambda: checked(front, serve, lines))


def checked(
    front: Front, serve: Callable[[Any], Callable[[Arriving], str]], lines: list[str]
) -> None:
    lines.clear()
    ask = serve(None)
    texts = [ask(front.arriving(client, False)) for client in (FIRST, FIRST, SECOND)]
    if front.automatic:
        assert texts == ["9 left", "8 left", "9 left"]
        assert [ask(front.arriving(client, True)) for client in (FIRST, SECOND)] == [
            "7 left",
            "8 left",
        ]
        assert lines == []
        return
    assert texts == ["9 left", "8 left", "7 left"], "all share the proxy's quota"
    (line,) = lines
    ask = serve(values_named(line)[front.named])
    asked = [(FIRST, False), (FIRST, True), (SECOND, False), (SECOND, True), (FIRST, True)]
    assert [ask(front.arriving(*each)) for each in asked] == [
        "9 left",
        "8 left",
        "9 left",
        "8 left",
        "7 left",
    ]
    assert lines == [line]


def hold_as_printed(serve: Callable[[Any], Callable[[Arriving], str]], lines: list[str]) -> None:
    """Check the example as printed behind one proxy, with what clients may forge."""

    def check() -> None:
        for name in APPENDING:
            lines.clear()
            ask = serve(AS_PRINTED)
            asked = [(FIRST, False), (FIRST, True), (SECOND, False), (SECOND, True)]
            texts = [ask(ALL[name].arriving(*each)) for each in asked]
            assert texts == ["9 left", "8 left", "9 left", "8 left"], name
            assert lines == [], name

    in_one_window(check)


class Lines(logging.Handler):
    """The warnings of this package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    handler = Lines()
    logging.getLogger("upstash_middleware").addHandler(handler)
    yield handler.lines
    logging.getLogger("upstash_middleware").removeHandler(handler)


@pytest.fixture
def begun(upstash: LocalUpstash) -> LocalUpstash:
    """The local Upstash a second into a minute, so that no window begins or ends in the test.

    The process may set its clock back by some milliseconds when it has seen the server's.
    """
    upstash.advance(61 - time.time() % 60)
    return upstash


def block(heading: str, value: Any) -> str:
    """Return a block of the README with another value of ``client_ip``."""
    code = section(heading)[0].text
    assert len(re.findall(r"client_ip\"?[=:] ?1,", code)) == 1
    return code if value is AS_PRINTED else re.sub(r"(client_ip\"?[=:]) ?1,", r"\1 VALUE,", code)


def left(body: str) -> str:
    """Return what an example answers, in the words of these tests."""
    return f"{json.loads(body)['remaining']} left"


def application(heading: str, value: Any) -> Any:
    names: dict[str, Any] = {"__name__": "readme", "VALUE": value}
    exec(compile(block(heading, value), f"README.md, {heading}", "exec"), names)
    return names["app"]


@pytest.mark.parametrize("heading", ["FastAPI", "Starlette"])
@fronts
def test_asgi(
    front: Front,
    heading: str,
    begun: LocalUpstash,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in front.environ.items():
        monkeypatch.setenv(name, value)

    def serve(value: Any) -> Callable[[Arriving], str]:
        begun.flush()
        app = application(heading, value)
        return lambda arriving: anyio.run(asked_by_asgi, app, arriving)

    hold(front, serve, lines)


@pytest.mark.parametrize("heading", ["FastAPI", "Starlette", "Flask"])
def test_as_printed_behind_one_proxy(heading: str, begun: LocalUpstash, lines: list[str]) -> None:
    def serve(value: Any) -> Callable[[Arriving], str]:
        begun.flush()
        app = application(heading, value)
        if heading == "Flask":
            return lambda arriving: asked_by_flask(app, arriving)
        return lambda arriving: anyio.run(asked_by_asgi, app, arriving)

    hold_as_printed(serve, lines)


async def asked_by_asgi(app: Any, arriving: Arriving) -> str:
    fields = {"host": "shop.example", **arriving.fields}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/generate",
        "raw_path": b"/api/generate",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "client": (arriving.peer, 50000),
        "server": ("127.0.0.1", 8000),
        **arriving.around,
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return left(b"".join(message.get("body", b"") for message in sent).decode())


@fronts
def test_flask(
    front: Front, begun: LocalUpstash, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in front.environ.items():
        monkeypatch.setenv(name, value)

    def serve(value: Any) -> Callable[[Arriving], str]:
        begun.flush()
        app = application("Flask", value)
        return lambda arriving: asked_by_flask(app, arriving)

    hold(front, serve, lines)


def asked_by_flask(app: Any, arriving: Arriving) -> str:
    with app.test_client().post(
        "/api/generate",
        headers=arriving.fields,
        environ_overrides={"REMOTE_ADDR": arriving.peer, **arriving.around},
        buffered=True,
    ) as answer:
        return left(answer.text)


def test_flask_with_proxy_fix_needs_no_setting(begun: LocalUpstash, lines: list[str]) -> None:
    """It has replaced the connection's address, for the whole application."""

    def check() -> None:
        begun.flush()
        app = application("Flask", None)
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1)
        arriving = ALL["nginx on another"].arriving
        asked = [(FIRST, False), (FIRST, True), (SECOND, True)]
        texts = [asked_by_flask(app, arriving(*each)) for each in asked]
        assert texts == ["9 left", "8 left", "9 left"]
        assert lines == []

    in_one_window(check)


@pytest.fixture(scope="module")
def in_django(upstash_server: LocalUpstash) -> Mapping[str, str]:
    """What failed behind each front, in a process whose settings are the README's."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {__name__} as test; test.run_in_django()"],
        env=patient_environment() | upstash_server.env,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("name", [*ALL, AS_PRINTED])
def test_django(in_django: Mapping[str, str], name: str) -> None:
    assert not in_django[name]


def run_in_django() -> None:
    """Check all fronts, and print what failed as JSON."""
    import os  # noqa: PLC0415 - this is the beginning of a process
    from itertools import count  # noqa: PLC0415
    from traceback import format_exc  # noqa: PLC0415
    from types import ModuleType  # noqa: PLC0415

    def settings_with(value: Any) -> dict[str, Any]:
        names: dict[str, Any] = {"VALUE": value}
        exec(block("Django", value), names)
        return names

    module: Any = ModuleType("readme_settings")
    vars(module).update(settings_with(AS_PRINTED))
    module.ROOT_URLCONF = "readme_urls"
    module.ALLOWED_HOSTS = ["*"]
    sys.modules["readme_settings"] = module
    os.environ["DJANGO_SETTINGS_MODULE"] = "readme_settings"
    import django  # noqa: PLC0415
    from django.http import HttpResponse  # noqa: PLC0415
    from django.test import Client, override_settings  # noqa: PLC0415
    from django.urls import path  # noqa: PLC0415

    django.setup()

    def generate(request: Any) -> HttpResponse:
        return HttpResponse(f"{request.rate_limit.remaining} left")

    urls: Any = ModuleType("readme_urls")
    urls.urlpatterns = [path("api/generate", generate)]
    sys.modules["readme_urls"] = urls
    handler = Lines()
    logging.getLogger("upstash_middleware").addHandler(handler)
    numbers = count()

    def serve(value: Any) -> Callable[[Arriving], str]:
        # Nothing that another front's requests have used.
        prefix = {"prefix": f"shop:{next(numbers)}"}
        mapping = settings_with(value)["UPSTASH_MIDDLEWARE"] | prefix
        client = Client()

        def ask(arriving: Arriving) -> str:
            with override_settings(UPSTASH_MIDDLEWARE=mapping):
                response = client.post(
                    "/api/generate",
                    headers=arriving.fields,
                    REMOTE_ADDR=arriving.peer,
                    **arriving.around,
                )
            return response.content.decode()

        return ask

    results = {}
    before = dict(os.environ)
    for name, front in [*ALL.items(), (AS_PRINTED, None)]:
        os.environ |= front.environ if front else {}
        results[name] = ""
        try:
            if front:
                hold(front, serve, handler.lines)
            else:
                hold_as_printed(serve, handler.lines)
        except Exception:  # noqa: BLE001 - reported by the test
            results[name] = format_exc()
        os.environ.clear()
        os.environ |= before
    sys.stdout.write(json.dumps(results))
