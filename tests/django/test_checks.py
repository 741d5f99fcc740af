"""`manage.py check` says what is wrong with the setting and with the places in MIDDLEWARE."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.middleware.csrf import CsrfViewMiddleware
from django.test import override_settings

from tests.django.fakes import OURS
from upstash_middleware import client_ip, first_of
from upstash_middleware.django import CacheMiddleware, user

if TYPE_CHECKING:
    from collections.abc import Callable

CACHED = {"cache": [{"path": "/page", "ttl": 60}]}
LIMITED = {"default_limit": "100/minute"}
BOTH, LIMIT, CACHE = (f"{OURS}{half}Middleware" for half in ("Upstash", "RateLimit", "Cache"))
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
CORS = "corsheaders.middleware.CorsMiddleware"
LOCALE = "django.middleware.locale.LocaleMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"
UPDATE, FETCH = (
    f"django.middleware.cache.{name}CacheMiddleware" for name in ("Update", "FetchFrom")
)


class OwnCsrf(CsrfViewMiddleware):
    """A project's own version of what makes pages personal."""


class OwnCache(CacheMiddleware):
    """A project's own version of the cache."""


def own_function(get_response: Any) -> Callable[[Any], Any]:
    """Stand for a middleware that is no class."""
    return get_response  # type: ignore[no-any-return]


HERE = f"{__name__}."


def reported(*middleware: str, setting: Any = None, deploy: bool = False) -> dict[str, str]:
    """Return what the checks report: texts and hints, by the last part of their ids."""
    with override_settings(MIDDLEWARE=middleware, UPSTASH_MIDDLEWARE=setting):
        if setting is None:
            del settings.UPSTASH_MIDDLEWARE
        messages = run_checks(tags=["upstash_middleware"], include_deployment_checks=deploy)
    return {str(m.id).rpartition(".")[2]: f"{m.msg} {m.hint}" for m in messages}


def test_a_project_as_it_should_be_has_nothing_to_report() -> None:
    assert reported(LIMIT, CACHE, COMMON, SESSIONS, setting=CACHED | LIMITED) == {}
    assert reported(BOTH, GZIP, SESSIONS, LOCALE, setting=CACHED | LIMITED) == {}
    assert reported(COMMON, setting=None) == {}


def test_e001_a_wrong_setting_is_reported_in_the_words_of_its_error() -> None:
    found = reported(BOTH, setting={"defualt_limit": "1/s"})
    assert found.keys() == {"E001"}
    assert "UPSTASH_MIDDLEWARE['defualt_limit']" in found["E001"]
    assert "did you mean 'default_limit'?" in found["E001"]


def test_e001_a_middleware_with_nothing_to_do_is_reported() -> None:
    assert "CacheMiddleware has no rule" in reported(CACHE, setting=LIMITED)["E001"]


@pytest.mark.parametrize("setting", [["/page"], {"cache": "/page"}])
def test_e001_a_setting_of_the_wrong_kind_is_reported_and_stops_no_other_check(
    setting: object,
) -> None:
    assert "should be a" in reported(SESSIONS, CACHE, setting=setting, deploy=True)["E001"]


@pytest.mark.parametrize("cache", [BOTH, CACHE, f"{HERE}OwnCache"])
@pytest.mark.parametrize("above", [SESSIONS, LOCALE, f"{HERE}OwnCsrf"])
def test_e002_a_cache_below_what_makes_pages_personal_is_reported(cache: str, above: str) -> None:
    found = reported(COMMON, above, cache, setting=CACHED)
    assert found.keys() == {"E002"}
    assert f"stands below {above.rpartition('.')[2]}" in found["E002"]
    assert f"Move {cache!r} above {above!r}" in found["E002"]


def test_e002_is_not_about_a_limit_which_may_need_to_know_the_user() -> None:
    assert reported(SESSIONS, LIMIT, setting=LIMITED) == {}
    assert reported(SESSIONS, BOTH, setting=LIMITED) == {}


