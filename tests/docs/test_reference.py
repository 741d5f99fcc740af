"""docs/settings.md and docs/reference/ have what the code has, and the code documents all of it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from documentation.docstrings import parameters_of
from documentation.settings import GROUPS, settings_page
from tests.docs.pages import ROOT
from upstash_middleware import CacheRule, RateLimitRule, Redis, asgi, data, fastapi, flask, limiter
from upstash_middleware.core.ratelimit.rules import FIELDS
from upstash_middleware.decorators import LimitDecorator
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.prometheus import PrometheusObserver
from upstash_middleware.settings import (
    DEFAULTS,
    DOCUMENTATION,
    Arguments,
    WithSettings,
    settings_from,
)

if TYPE_CHECKING:
    from documentation.settings import Entry

DOCUMENT = ROOT / "docs" / "settings.md"
REFERENCE = ROOT / "docs" / "reference"
# In a process of its own: Django's settings can be made once only.
MADE = """
import json
from django.conf import settings
settings.configure()
from documentation import reference
print(json.dumps([reference.reference_pages(), sorted(reference.undocumented())]))
"""
ENTRIES = [(name, entry) for entries in GROUPS.values() for name, entry in entries.items()]
SECRET = "a secret of 32 characters or more"


@pytest.fixture(autouse=True)
def patient_calls() -> None:
    """Leave the deadlines at their defaults, which the page shows."""


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, str], list[str]]:
    """The pages by name, and the parameters without documentation."""
    done = subprocess.run(
        [sys.executable, "-c", MADE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pages, undocumented = json.loads(done.stdout)
    return pages, undocumented


def test_the_documentation_shows_every_setting():
    """``make docs-tables`` writes it."""
    if os.environ.get("WRITE_DOCS_TABLES"):
        DOCUMENT.write_text(settings_page())
    assert DOCUMENT.read_text() == settings_page()


def test_every_setting_is_in_one_group():
    assert sorted(name for name, _ in ENTRIES) == sorted(DEFAULTS)


def test_every_setting_has_a_meaning():
    """So has every field of a rule."""
    documented = [*parameters_of(WithSettings), *parameters_of(RateLimitRule)]
    documented += parameters_of(CacheRule)
    assert len(documented) > 90
    assert [each.name for each in documented if not each.meaning] == []


def given(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"RateLimitRule": RateLimitRule, "CacheRule": CacheRule, "Redis": Redis}
    names |= {"PrometheusObserver": PrometheusObserver, "os": os}
    made: dict[str, Any] = eval(f"dict({text})", names)
    return made


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=[name for name, _ in ENTRIES])
def test_an_example_of_a_setting_is_accepted(
    name: str, entry: Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    """In a rule file it is the same setting."""
    for variable in ("TOKEN", "SECRET", "CACHE_KEY", "PURGE_TOKEN", "CACHE_DEBUG"):
        monkeypatch.setenv(f"SHOP_{variable}", SECRET.replace(" ", "-"))
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", "https://eu1-example.upstash.io")
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "token")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "limits.toml").write_text("")
    together = given(entry.together)
    example = given(entry.example)
    assert list(example) == [name]
    settings = settings_from({**together, **example}, {})
    assert name not in settings.unset
    if entry.toml:
        file = {**together, **tomllib.loads(entry.toml)}
        assert getattr(settings_from(file, {}), name) == getattr(settings, name)


@pytest.mark.parametrize(
    ("arguments", "anchor"),
    [
        ({"cache_max_body": -1}, "cache_max_body"),
        ({"rate_limits": [{"path": "/a", "limits": "x"}]}, "rate_limits-limits"),
        ({"rate_limits": [{"paht": "/a"}]}, "rate_limits"),
        ({"default_limit": "x"}, "rate_limits-limits"),
        ({"cache": [{"ttl": 1}]}, "cache-path"),
        ({"sessions": {"max_size": -1}}, "sessions-max_size"),
    ],
)
@pytest.mark.parametrize("source", ["", "UPSTASH_MIDDLEWARE"])
def test_an_error_about_a_setting_has_the_address_of_its_entry(
    arguments: dict[str, Any], anchor: str, source: str
):
    """As a note, which tracebacks show."""
    with pytest.raises(ConfigurationError) as raised:
        settings_from(arguments, {}, source=source)
    assert raised.value.__notes__ == [f"See {DOCUMENTATION}#{anchor}"]
    page = DOCUMENT.read_text()
    assert f'<a id="{anchor}"></a>' in page or f"\n### `{anchor}`\n" in page


def test_the_documentation_shows_every_public_name(reference: tuple[dict[str, str], list[str]]):
    """``make docs-tables`` writes it."""
    for name, text in reference[0].items():
        path = REFERENCE / f"{name}.md"
        if os.environ.get("WRITE_DOCS_TABLES"):
            path.write_text(text)
        assert path.read_text() == text, name


def test_every_public_parameter_is_documented(reference: tuple[dict[str, str], list[str]]):
    assert reference[1] == []


def test_every_public_name_is_said_something_about():
    """Its docstring, or that it is another module's."""
    entries = [
        entry
        for page in REFERENCE.glob("*.md")
        for entry in page.read_text().split("\n## `upstash_middleware")[1:]
    ]
    assert len(entries) > 120
    silent = [
        entry.partition("`")[0]
        for entry in entries
        if not entry.partition("`\n")[2].rpartition("```\n")[2].partition("\nSource: ")[0].strip()
    ]
    assert silent == []


