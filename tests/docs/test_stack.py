"""Django's checks have nothing against the stack that docs/stack.md shows for it."""

from __future__ import annotations

import subprocess
import sys

from tests.docs.following import environment
from tests.docs.pages import ROOT, blocks

CHECK = """
from django.conf import settings
from upstash_middleware.django import user

settings.configure(
    MIDDLEWARE={middleware},
    INSTALLED_APPS=["upstash_middleware.django"],
    UPSTASH_MIDDLEWARE={{
        "rate_limits": [{{"path": "/ask", "limits": "10/min", "by": user}}],
        "default_limit": None,
        "cache": [{{"path": "/products/{{id}}", "ttl": 60}}],
    }},
)
import django
django.setup()
from django.core.management import call_command
call_command("check", fail_level="WARNING")
"""


def checked(middleware: list[str]) -> str:
    """Return what ``manage.py check`` says against a project with this stack."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(middleware=middleware)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def shown() -> list[str]:
    """Return the stack of the page."""
    (text,) = [
        block.text
        for block in blocks(ROOT / "docs" / "stack.md")
        if block.text.startswith("MIDDLEWARE = ")
    ]
    names: dict[str, list[str]] = {}
    exec(text, {}, names)
    return names["MIDDLEWARE"]


def test_nothing_is_said_against_the_stack_of_the_page() -> None:
    """A limit by user stands inside authentication, and the cache outside of sessions."""
    assert checked(shown()) == ""


def test_the_same_in_another_order_is_told() -> None:
    """By the codes that the page names."""
    told = checked(shown()[::-1])
    assert "upstash_middleware.E002" in told
    assert "upstash_middleware.E005" in told
