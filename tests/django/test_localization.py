"""A stored page is in the language and time zone that its visitor would get from the view."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from django.conf.urls.i18n import i18n_patterns
from django.core.management import call_command
from django.core.management.base import CommandError
from django.http import HttpRequest, HttpResponse
from django.middleware.locale import LocaleMiddleware
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils import timezone, translation
from django.utils.translation import gettext_lazy as _

from tests.django.project import Urls
from upstash_middleware.django import exempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from django.http.response import HttpResponseBase

    from upstash_middleware.local import LocalUpstash

    Visit = Callable[..., HttpResponse]

OURS = "upstash_middleware.django.CacheMiddleware"
LOCALE = "django.middleware.locale.LocaleMiddleware"


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{translation.get_language()} {timezone.get_current_timezone_name()}")


async def async_page(request: HttpRequest) -> HttpResponse:
    return page(request)


class ByAddress(LocaleMiddleware):
    """Chooses a language that nobody outside can work out."""

    def process_request(self, request: HttpRequest) -> None:
        german = request.headers.get("X-Country") == "DE"
        translation.activate("de" if german else "en")
        request.LANGUAGE_CODE = translation.get_language()


def zone_by_cookie(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Activate a time zone, as Django's documentation has it."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if zone := request.COOKIES.get("zone"):
            timezone.activate(zone)
        else:
            timezone.deactivate()
        return get_response(request)

    return middleware


HERE = f"{__name__}."


@pytest.fixture(params=["wsgi", "asgi", "asgi, sync view"])
def visit(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Iterator[Visit]:
    """Ask Django for a page, by either of its handlers."""

    def visit(target: str = "/page", *, cookie: str = "", **headers: str) -> HttpResponse:
        client = Client() if request.param == "wsgi" else AsyncClient()
        client.cookies.load(cookie)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        answer: Any = client.get(target, headers=fields)
        if request.param != "wsgi":
            answer = async_to_sync(_awaited)(answer)
        assert isinstance(answer, HttpResponse)
        return answer

    view = async_page if request.param == "asgi" else page
    with override_settings(ROOT_URLCONF=Urls(page=view, other=view)):
        yield visit
    translation.deactivate()
    timezone.deactivate()


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


@contextmanager
def project(
    *middleware: str, rule: dict[str, Any] | None = None, **settings: Any
) -> Iterator[None]:
    mapping = {
        "cache": [{"path": "/{rest:path}", "ttl": 60, **(rule or {})}],
        "deadline": 20.0,
        "cache_deadline": 20.0,
    }
    given = {"LANGUAGE_CODE": "en", "TIME_ZONE": "UTC", "USE_TZ": True, **settings}
    with override_settings(MIDDLEWARE=middleware, UPSTASH_MIDDLEWARE=mapping, **given):
        yield


def was_hit(response: HttpResponse) -> bool:
    return "; hit" in response["Cache-Status"]


def language(response: HttpResponse) -> str:
    return response.content.decode().partition(" ")[0]


def test_the_language_cookie_selects_the_page(visit: Visit) -> None:
    """Before Accept-Language, as LocaleMiddleware has it; its Vary does not name it."""
    by_cookie = {"cookie": "django_language=de", "accept_language": "en"}
    with project(OURS, LOCALE):
        assert language(visit(accept_language="en")) == "en"
        assert language(visit(**by_cookie)) == "de"
        assert was_hit(visit(accept_language="en"))
        assert language(visit(accept_language="de")) == "de"
        german = visit(**by_cookie)
        assert (was_hit(german), language(german)) == (False, "de"), "one with cookies needs Vary"


def test_the_page_for_a_language_cookie_is_kept_under_that_language(visit: Visit) -> None:
    cookies = ({"cookie": f"django_language={code}; _ga=1"} for code in ("de", "fr", "xx", "de"))
    with project(OURS, LOCALE, rule={"vary_cookies": ["seen"]}):
        languages = [language(visit(accept_language="en", **cookie)) for cookie in cookies]
        assert languages == ["de", "fr", "en", "de"]
        assert was_hit(visit(accept_language="en", cookie="django_language=de; _ga=2"))
        assert was_hit(visit(accept_language="en"))


@pytest.mark.parametrize("prefix_default", [True, False])
def test_the_prefix_of_a_path_selects_the_language(visit: Visit, *, prefix_default: bool) -> None:
    class WithPrefixes:
        urlpatterns = i18n_patterns(path("page", page), prefix_default_language=prefix_default)

    english = "/en/page" if prefix_default else "/page"
    with project(OURS, LOCALE, ROOT_URLCONF=WithPrefixes, rule={"vary_cookies": ["seen"]}):
        for target, expected in ((english, "en"), ("/de/page", "de")):
            assert language(visit(target, accept_language="fr")) == expected
            again = visit(target, accept_language="fr", cookie="django_language=it")
            assert (was_hit(again), language(again)) == (True, expected)


def test_a_page_that_came_out_in_another_language_is_not_stored(visit: Visit) -> None:
    def activates(request: HttpRequest) -> HttpResponse:
        translation.activate("de")
        return page(request)

    with project(OURS, LOCALE, ROOT_URLCONF=Urls(page=activates)):
        for _ in range(2):
            answer = visit(accept_language="en")
            assert not was_hit(answer)
            assert "its language is" in answer["Cache-Status"]


def test_a_locale_middleware_of_ones_own_is_asked_before_the_cache(visit: Visit) -> None:
    """Inside of the cache nothing can be known of it, and nothing is stored."""
    own = f"{HERE}ByAddress"
    with project(OURS, own):
        assert "fwd=bypass" in visit()["Cache-Status"]
    with project(own, OURS):
        for country, expected in (("DE", "de"), ("US", "en"), ("DE", "de")):
            assert language(visit(x_country=country)) == expected
        assert was_hit(visit(x_country="DE"))


@pytest.mark.parametrize("how", ["USE_I18N", "no LocaleMiddleware"])
def test_without_languages_nothing_more_selects(visit: Visit, how: str) -> None:
    middleware = (OURS, LOCALE) if how == "USE_I18N" else (OURS,)
    with project(*middleware, USE_I18N=how != "USE_I18N", rule={"vary_cookies": ["seen"]}):
        visit(accept_language="en")
        assert was_hit(visit(accept_language="en", cookie="django_language=de"))


def test_the_time_zone_selects_the_page_where_it_is_active_before_the_cache(visit: Visit) -> None:
    with project(f"{HERE}zone_by_cookie", OURS, rule={"vary_cookies": ["seen"]}):
        berlin = {"cookie": "zone=Europe/Berlin"}
        expected = [({}, "UTC"), (berlin, "Europe/Berlin"), ({}, "UTC"), (berlin, "Europe/Berlin")]
        answers = [visit(**headers) for headers, _ in expected]
        assert [answer.content.decode().split()[1] for answer in answers] == [
            zone for _, zone in expected
        ]
        assert [was_hit(answer) for answer in answers] == [False, False, True, True]


def test_a_page_in_a_time_zone_that_was_activated_inside_of_the_cache_is_not_stored(
    visit: Visit,
) -> None:
    """Nor does what it leaves active select anything for the next visitor."""
    with project(OURS, f"{HERE}zone_by_cookie", rule={"vary_cookies": ["seen"]}):
        berlin = {"cookie": "zone=Europe/Berlin"}
        assert "its time zone is" in visit(**berlin)["Cache-Status"]
        assert visit().content == b"en UTC"
        assert not was_hit(visit("/other", **berlin))


def test_a_background_revalidation_is_in_the_language_of_the_stored_page(
    visit: Visit, upstash: LocalUpstash
) -> None:
    """It has no cookies of the visitor's."""
    by_cookie = {"cookie": "django_language=de", "accept_language": "en"}
    with project(OURS, LOCALE, rule={"vary_cookies": [], "stale_while_revalidate": 60}):
        visit(**by_cookie)
        upstash.advance(70)
        assert "ttl=-" in visit(**by_cookie)["Cache-Status"]
        renewed = visit(**by_cookie)
        assert language(renewed) == "de"
        assert "hit; ttl=5" in renewed["Cache-Status"]