# What is written in more than one place, for type checkers and editors.


def of(function: Any, *, without: frozenset[str] = frozenset()) -> dict[str, tuple[str, Any]]:
    found = inspect.signature(function).parameters.values()
    return {
        each.name: (each.annotation, each.default)
        for each in found
        if each.kind is each.KEYWORD_ONLY and each.name not in without
    }


def test_the_arguments_of_the_middleware_are_the_settings():
    """In Flask with the same defaults."""
    arguments = of(WithSettings.__init__)
    assert list(arguments) == list(DEFAULTS)
    assert arguments == of(flask.UpstashMiddleware.__init__)
    assert list(arguments) == list(Arguments.__annotations__)


@pytest.mark.parametrize("limit", [LimitDecorator.__call__, fastapi.limit, flask.limit])
def test_the_arguments_of_a_limit_are_fields_of_a_rule(limit: Any):
    assert of(limit).keys() == set(FIELDS) - {"path", "methods", "hosts", "limits", "bucket"}
    rule = RateLimitRule("/", "1/min")
    fields = {name: default for name, (_, default) in of(limit).items() if name != "by"}
    assert {name: getattr(rule, name) for name in fields if name != "name"} == {
        name: default for name, default in fields.items() if name != "name"
    }
    by: Any = of(limit)["by"][1]
    assert RateLimitRule("/", "1/min", by=by).extractor == rule.extractor


@pytest.mark.parametrize(
    ("function", "own"),
    [(limiter.Limiter.__init__, {"name", "app"}), (data.Data.__init__, {"kind"})],
)
def test_arguments_that_are_settings_have_the_settings_defaults(function: Any, own: set[str]):
    found = of(function, without=frozenset(own))
    rule = RateLimitRule("/", "1/min")
    of_rules = {"lease": None, "deadline": None} if function is limiter.Limiter.__init__ else {}
    for name, (_, default) in found.items():
        expected = DEFAULTS[name] if name in DEFAULTS else getattr(rule, name)
        assert default == of_rules.get(name, expected), name


@pytest.mark.parametrize("function", [asgi.SessionMiddleware.__init__, flask.Sessions.__init__])
def test_sessions_take_settings_with_their_defaults(function: Any):
    found = {name: default for name, (_, default) in of(function).items() if name in DEFAULTS}
    assert {"url", "token", "redis", "prefix", "deadline"} <= found.keys()
    assert found == {name: DEFAULTS[name] for name in found}
