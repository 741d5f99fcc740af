"""Every Python block of the README runs as printed and does what the README says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.patience import patient_environment

README = Path(__file__).parent.parent / "README.md"
DJANGO = """
import sys, time, types

settings = types.ModuleType("readme_settings")
exec(sys.argv[1], settings.__dict__)
settings.ROOT_URLCONF = "readme_urls"
settings.ALLOWED_HOSTS = ["*"]
sys.modules["readme_settings"] = settings
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "readme_settings"
import django
django.setup()
from django.http import HttpResponse
from django.urls import path
from upstash_middleware.django import purge

def generate(request):
    return HttpResponse(f"{request.rate_limit.remaining} left")

def product(request, id):
    if request.method == "PUT":
        purge(tags=(f"product:{id}",))
    return HttpResponse(f"product {id}")

urls = types.ModuleType("readme_urls")
urls.urlpatterns = [path("api/generate", generate), path("products/<id>", product)]
sys.modules["readme_urls"] = urls
from django.core.management import call_command
from django.test import Client
call_command("check")
client = Client()
if (left := 10 - time.time() % 10) < 7:  # the ten seconds are the clock's
    time.sleep(left)

def ask(method, target):
    response = client.generic(method, target)
    fields = [response.headers.get(name, "") for name in ("Cache-Status", "Retry-After")]
    print(method, target, response.status_code, response.content.decode()[:20], *fields, sep="|")

for _ in range(11):
    ask("POST", "/api/generate")
for method in ("GET", "GET", "PUT", "GET"):
    ask(method, "/products/7")
"""


def python_blocks() -> dict[str, str]:
    """Return the README's Python blocks by the headings that they stand under."""
    blocks = {}
    for section in README.read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            blocks[heading] = code
    return blocks


def application(heading: str):
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(python_blocks()[heading], f"README.md, {heading}", "exec"), namespace)
    return namespace["app"]


def holds_what_the_readme_says(ask) -> None:
    """``ask(method, path)`` answers (status, text, Cache-Status, Retry-After)."""
    allowed = [ask("POST", "/api/generate") for _ in range(10)]
    assert [status for status, *_ in allowed] == [200] * 10
    assert [text for _, text, *_ in allowed] == [f"{left} left" for left in range(9, -1, -1)]
    status, _, _, retry_after = ask("POST", "/api/generate")
    assert status == 429
    assert 1 <= int(retry_after) <= 20
    first, second = ask("GET", "/products/7"), ask("GET", "/products/7")
    assert first[1] == second[1] == "product 7"
    assert "stored" in first[2]
    assert "; hit" in second[2]
    assert ask("PUT", "/products/7")[0] == 200
    assert "; hit" not in ask("GET", "/products/7")[2]


@pytest.mark.usefixtures("upstash")
def test_the_starlette_block_runs_and_holds():
    with TestClient(application("Starlette and FastAPI")) as client:

        def ask(method, path):
            answer = client.request(method, path)
            fields = answer.headers
            return (
                answer.status_code,
                answer.text,
                fields.get("cache-status", ""),
                fields.get("retry-after", ""),
            )

        holds_what_the_readme_says(ask)


@pytest.mark.usefixtures("upstash")
def test_the_flask_block_runs_and_holds():
    client = application("Flask").test_client()

    def ask(method, path):
        with client.open(path, method=method, buffered=True) as answer:
            fields = answer.headers
            return (
                answer.status_code,
                answer.text,
                fields.get("cache-status", ""),
                fields.get("retry-after", ""),
            )

    holds_what_the_readme_says(ask)


def test_the_django_block_runs_and_holds(upstash):
    upstash.restore_time()  # to that of the process
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO, python_blocks()["Django"]],
        env=patient_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = iter([line for line in run.stdout.splitlines() if "|" in line])

    def ask(method, path):
        said_method, said_path, status, text, cache_status, retry_after = next(lines).split("|")
        assert (said_method, said_path) == (method, path)
        return int(status), text, cache_status, retry_after

    holds_what_the_readme_says(ask)


def test_no_python_block_of_the_readme_goes_untested():
    headings = list(python_blocks())
    assert headings == ["Starlette and FastAPI", "Flask", "Django"]
    assert README.read_text().count("```python") == len(headings)