def test_the_command_that_explains_a_miss_knows_the_language(
    visit: Visit, capsys: pytest.CaptureFixture[str]
) -> None:
    explain = ("upstash", "cache", "explain", "http://testserver/page")
    with project(OURS, LOCALE, rule={"vary_cookies": ["seen"]}):
        visit(cookie="django_language=de")
        with pytest.raises(CommandError):
            call_command(*explain)
        call_command(*explain, "-H", "Cookie: django_language=de")
    assert "hit" in capsys.readouterr().out


class Translated:
    """URLs of which an exempt view has a translated path, beside one that takes any path."""

    urlpatterns = (
        path(_("Monday"), exempt(page)),
        path("<str:slug>", lambda request, slug: HttpResponse(slug)),
    )


class Prefixed:
    """URLs of which an exempt view is below the language's prefix."""

    urlpatterns = i18n_patterns(path("health", exempt(page)), prefix_default_language=True)


def test_an_exempt_view_is_looked_up_in_the_language_of_the_request(visit: Visit) -> None:
    both = "upstash_middleware.django.UpstashMiddleware"
    limits = {"default_limit": "2/hour", "deadline": 20.0}
    with override_settings(
        MIDDLEWARE=[both, LOCALE], UPSTASH_MIDDLEWARE=limits, LANGUAGE_CODE="en"
    ):
        with override_settings(ROOT_URLCONF=Translated):
            assert [visit("/other").status_code for _ in range(3)] == [200, 200, 429]
            assert visit("/Monday", cookie="django_language=de").status_code == 429
            assert visit("/Monday").status_code == 200
        with override_settings(ROOT_URLCONF=Prefixed):
            for left_active in ("en", "de"):
                translation.activate(left_active)
                for language in ("en", "de"):
                    assert visit(f"/{language}/health").status_code == 200


