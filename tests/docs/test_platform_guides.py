"""Each guide for a platform is followed: its files, its start command, the fields it describes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from examples.demo.servers import free_port
from examples.platforms.aws_lambda import events
from examples.platforms.vercel import runtime
from tests.docs.following import PATIENCE, environment, patient
from tests.docs.pages import ROOT, blocks, clear_of_a_minutes_end
from tests.patience import ONE_AUTHORITY
from upstash_middleware import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from upstash_middleware.local import LocalUpstash

GUIDES = ROOT / "docs" / "platforms"
CLIENT, OTHER = "203.0.113.7", "198.51.100.9"
SPOOFED = ["", "1.2.3.4", f"{OTHER}, 10.0.0.1", "unknown"]
Fields = dict[str, str]


def appended(spoofed: str, *added: str) -> str:
    return ", ".join([spoofed, *added] if spoofed else added)


def of_cloud_run(client: str, spoofed: str) -> Fields:
    """The front end adds the client's address at the end."""
    return {"X-Forwarded-For": appended(spoofed, client), "X-Forwarded-Proto": "https"}


def of_fly(client: str, spoofed: str) -> Fields:
    """The proxy sets its own field, and adds the client's address and the application's."""
    forwarded = appended(spoofed, client, "66.241.125.1")
    return {"Fly-Client-IP": client, "X-Forwarded-For": forwarded, "Fly-Region": "fra"}


def of_render(client: str, spoofed: str) -> Fields:
    """Cloudflare sets its own field; Render's proxy adds Cloudflare's address."""
    return {
        "CF-Connecting-IP": client,
        "X-Forwarded-For": appended(spoofed, client, "104.22.17.40"),
    }


def of_vercel(client: str, _spoofed: str) -> Fields:
    """What a client says of itself is replaced."""
    return {"X-Forwarded-For": client, "X-Real-IP": client, "X-Vercel-Forwarded-For": client}


@dataclass(frozen=True)
class Guide:
    """A page, and what its platform does."""

    page: str
    variables: dict[str, str]
    fields: Callable[[str, str], Fields]
    signal: int = signal.SIGTERM
    sends_counts: bool = True
    """Whether the page says that the counts of analytics are sent at shutdown."""

    def __str__(self) -> str:
        return self.page


SERVED = [
    Guide("cloud-run", {"K_SERVICE": "shop", "K_REVISION": "shop-1"}, of_cloud_run),
    Guide("fly", {"FLY_APP_NAME": "shop", "FLY_MACHINE_ID": "1"}, of_fly, signal.SIGINT),
    Guide("render", {"RENDER": "true"}, of_render, sends_counts=False),
]


def text_of(guide: str) -> str:
    return (GUIDES / f"{guide}.md").read_text()


def write_files(guide: str, folder: Path) -> None:
    for block in blocks(GUIDES / f"{guide}.md"):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(patient(block.text))


def start_command(guide: str) -> str:
    """Return what the platform runs in a shell."""
    found = re.search(r"^(?:CMD| *startCommand:) (.+)$", text_of(guide), re.MULTILINE)
    assert found is not None
    return found[1]


@dataclass
class Deployed:
    """An application behind its platform."""

    url: str
    fields: Callable[[str, str], Fields]

    def get(self, path: str, client: str = CLIENT, spoofed: str = "") -> httpx.Response:
        headers = self.fields(client, spoofed)
        if spoofed:
            headers = {"X-Real-IP": spoofed, "Forwarded": f"for={spoofed}"} | headers
        return httpx.get(
            self.url + path, headers=headers, timeout=30, trust_env=False, verify=ONE_AUTHORITY
        )


DJANGO = {
    "shop/__init__.py": "",
    "shop/settings.py": """
ALLOWED_HOSTS = ["*"]
MIDDLEWARE = ["upstash_middleware.django.UpstashMiddleware"]
ROOT_URLCONF = "shop.urls"
SECRET_KEY = "a long random text of this shop, for tests alone"
USE_TZ = True
""",
    "shop/urls.py": """
from django.http import HttpResponse
from django.urls import path
from upstash_middleware.django import exempt

@exempt
def health(request):
    return HttpResponse("well")

def whoami(request):
    return HttpResponse(request.rate_limit.identifier)

urlpatterns = [path("health", health), path("whoami", whoami)]
""",
    "shop/wsgi.py": """
import os
from django.core.wsgi import get_wsgi_application
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
application = get_wsgi_application()
""",
}


def write_django(guide: str, folder: Path) -> str:
    """Write a project with the settings of a guide, and return the command for it."""
    (settings,) = (
        block.text
        for block in blocks(GUIDES / f"{guide}.md")
        if block.text.startswith("# in settings.py")
    )
    for name, text in DJANGO.items():
        (folder / name).parent.mkdir(exist_ok=True)
        added = patient(settings) if name == "shop/settings.py" else ""
        (folder / name).write_text(text + added)
    command = re.search(r"`((?:exec )?gunicorn .*shop\.wsgi:application)`", text_of(guide))
    assert command is not None
    return command[1]


@contextmanager
def deployed(
    guide: Guide, folder: Path, upstash: LocalUpstash, command: str
) -> Iterator[tuple[Deployed, subprocess.Popen[bytes]]]:
    port = free_port()
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=environment() | upstash.env | guide.variables | {"PORT": str(port)},
            stdout=output,
            stderr=output,
        )
        try:
            served = Deployed(f"http://127.0.0.1:{port}", guide.fields)
            deadline = time.monotonic() + PATIENCE
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    served.get("/health")
                except httpx.TransportError:
                    time.sleep(0.1)
                else:
                    break
            yield served, process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def check_limits(served: Deployed) -> None:
    """A client has five requests, whatever it says of itself; and so has another."""
    counted = [served.get("/whoami", spoofed=spoofed) for spoofed in SPOOFED]
    assert {each.text.strip('"') for each in counted} == {f"ip={CLIENT}"}
    assert [served.get("/whoami").status_code for _ in range(2)] == [200, 429]
    assert served.get("/whoami", client=OTHER).text.strip('"') == f"ip={OTHER}"


