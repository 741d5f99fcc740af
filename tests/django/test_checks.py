"""`manage.py check` says what is wrong with the setting and with the places in MIDDLEWARE."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.conf.urls.i18n import i18n_patterns
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.locale import LocaleMiddleware
from django.test import override_settings
from django.urls import path, re_path
from django.views import View

from tests.django.fakes import OURS
from tests.django.project import Urls
from upstash_middleware import SessionSettings, client_ip, first_of
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


class OwnLanguages(LocaleMiddleware):
    """A project's own way of choosing the language."""

    def process_request(self, request: Any) -> None:
        """Choose it."""


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


@pytest.mark.parametrize("pattern", ["session*", "csrf*", "*language"])
def test_e001_a_cookie_of_django_that_is_ignored_is_reported(pattern: str) -> None:
    found = reported(CACHE, setting=CACHED | {"cache_ignore_cookies": [pattern]})
    assert f"UPSTASH_MIDDLEWARE['cache_ignore_cookies']: '{pattern}' matches" in found["E001"]


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
    assert f"is below {above.rpartition('.')[2]}" in found["E002"]
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


def test_settings_for_decorators_alone_need_no_middleware() -> None:
    assert reported(COMMON, setting={"default_limit": None, "prefix": "shop"}) == {}


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
    assert "(upstash_middleware.E002) CacheMiddleware is below Session" in str(raised.value)
    assert "HINT: Move" in str(raised.value)


@pytest.mark.parametrize("by", [user, first_of(user, client_ip())])
def test_a_limit_by_user_above_authentication_is_an_error(by: Any) -> None:
    by_user = {"default_limit": {"limits": "9/hour", "by": by}}
    assert set(reported(LIMIT, SESSIONS, AUTHENTICATION, setting=by_user)) == {"E005"}
    assert reported(SESSIONS, AUTHENTICATION, LIMIT, setting=by_user) == {}
    assert reported(LIMIT, SESSIONS, AUTHENTICATION, setting=LIMITED) == {}


def test_w006_a_locale_middleware_of_ones_own_below_the_cache_is_reported() -> None:
    """The cache cannot know which language it will choose."""
    found = reported(CACHE, f"{HERE}OwnLanguages", setting=CACHED)
    assert found.keys() == {"W006"}
    assert (
        "OwnLanguages in MIDDLEWARE, which chooses the language with its own code"
        in (found["W006"])
    )
    assert reported(f"{HERE}OwnLanguages", CACHE, setting=CACHED) == {}
    assert reported(CACHE, LOCALE, setting=CACHED) == {}


def test_w012_a_cache_that_cannot_revalidate_in_the_background_is_reported() -> None:
    """Only what certainly adds nothing to requests may be above."""
    rule = {"path": "/page", "ttl": 60, "stale_while_revalidate": 600}
    stale: dict[str, Any] = {"cache": [rule]}
    found = reported(COMMON, CACHE, setting=stale)
    assert found.keys() == {"W012"}
    assert "is below CommonMiddleware in MIDDLEWARE, so visitors wait" in found["W012"]
    assert reported(COMMON, CACHE, setting=CACHED) == {}
    assert reported(COMMON, CACHE, setting={**stale, "cache_refresh": False}) == {}
    for above in (LIMIT, "django.middleware.security.SecurityMiddleware"):
        assert "W012" not in reported(above, CACHE, setting=stale)


def test_a_limit_above_the_cors_middleware_is_warned_of() -> None:
    assert set(reported(LIMIT, CORS, setting=LIMITED)) == {"W004"}
    assert reported(CORS, LIMIT, setting=LIMITED) == {}


@pytest.mark.parametrize("named", ["absent.views.slow_down", "os.absent", "os.sep", 7])
def test_a_view_for_denials_that_is_not_there_is_an_error(named: Any) -> None:
    with override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=named):
        found = reported(LIMIT, setting=LIMITED)
    assert set(found) == {"E006"}
    assert repr(named) in found["E006"]


