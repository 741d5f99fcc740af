"""One rule file in TOML, the same for ASGI, Flask and Django, beside other settings."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from django.test import override_settings
from flask import Flask

from tests.django.project import Urls
from upstash_middleware import Lease, asgi, client_ip, flask
from upstash_middleware.django.checks import check_middleware
from upstash_middleware.django.conf import Configured
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.runtime import Features
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
client_ip = ["10.0.0.0/8", "fd00::/8"]
default_limit = "100/minute"
prefix = "shop"

[[rate_limits]]
path = "/login"
methods = ["POST"]
limits = "5/minute; 20/hour"
by = "header:X-API-Key"

[[cache]]
path = "/products/{id}"
ttl = 60
tags = ["product:{id}"]
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Return the path of a rule file."""
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


async def nothing(scope: object, receive: object, send: object) -> None:
    """Be an ASGI application."""


def test_every_framework_reads_the_same_file(rules: Path) -> None:
    """By a keyword argument, by Flask's config, by Django's setting."""
    by_argument = asgi.UpstashMiddleware(nothing, config=rules).runtime.settings
    app = Flask("shop")
    app.config["UPSTASH_MIDDLEWARE"] = {"config": str(rules)}
    flask.UpstashMiddleware(app)
    (middleware,) = app.extensions["upstash_middleware"].values()
    with override_settings(ROOT_URLCONF=Urls(), UPSTASH_MIDDLEWARE={"config": rules}):
        by_django = Configured(Features.BOTH).runtime().settings
    assert by_argument.prefix == "shop"
    assert by_argument.client_ip == client_ip(trusted=("10.0.0.0/8", "fd00::/8"))
    assert [rule.name for rule in by_argument.rate_limits] == ["POST /login"]
    assert by_argument.rate_limits[0].parsed is not None
    assert by_argument.cache[0].tags == ("product:{id}",)
    for other in (middleware.runtime.settings, by_django):
        assert (other.prefix, other.client_ip, other.rate_limits, other.cache) == (
            by_argument.prefix,
            by_argument.client_ip,
            by_argument.rate_limits,
            by_argument.cache,
        )


LEASES = """
default_limit = "5000/minute lease 500ms"
lease = "1s"

[[rate_limits]]
path = "/a"
limits = "1000/minute"
lease = { seconds = 2, share = 0.2 }

[[rate_limits]]
path = "/b"
limits = "1000/minute"
lease = false
"""


def test_leases_are_the_same_in_a_file_and_in_each_frameworks_settings(tmp_path: Path) -> None:
    file = tmp_path / "leases.toml"
    file.write_text(LEASES)
    by_argument = asgi.UpstashMiddleware(nothing, config=file).runtime.settings
    app = Flask("shop")
    app.config["UPSTASH_MIDDLEWARE"] = {"config": str(file)}
    flask.UpstashMiddleware(app)
    (middleware,) = app.extensions["upstash_middleware"].values()
    with override_settings(ROOT_URLCONF=Urls(), UPSTASH_MIDDLEWARE=tomllib.loads(LEASES)):
        by_django = Configured(Features.BOTH).runtime().settings
    for settings in (by_argument, middleware.runtime.settings, by_django):
        assert settings.lease == Lease(1)
        assert [rule.lease for rule in settings.rate_limits] == [Lease(2, 0.2), False]
        assert settings.default_limit is not None
        assert settings.default_limit.lease == Lease("500ms")


def test_what_the_file_does_not_hold_is_given_beside_it(rules: Path) -> None:
    """Such as what is different on each machine."""
    settings = settings_from({"config": rules, "deadline": 2}, {})
    assert (settings.deadline, settings.prefix, settings.config) == (2.0, "shop", str(rules))


def test_what_is_given_in_both_places_is_refused(rules: Path) -> None:
    """Whichever won, somebody would be surprised."""
    with pytest.raises(ConfigurationError, match=r"^prefix: given here and in .*rules\.toml too"):
        settings_from({"config": rules, "prefix": "other"}, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deadline = 0", r"rules\.toml\['deadline'\]: 0 should be a number of seconds above 0"),
        ("default_limt = '1/s'", r"rules\.toml\['default_limt'\]: there is no such setting; did"),
        ("[[cache]]\npath = '/a'\nttl = -1", r"rules\.toml\['cache'\]\[0\]\['ttl'\]"),
        ("lease = 0", r"rules\.toml\['lease'\] = 0: a lease must be longer than 0 seconds"),
        ("deadline = ", r"the rule file '.*rules\.toml' is not TOML: "),
        ("deadline = '\xff'", r"the rule file '.*rules\.toml' is not TOML: "),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(tmp_path: Path, text: str, says: str) -> None:
    """As every wrong setting is."""
    file = tmp_path / "rules.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=says):
        settings_from({"config": file}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """And a value that is no path."""
    with pytest.raises(ConfigurationError, match=r"gone\.toml' cannot be read: No such file"):
        settings_from({"config": tmp_path / "gone.toml"}, {})
    with pytest.raises(ConfigurationError, match=r"^config: should be text"):
        settings_from({"config": 7}, {})


def test_django_s_checks_see_the_cache_rules_of_a_file(rules: Path) -> None:
    """Or they would let a cache stand where it leaks."""
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "upstash_middleware.django.CacheMiddleware",
    ]
    with override_settings(MIDDLEWARE=middleware, UPSTASH_MIDDLEWARE={"config": rules}):
        assert [message.id for message in check_middleware()] == ["upstash_middleware.E002"]