def check_cache(served: Deployed) -> None:
    """A page is stored at once, or right after the response."""
    client = "192.0.2.1"
    served.get("/products/7", client)
    deadline = time.monotonic() + PATIENCE
    while "hit" not in served.get("/products/7", client).headers.get("cache-status", ""):
        assert time.monotonic() < deadline
        client = f"192.0.2.{int(client.rpartition('.')[2]) + 1}"


@pytest.mark.parametrize("guide", SERVED, ids=str)
def test_the_application_of_a_guide_serves_and_stops_as_it_says(
    guide: Guide, tmp_path: Path, upstash: LocalUpstash
) -> None:
    upstash.restore_time()  # the process knows no other
    write_files(guide.page, tmp_path)
    command = start_command(guide.page)
    with deployed(guide, tmp_path, upstash, command) as (served, process):
        upstash.reset_bill()
        assert served.get("/health").status_code == 200
        assert upstash.bill().commands == 0
        clear_of_a_minutes_end()
        check_limits(served)
        check_cache(served)
        redis = Redis(**credentials(upstash))
        process.send_signal(guide.signal)
        # uvicorn ends by the same signal when it has shut down; gunicorn returns 0.
        assert process.wait(PATIENCE) in {0, -guide.signal}, (tmp_path / "log").read_text()
        assert re.search("shutdown complete|Shutting down: Master", (tmp_path / "log").read_text())
        if guide.sends_counts:
            assert redis.keys("@upstash/ratelimit:events:*")
        redis.close()


@pytest.mark.parametrize("guide", SERVED, ids=str)
def test_a_django_application_serves_as_a_guide_says(
    guide: Guide, tmp_path: Path, upstash: LocalUpstash
) -> None:
    upstash.restore_time()
    command = write_django(guide.page, tmp_path)
    with deployed(guide, tmp_path, upstash, command) as (served, _):
        clear_of_a_minutes_end()
        check_limits(served)


def credentials(upstash: LocalUpstash) -> dict[str, Any]:
    return {"url": upstash.url, "token": upstash.token, "deadline": 20}


def made(guide: str, file: str) -> ModuleType:
    """Return the module of a file on a page."""
    (text,) = (block.text for block in blocks(GUIDES / f"{guide}.md") if block.file == file)
    module = ModuleType("deployed")
    sys.modules["deployed"] = module  # FastAPI looks annotations up
    exec(compile(patient(text), f"{guide}: {file}", "exec", dont_inherit=True), vars(module))
    return module


def test_the_application_for_vercel_serves_as_its_guide_says(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variables of its Upstash store, and done when an invocation ends."""
    for name in ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"):
        monkeypatch.delenv(name)
    variables = {"VERCEL": "1", "VERCEL_REGION": "fra1", "VERCEL_ENV": "production"}
    variables |= {"KV_REST_API_URL": upstash.url, "KV_REST_API_TOKEN": upstash.token}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stored: SimpleQueue[int] = SimpleQueue()

    def ended() -> None:
        stored.put(upstash.bill().by_command.get("SET", 0))

    with runtime.asgi(made("vercel", "api/index.py").app, ended) as url:
        served = Deployed(url, of_vercel)
        check_limits(served)
        counted = [stored.get(timeout=PATIENCE) for _ in range(len(SPOOFED) + 3)]
        served.get("/products/7", "192.0.2.1")
        assert stored.get(timeout=PATIENCE) > counted[-1]
        assert "hit" in served.get("/products/7", "192.0.2.1").headers["cache-status"]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop that Mangum finds, and runs for as long as an event takes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.parametrize("file", ["main.py", "wsgi_main.py"])
@pytest.mark.parametrize("front", [events.rest_api, events.http_api, events.function_url])
@pytest.mark.usefixtures("upstash", "loop")
def test_the_handlers_for_lambda_serve_as_their_guide_says(
    file: str, front: Callable[..., events.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was rendered is stored when the handler returns."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "shop")
    handler = made("lambda", file).handler

    def get(path: str, spoofed: str = "") -> tuple[int, str, Fields]:
        answer = handler(front(path, spoofed), None)
        fields = answer.get("headers") or {
            name: values[0] for name, values in answer["multiValueHeaders"].items()
        }
        return answer["statusCode"], answer["body"], {k.lower(): v for k, v in fields.items()}

    counted = [get("/whoami", spoofed)[1].strip('"') for spoofed in SPOOFED]
    assert set(counted) == {f"ip={events.SOURCE}"}
    assert [get("/whoami")[0] for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("file", ["main.py", "wsgi_main.py"])
@pytest.mark.usefixtures("upstash", "loop")
def test_a_page_is_stored_before_the_handler_for_lambda_returns(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "shop")
    handler = made("lambda", file).handler
    answers = [handler(events.http_api("/products/7"), None) for _ in range(2)]
    assert [json.loads(each["body"]) for each in answers] == [{"id": 7}] * 2
    fields = {name.lower(): value for name, value in answers[1]["headers"].items()}
    assert "hit" in fields["cache-status"]


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_the_configuration_of_a_guide_can_be_read(page: Path) -> None:
    """What a program can read of it."""
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
    listed = r"`requirements.txt`:\n\n```text\n(.*?)```"
    requirements = re.search(listed, page.read_text(), re.DOTALL)
    assert requirements is not None
    assert "upstash-middleware[" in requirements[1]