def slow_down(_request: Any, _decision: Any) -> HttpResponse:
    return HttpResponse(status=429)


async def slow_down_async(_request: Any, _decision: Any) -> HttpResponse:
    return HttpResponse(status=429)


class SlowDown(View):
    """A class-based view, which is no view by itself."""


class CallingAsync:
    """An object that is a view."""

    async def __call__(self, request: Any, decision: Any) -> HttpResponse:
        """Answer a denial."""
        return slow_down(request, decision)


@pytest.mark.parametrize(
    "view",
    [f"{HERE}slow_down", slow_down, slow_down_async, CallingAsync(), SlowDown.as_view()],
)
def test_a_view_for_denials_may_be_named_or_given_and_sync_or_async(view: Any) -> None:
    with override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=view):
        assert reported(LIMIT, setting=LIMITED) == {}


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (f"{HERE}SlowDown", "it is a class; name its as_view()"),
        (CallingAsync, "it is a class"),
        (own_function, "cannot be called with the request and the decision"),
        (lambda: None, "cannot be called with the request and the decision"),
    ],
)
def test_a_view_for_denials_that_cannot_be_called_as_one_is_an_error(view: Any, why: str) -> None:
    with override_settings(UPSTASH_MIDDLEWARE_DENIED_VIEW=view):
        found = reported(LIMIT, setting=LIMITED)
    assert set(found) == {"E006"}
    assert why in found["E006"]


page: Any = own_function
PATHS: Any = Urls(tea=page)
PATHS.urlpatterns += [
    path("products/<int:id>/", page),
    re_path(r"^(?:v1|v2)/status$", page),
    *i18n_patterns(path("about", page), prefix_default_language=False),
]


@pytest.mark.parametrize(
    "served",
    [
        *("/tea", "/products/{id}", "/products/{number}/", "/{rest:path}", "/{any}"),
        *("/v2/status", "/about", "/de/about", "/{language}/about"),
    ],
)
def test_w005_a_path_that_a_view_serves_is_none(served: str) -> None:
    setting = LIMITED | {
        "rate_limits": [{"path": served, "limits": "1/s"}],
        "cache": [{"path": served, "ttl": 60}],
    }
    with override_settings(ROOT_URLCONF=PATHS, MIDDLEWARE=[BOTH, LOCALE]):
        assert reported(BOTH, LOCALE, setting=setting) == {}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("/teas", "/tea"), ("/shop/tea", "/tea"), ("/product/{id}", "/products/{id}/")],
)
def test_w005_a_path_that_no_view_serves_is_reported_with_one_that_is(
    wrong: str, right: str
) -> None:
    """A rule's path is written without FORCE_SCRIPT_NAME."""
    limits = LIMITED | {"rate_limits": [{"path": wrong, "limits": "1/s"}]}
    cache = {"cache": [{"path": "/tea", "ttl": 60}, {"path": wrong, "ttl": 60}]}
    with override_settings(ROOT_URLCONF=PATHS, FORCE_SCRIPT_NAME="/shop"):
        told = reported(LIMIT, setting=limits | cache)["W005"]
        assert told.startswith(f"UPSTASH_MIDDLEWARE['rate_limits'][0]: the path is {wrong!r}")
        assert f"did you mean {right!r}" in told
        told = reported(CACHE, setting=limits | cache)["W005"]
        assert told.startswith("UPSTASH_MIDDLEWARE['cache'][1]")


def test_w005_leaves_a_broken_url_configuration_to_django() -> None:
    rules = {"rate_limits": [{"path": "/x", "limits": "1/s"}]}
    with override_settings(ROOT_URLCONF="no.such.module"):
        assert reported(LIMIT, setting=LIMITED | rules) == {}


PROXIED = ("HTTP_X_FORWARDED_PROTO", "https")


