"""Each recipe for Django, in a project and a process of its own, does what its heading says."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.following import PATIENCE, environment, patient
from tests.docs.pages import ROOT, blocks, clear_of_a_minutes_end

if TYPE_CHECKING:
    from pathlib import Path

    from upstash_middleware.local import LocalUpstash

PAGE = ROOT / "docs" / "recipes" / "django.md"

SETTINGS = """
ALLOWED_HOSTS = ["testserver"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
ROOT_URLCONF = "urls"
SECRET_KEY = "a long random text of this shop, for tests alone"
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": ["."]}
]
USE_TZ = True
"""
BEFORE = """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.contrib.auth.models import User
from django.test import Client
ada, bob = (User.objects.create_user(name, password="correct horse") for name in ("ada", "bob"))
client = Client()

def codes(path, count, **options):
    return [client.get(path, **options).status_code for _ in range(count)]
"""

CHECKS = {
    "Limit by API key": """
for key in ("a", "b"):
    assert codes("/api/tea", 6, headers={"X-API-Key": key}) == [200] * 5 + [429]
assert codes("/api/tea", 1) == [200]
""",
    "Limit by user, or by address": """
assert codes("/profile", 4) == [200, 200, 200, 429]
client.force_login(ada)
assert codes("/profile", 4) == [200, 200, 200, 429]
client.force_login(bob)
assert client.get("/profile").content == b"bob"
""",
    "Limit login attempts": """
from pathlib import Path
Path("login.html").write_text("<form>{{ form }}</form>")

def log_in(name, password):
    return client.post("/login/", {"username": name, "password": password}).status_code

assert [log_in("ada", "correct horse") for _ in range(7)] == [302] * 7
assert [log_in("ada", "x") for _ in range(6)] == [200] * 5 + [429]
assert log_in("bob", "correct horse") == 302
""",
    "Limit one view": """
assert codes("/search", 3) == [200, 200, 429]
assert codes("/about", 3) == [200, 200, 200]
""",
    "Limits by plan": """
def ask(key, count):
    return codes("/api/tea", count, headers={"X-API-Key": key})

assert ask("key-of-bob", 3) == [200, 200, 429]
assert ask("key-of-ada", 11) == [200] * 10 + [429]
assert ask("key-of-staff", 12) == [200] * 12
""",
    "Skip health checks": """
assert codes("/", 2) == [200, 429]
assert codes("/health", 3) == [200] * 3
""",
    "Cache for anonymous visitors only": """
assert [client.get("/products?page=2&utm_source=x").json()["calls"] for _ in range(2)] == [1, 1]
assert client.get("/products?page=3").json()["calls"] == 2
client.force_login(ada)
assert client.get("/products?page=2").json()["calls"] == 3
""",
    "Purge on save": """
path = f"/people/{ada.pk}"
assert client.get(path).json() == {"name": ""}
User.objects.filter(pk=ada.pk).update(first_name="Augusta")
assert client.get(path).json() == {"name": ""}
ada.first_name = "Ada"
ada.save()
assert client.get(path).json() == {"name": "Ada"}
""",
    "Memoize a function": """
from urls import loaded
assert client.get("/weather/Assam").json() == client.get("/weather/Assam").json()
assert loaded == ["Assam"]
""",
    "Sessions on Upstash": """
options = {"secure": True}
client.get("/basket/tea", **options), client.get("/basket/tea", **options)
client.get("/basket/cake", **options)
assert client.get("/basket", **options).json() == {"tea": 2, "cake": 1}
""",
    "A custom 429 page": """
assert client.get("/").status_code == 200
denied = client.get("/")
assert denied.status_code == 429
assert b"<h1>Slow down</h1>" in denied.content
assert "Retry-After" in denied.headers
""",
    "Throttle with Django REST framework": """
client.force_login(ada)
assert client.get("/api/tea").json() == {"tea": "Assam", "remaining": 4}
assert codes("/api/tea", 5) == [200] * 4 + [429]
assert "Request was throttled" in client.get("/api/tea").json()["detail"]
assert codes("/api/reports", 3) == [200, 200, 429]
client.force_login(bob)
assert codes("/api/tea", 1) == [200]
""",
    "Limit a job": """
said = [client.get("/remind/ada@example.com").content for _ in range(3)]
assert said[:2] == [b"sent", b"sent"] and said[2].startswith(b"later, in ")
""",
    "Try a limit before you enforce it": """
from settings import would_deny
assert codes("/api/tea", 4) == [200] * 4
assert len(would_deny) == 2
""",
    "Metrics for Prometheus": """
import os, runpy, subprocess, sys
from types import SimpleNamespace
COUNTED = 'upstash_middleware_rate_limit_decisions_total{'
codes("/", 2)
shown = client.get("/metrics")
assert shown.headers["Content-Type"].startswith("text/plain")
(line,) = [each for each in shown.content.decode().splitlines() if each.startswith(COUNTED)]
assert line.endswith(" 2.0"), "a scrape is not counted"
os.mkdir("metrics")
several = os.environ | {"PROMETHEUS_MULTIPROC_DIR": "metrics"}
VISIT = "import django; django.setup(); from django.test import Client; "
visits = VISIT + "Client().get('/'); print(Client().get('/metrics').content.decode())"
for count in (1, 2):
    command = [sys.executable, "-W", "error", "-c", visits]
    seen = subprocess.run(command, env=several, capture_output=True, text=True, check=True).stdout
    (line,) = [each for each in seen.splitlines() if each.startswith(COUNTED)]
    assert line.endswith(f" {count}.0"), "the counts of all processes are added"
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "metrics"
runpy.run_path("gunicorn.conf.py")["child_exit"](None, SimpleNamespace(pid=1))
""",
}


def recipes() -> dict[str, dict[str, str]]:
    """Return the files of each recipe by its heading, and what all of them need."""
    lines = PAGE.read_text().splitlines()
    found: dict[str, dict[str, str]] = {}
    for block in blocks(PAGE):
        above = [line for line in lines[: block.line - 1] if line.startswith(("# R", "## "))]
        files = found.setdefault(above[-1].lstrip("# "), {})
        files[block.file or "MIDDLEWARE"] = patient(block.text)
    return found


def test_every_recipe_is_tested() -> None:
    assert [*recipes()][1:] == [*CHECKS]


@pytest.mark.parametrize("heading", CHECKS)
def test_a_recipe_does_what_its_heading_says(
    heading: str, tmp_path: Path, upstash: LocalUpstash
) -> None:
    upstash.restore_time()  # the process knows no other
    clear_of_a_minutes_end()
    middleware, files = recipes()["Recipes for Django"]["MIDDLEWARE"], recipes()[heading]
    (tmp_path / "settings.py").write_text(SETTINGS + middleware + files["settings.py"])
    for name in files.keys() - {"settings.py"}:
        (tmp_path / name).write_text(files[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEFORE + CHECKS[heading]],
        cwd=tmp_path,
        env=environment() | upstash.env | {"DJANGO_SETTINGS_MODULE": "settings"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