def activating(request: HttpRequest) -> HttpResponse:
    """Choose by a field of its own, inside of the cache, and show what was chosen."""
    if chosen := request.headers.get("X-Language"):
        translation.activate(chosen)
    return page(request)


class Unprefixed:
    """URLs whose language is the visitor's."""

    urlpatterns = (path("page", page), path("de/page", page), path("chosen", activating))


class OftenPrefixed:
    """URLs whose language is the path's."""

    urlpatterns = (
        *i18n_patterns(path("page", page), prefix_default_language=False),
        path("chosen", activating),
    )


@pytest.mark.parametrize("zones", ["above", "below"])
@pytest.mark.parametrize(
    ("urls", "languages"),
    [(Unprefixed, {"en", "de", "fr", "it"}), (OftenPrefixed, {"en", "de", "it"})],
)
def test_with_the_cache_every_visitor_gets_the_page_that_the_view_would_make(
    visit: Visit, urls: type, languages: set[str], zones: str
) -> None:
    """Whatever chooses the language and the time zone, and whoever has asked before."""
    zone = f"{HERE}zone_by_cookie"
    cached = (zone, OURS, LOCALE) if zones == "above" else (OURS, zone, LOCALE)
    order: list[dict[str, str]] = [
        {"target": target, "cookie": cookie, "accept_language": accepted, "x_language": chosen}
        for target, chosen in (("/page", ""), ("/de/page", ""), ("/chosen", "it"), ("/chosen", ""))
        for cookie in ("", "django_language=fr", "zone=Europe/Berlin", "django_language=xx")
        for accepted in ("en", "de,en;q=0.5", "fr")
    ]
    order += order[::-1]
    with project(zone, LOCALE, ROOT_URLCONF=urls):
        expected = [visit(**each).content for each in order]
    zone_names = ("UTC", "Europe/Berlin")
    assert {text.decode() for text in expected} == {
        f"{language} {name}" for language in languages for name in zone_names
    }
    # What is chosen above is known; what is chosen below, by a cookie, has to be named.
    cookies = ["seen" if zones == "above" else "zone"]
    rule = {"vary_cookies": cookies, "vary_headers": ["X-Language"]}
    with project(*cached, ROOT_URLCONF=urls, rule=rule):
        answers = [visit(**each) for each in order]
    assert [answer.content for answer in answers] == expected
    assert any(map(was_hit, answers))
