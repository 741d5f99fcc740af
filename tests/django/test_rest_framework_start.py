"""A project of Django REST framework whose settings name a throttle, started in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from upstash_middleware.local import LocalUpstash

FILES = {
    "settings.py": """
        SECRET_KEY = "for tests alone"
        ALLOWED_HOSTS = ["*"]
        ROOT_URLCONF = "urls"
        INSTALLED_APPS = ["upstash_middleware.django", "rest_framework"]
        REST_FRAMEWORK = {
            "DEFAULT_THROTTLE_CLASSES": ["throttling.Default"],
            "DEFAULT_AUTHENTICATION_CLASSES": [],
            "UNAUTHENTICATED_USER": None,
        }
    """,
    "throttling.py": """
        from upstash_middleware.django.rest_framework import throttle

        Default = throttle("log 2/hour", deadline=20)
    """,
    "urls.py": """
        from django.urls import path
        from rest_framework.decorators import api_view
        from rest_framework.response import Response

        @api_view(["GET"])
        def tea(request):
            return Response("tea")

        urlpatterns = [path("tea", tea)]
    """,
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line

        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        execute_from_command_line(sys.argv)
    """,
    "visits.py": """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        import django
        django.setup()
        {first}
        from django.test import Client
        print([Client().get("/tea").status_code for _ in range(3)])
    """,
}


def run(directory: Path, upstash: LocalUpstash, first: str, *command: str) -> str:
    """Write the project, run a command of it in a new interpreter, and return its output."""
    for name, text in FILES.items():
        lines = [
            line.removeprefix("        ") for line in text.replace("{first}", first).splitlines()
        ]
        (directory / name).write_text("\n".join(lines))
    upstash.restore_time()  # to that of the process
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, **upstash.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_project_passes_its_checks(upstash: LocalUpstash, tmp_path: Path) -> None:
    assert "no issues" in run(tmp_path, upstash, "", "manage.py", "check")


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import rest_framework.views",
        "import throttling",
        "import upstash_middleware.django.rest_framework",
        "from upstash_middleware.django.rest_framework import denied",
    ],
)
def test_a_throttle_that_the_settings_name_limits_whatever_is_imported_first(
    upstash: LocalUpstash, tmp_path: Path, first: str
) -> None:
    assert run(tmp_path, upstash, first, "visits.py") == "[200, 200, 429]\n"