@pytest.mark.parametrize(
    ("environ", "setting", "value"),
    [
        ({}, LIMITED, "1"),
        ({"DYNO": "web.1"}, LIMITED, "'heroku'"),
        ({}, LIMITED | {"client_ip": 1}, None),
        ({}, LIMITED | {"client_ip": 0}, None),
        ({"FLY_APP_NAME": "shop", "FLY_MACHINE_ID": "148e"}, LIMITED, None),
        ({"AWS_LAMBDA_FUNCTION_NAME": "shop"}, LIMITED, None),
    ],
)
def test_a_proxy_that_django_knows_and_the_limits_do_not_is_reported(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], setting: Any, value: str | None
) -> None:
    """By SECURE_PROXY_SSL_HEADER, until ``client_ip`` is set or the platform is certain."""
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    assert reported(LIMIT, setting=setting) == {}
    with override_settings(SECURE_PROXY_SSL_HEADER=PROXIED):
        found = reported(LIMIT, setting=setting)
    assert set(found) == ({"W007"} if value else set())
    assert value is None or f"['client_ip'], for instance to {value}." in found["W007"]
    with override_settings(SECURE_PROXY_SSL_HEADER=PROXIED):
        assert reported(CACHE, setting=CACHED) == {}


OUR_ENGINE = "upstash_middleware.django.sessions"
OUR_SESSIONS = f"{OURS}SessionMiddleware"


def test_e002_our_middleware_of_sessions_above_a_cache_is_reported_as_django_s_is() -> None:
    assert "is below SessionMiddleware" in reported(OUR_SESSIONS, BOTH, setting=CACHED)["E002"]


def test_w009_our_middleware_of_sessions_without_our_engine_is_reported() -> None:
    found = reported(BOTH, OUR_SESSIONS, setting=LIMITED)
    assert found.keys() == {"W009"}
    assert "backends.db'" in found["W009"]


@override_settings(SESSION_ENGINE=OUR_ENGINE)
def test_w010_our_engine_with_django_s_middleware_is_reported() -> None:
    assert reported(BOTH, OUR_SESSIONS, setting=LIMITED) == {}
    assert reported(BOTH, setting=LIMITED) == {}
    found = reported(BOTH, SESSIONS, setting=LIMITED)
    assert found.keys() == {"W010"}
    assert f"Replace it with '{OUR_SESSIONS}'" in found["W010"]


@override_settings(SESSION_ENGINE=OUR_ENGINE)
def test_e001_a_setting_of_sessions_that_django_has_is_reported() -> None:
    found = reported(BOTH, OUR_SESSIONS, setting=LIMITED | {"sessions": {"https_only": True}})
    assert "['https_only']: in Django, set SESSION_COOKIE_SECURE instead" in found["E001"]


@pytest.mark.parametrize("sessions", [{"max_size": 1000}, SessionSettings(on_error="closed")])
def test_w011_settings_of_sessions_without_our_engine_are_reported(sessions: Any) -> None:
    setting = LIMITED | {"sessions": sessions}
    for layers in ((BOTH, SESSIONS), (BOTH, OUR_SESSIONS)):
        found = reported(*layers, setting=setting)
        assert "SESSION_ENGINE = 'django.contrib.sessions.backends.db' does" in found["W011"]
    assert reported(BOTH, SESSIONS, setting=LIMITED | {"sessions": False}) == {}
    with override_settings(SESSION_ENGINE=OUR_ENGINE):
        assert reported(BOTH, OUR_SESSIONS, setting=setting) == {}


def test_e001_sessions_that_are_only_switched_on_are_reported() -> None:
    found = reported(BOTH, setting=LIMITED | {"sessions": True})
    assert found.keys() == {"E001"}
    assert "['sessions']: True has no effect in Django" in found["E001"]


@override_settings(SESSION_ENGINE=OUR_ENGINE)
def test_e004_an_engine_of_sessions_without_credentials_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("UPSTASH_REDIS_REST_URL", "KV_REST_API_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.replace("URL", "TOKEN"), raising=False)
    assert "UPSTASH_REDIS_REST_URL" in reported(OUR_SESSIONS, deploy=True)["E004"]