@pytest.mark.parametrize("pair", [(BOTH, LIMIT), (CACHE, BOTH), (CACHE, CACHE)])
def test_e003_a_half_that_stands_twice_is_reported(pair: tuple[str, str]) -> None:
    found = reported(*pair, setting=CACHED | LIMITED)
    assert found.keys() == {"E003"}
    assert "twice" in found["E003"]


def test_e004_missing_credentials_are_reported_for_a_deployment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("UPSTASH_REDIS_REST_URL", "KV_REST_API_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.replace("URL", "TOKEN"), raising=False)
    assert reported(BOTH, setting=LIMITED) == {}
    assert "UPSTASH_REDIS_REST_URL" in reported(BOTH, setting=LIMITED, deploy=True)["E004"]
    with_them = LIMITED | {"url": "https://x.upstash.io", "token": "secret"}
    assert reported(BOTH, setting=with_them, deploy=True) == {}
    assert reported(BOTH, setting=LIMITED | {"enabled": False}, deploy=True) == {}
    assert reported(COMMON, deploy=True) == {}


def test_w001_a_setting_that_no_middleware_reads_is_reported() -> None:
    others = "django.contrib.auth.middleware.AuthenticationMiddleware"  # needs its application
    found = reported(COMMON, f"{HERE}own_function", "no.such.one", others, setting=LIMITED)
    assert found.keys() == {"W001"}


def test_w002_djangos_own_cache_beside_ours_is_reported() -> None:
    found = reported(CACHE, UPDATE, COMMON, FETCH, setting=CACHED)
    assert found.keys() == {"W002"}
    assert "UpdateCacheMiddleware and FetchFromCacheMiddleware" in found["W002"]
    assert reported(LIMIT, UPDATE, FETCH, setting=LIMITED) == {}


def test_w003_a_cache_below_the_compression_is_reported() -> None:
    found = reported(GZIP, CACHE, setting=CACHED)
    assert found.keys() == {"W003"}
    assert f"Move {CACHE!r} above {GZIP!r}" in found["W003"]


def test_the_command_prints_an_error_and_its_hint() -> None:
    printed = io.StringIO()
    wrong = override_settings(MIDDLEWARE=[SESSIONS, CACHE], UPSTASH_MIDDLEWARE=CACHED)
    with wrong, pytest.raises(SystemCheckError) as raised:
        call_command("check", "--tag", "upstash_middleware", stderr=printed)
    assert "(upstash_middleware.E002) CacheMiddleware stands below Session" in str(raised.value)
    assert "HINT: Move" in str(raised.value)


@pytest.mark.parametrize("by", [user, first_of(user, client_ip())])
def test_a_limit_by_user_above_authentication_is_an_error(by: Any) -> None:
    by_user = {"default_limit": {"limits": "9/hour", "by": by}}
    assert set(reported(LIMIT, SESSIONS, AUTHENTICATION, setting=by_user)) == {"E005"}
    assert reported(SESSIONS, AUTHENTICATION, LIMIT, setting=by_user) == {}
    assert reported(LIMIT, SESSIONS, AUTHENTICATION, setting=LIMITED) == {}


def test_a_limit_above_the_cors_middleware_is_warned_of() -> None:
    assert set(reported(LIMIT, CORS, setting=LIMITED)) == {"W004"}
    assert reported(CORS, LIMIT, setting=LIMITED) == {}


@pytest.mark.parametrize("named", ["absent.views.slow_down", "os.absent", "os.sep", 7])
def test_a_view_for_denials_that_is_not_there_is_an_error(named: Any) -> None:
    with override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=named):
        found = reported(LIMIT, setting=LIMITED)
    assert set(found) == {"E006"}
    assert repr(named) in found["E006"]


def test_a_view_for_denials_may_be_named_or_given() -> None:
    for view in (f"{HERE}own_function", own_function):
        with override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=view):
            assert reported(LIMIT, setting=LIMITED) == {}
