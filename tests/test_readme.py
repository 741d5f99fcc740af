"""Every Python block of the README runs as printed, and responses are as the README shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.docs.pages import Block, blocks
from tests.patience import patient_environment
from upstash_middleware import CacheRule
from upstash_middleware.starlette import CacheMiddleware

if TYPE_CHECKING:
    from starlette.requests import Request

README = Path(__file__).parent.parent / "README.md"
SECTIONS = ["FastAPI", "Starlette", "Flask", "Django"]
# A project whose settings.py and views.py are the README's.
DJANGO = """
import json, os, sys, time, types

settings, views, urls = (types.ModuleType(name) for name in ("settings", "views", "urls"))
sys.modules |= {"settings": settings, "views": views, "urls": urls}
exec(sys.argv[1], settings.__dict__)
settings.ROOT_URLCONF = "urls"
settings.ALLOWED_HOSTS = ["*"]
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
exec(sys.argv[2], views.__dict__)
from django.core.management import call_command
from django.test import Client
from django.urls import path
urls.urlpatterns = [path("api/generate", views.generate), path("products/<int:id>", views.product)]
call_command("check")
client = Client()
if (left := 10 - time.time() % 10) < 7:  # the ten seconds are the clock's
    time.sleep(left)
for method, target in json.loads(sys.argv[3]):
    response = client.generic(method, target)
    answer = [response.status_code, response.content.decode(), dict(response.headers)]
    print("|", json.dumps(answer), sep="")
"""
ASKED = [("POST", "/api/generate")] * 11 + [
    (method, "/products/7") for method in ("GET", "GET", "PUT", "GET")
]


class Answer(NamedTuple):
    """What a client sees."""

    status: int
    text: str
    headers: dict[str, str]


def section(heading: str) -> list[Block]:
    """Return the blocks below one of the README's headings."""
    lines = README.read_text().splitlines()
    first = lines.index(f"## {heading}") + 1
    after = [at for at, line in enumerate(lines, 1) if line.startswith("## ") and at > first]
    return [block for block in blocks(README) if first < block.line < (after or [10**6])[0]]


def application(heading: str) -> Any:
    """Return the application that a section's block makes."""
    (block,) = section(heading)
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block.text, f"README.md, {heading}", "exec"), namespace)
    return namespace["app"]


def holds_what_the_readme_says(answers: list[Answer]) -> None:
    """Eleven requests for one limit; then a page is stored, served, purged and rendered."""
    allowed, (denied, first, second, edited, again) = answers[:10], answers[10:]
    assert [each.status for each in allowed] == [200] * 10
    assert [json.loads(each.text) for each in allowed] == [
        {"remaining": left} for left in range(9, -1, -1)
    ]
    assert denied.status == 429
    assert 1 <= int(denied.headers["retry-after"]) <= 20
    assert [json.loads(each.text) for each in (first, second)] == [{"product": 7}] * 2
    assert "stored" in first.headers["cache-status"]
    assert json.loads(edited.text) == {"edited": 7}
    assert "; hit" not in again.headers["cache-status"]
    sample_200, sample_429, sample_hit = (
        block.text for block in section("What a response looks like") if block.language == "http"
    )
    assert_is_as_printed(allowed[0], sample_200)
    assert_is_as_printed(denied, sample_429)
    assert_is_as_printed(second, sample_hit)
    (problem,) = (
        json.loads(block.text)
        for block in section("What a response looks like")
        if block.language == "json"
    )
    assert _without_numbers(json.loads(denied.text)["detail"]) == _without_numbers(
        problem.pop("detail")
    )
    assert json.loads(denied.text).items() >= problem.items()


def assert_is_as_printed(answer: Answer, sample: str) -> None:
    """The status and header fields are those of a block, but for times."""
    start, *fields = sample.splitlines()
    assert start.split()[1] == str(answer.status)
    for field in fields:
        name, value = field.split(": ", 1)
        assert _without_times(answer.headers[name.lower()]) == _without_times(value), name
    limits = {name for name in answer.headers if "ratelimit" in name}
    assert limits == {field.split(":")[0].lower() for field in fields if "RateLimit" in field}


def _without_times(value: str) -> str:
    return re.sub(r"(?<=;t=)\d+|(?<=ttl=)\d+|^\d+$", "N", value)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+ seconds?", "N seconds", text)


@pytest.mark.usefixtures("upstash")
@pytest.mark.parametrize("heading", ["FastAPI", "Starlette"])
def test_the_asgi_blocks_run_and_hold(heading: str):
    with TestClient(application(heading)) as client:
        answers = [client.request(method, path) for method, path in ASKED]
    holds_what_the_readme_says(
        [Answer(each.status_code, each.text, dict(each.headers)) for each in answers]
    )


@pytest.mark.usefixtures("upstash")
def test_the_flask_block_runs_and_holds():
    client = application("Flask").test_client()
    answers = []
    for method, path in ASKED:
        with client.open(path, method=method, buffered=True) as each:
            headers = {name.lower(): value for name, value in each.headers.items()}
            answers.append(Answer(each.status_code, each.text, headers))
    holds_what_the_readme_says(answers)


def test_the_django_blocks_run_and_hold(upstash):
    upstash.restore_time()  # to that of the process
    settings, views = (block.text for block in section("Django"))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO, settings, views, json.dumps(ASKED)],
        env=patient_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line[1:]) for line in run.stdout.splitlines() if line.startswith("|")]
    holds_what_the_readme_says(
        [
            Answer(status, text, {name.lower(): value for name, value in headers.items()})
            for status, text, headers in lines
        ]
    )


def test_no_python_block_of_the_readme_goes_untested():
    tested = [block.line for heading in SECTIONS for block in section(heading)]
    assert [block.line for block in blocks(README) if block.language == "python"] == tested


@pytest.mark.usefixtures("upstash")
def test_each_reason_for_not_storing_is_one_that_the_cache_gives():
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers=dict(request.query_params))

    app = Starlette(routes=[Route("/{path:path}", page)])
    app.add_middleware(CacheMiddleware, cache=[CacheRule("/ttl", ttl=60), CacheRule("/none")])
    with TestClient(app) as client:
        answers = [
            client.get("/other"),
            client.get("/none"),
            client.get("/ttl", headers={"Cookie": "visitor=7"}),
            client.get("/ttl", headers={"Authorization": "Bearer x"}),
            client.get("/ttl?set-cookie=a%3D1"),
            client.get("/ttl?cache-control=private"),
            client.get("/ttl?cache-control=no-store"),
        ]
    assert "cache-status" not in answers[0].headers
    given = [each.headers["cache-status"].partition("; ")[2] for each in answers[1:]]
    shown = re.findall(r'detail="[^"]+"', README.read_text())
    assert [each.removeprefix("fwd=uri-miss; ") for each in given] == shown
