"""Why a response is not stored, and what would change it: the advice of log and explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware import CacheRule
from upstash_middleware.drivers import run
from upstash_middleware.events import CacheNotStored

if TYPE_CHECKING:
    from upstash_middleware.core.cache.explanation import CacheExplanation

KEPT = {
    "sessionid": "SESSION_COOKIE_NAME",
    "csrftoken": "CSRF_COOKIE_NAME",
    "django_language": "LANGUAGE_COOKIE_NAME",
    "__Host-shop": "sessions",
}
SESSION = "for the session ({}), set user= for a response for each user"


def site_of(**fields: Any) -> Site:
    site = Site((CacheRule("/page", **fields),), options={"kept_cookies": KEPT})
    site.app = lambda _: reply(content_length="4")
    return site


def advice_for(cookies: str) -> tuple[str, str]:
    """Return the advice of the log and of an explanation for a request with these cookies."""
    site = site_of(ttl=60)
    asked = request(cookie=cookies)
    explained = explain(site, asked)
    site.visit(asked)
    (event,) = [event for event in site.events if isinstance(event, CacheNotStored)]
    return event.advice, explained.advice


def explain(site: Site, asked: Any) -> CacheExplanation:
    explained: CacheExplanation = run(site.cache.explain(asked), site.store)
    return explained


@pytest.mark.parametrize(
    ("cookies", "begins"),
    [
        ("visitor=1", "if it does not, set ignore_cookies=('visitor',); name"),
        ("sessionid=1", SESSION.format("'sessionid'")),
        ("__Host-shop=1", SESSION.format("'__Host-shop'")),
        ("shop=1", SESSION.format("'shop'")),
        ("django_language=de", "set vary_cookies=('django_language',) if views"),
        ("csrftoken=1; django_language=de", "set vary_cookies=('django_language',) if views"),
        ("csrftoken=1", "set vary_cookies=() if views"),
    ],
)
def test_the_advice_for_a_cookie_is_that_for_what_it_is(cookies: str, begins: str):
    """The cookie of a session, or of the language, cannot be ignored: that is an error."""
    for advice in advice_for(cookies):
        assert advice.startswith(begins)
        assert "visitor" in cookies or "ignore_cookies" not in advice


def test_each_of_several_cookies_has_its_own_advice():
    for advice in advice_for("sessionid=1; csrftoken=2; django_language=de; visitor=3"):
        assert SESSION.format("'sessionid'") in advice
        assert "set vary_cookies=('django_language',)" in advice
        assert "does not depend on the others, set ignore_cookies=('visitor',)" in advice


def test_a_page_in_variants_by_its_session_is_no_reason_to_ignore_it():
    site = site_of(ttl=60)
    site.app = lambda _: reply(content_length="4", vary="Cookie")
    site.visit(request(cookie="sessionid=1"))
    explained = explain(site, request(cookie="sessionid=2"))
    assert explained.outcome == "vary-miss"
    assert SESSION.format("'sessionid'") in explained.advice
    assert "ignore_cookies" not in explained.advice


@pytest.mark.parametrize(
    ("status", "ttl", "advice"),
    [
        (404, {200: 60}, "set ttl={200: 60, 404: 5}, or send Cache-Control: max-age=5"),
        (404, 2_592_000, "set ttl={200: 2592000, 404: 5}, or send Cache-Control: max-age=5"),
        (200, {404: 0.5}, "set ttl={404: 0.5, 200: 60}, or send Cache-Control: max-age=60"),
        (302, 60, "set ttl={200: 60, 302: 5}, or send Cache-Control: max-age=5"),
        *((status, 60, "") for status in (400, 401, 403, 409, 422, 500, 502, 503)),
    ],
)
def test_the_ttl_advised_keeps_what_the_rule_has_and_stores_no_failure(
    status: int, ttl: Any, advice: str
):
    site = site_of(ttl=ttl)
    site.app = lambda _: reply(status=status, content_length="4")
    site.visit()
    (event,) = [event for event in site.events if isinstance(event, CacheNotStored)]
    assert event.advice == advice


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"cookie": "a=1"}, "the request has cookies ('a')"),
        ({"authorization": "Bearer 1"}, "the request has Authorization"),
        ({"x_api_key": "1"}, "the request has X-Api-Key"),
        ({"x_real_ip": "foo"}, "X-Real-Ip contains values that are not addresses"),
        ({"method": "HEAD"}, "only responses to GET are stored"),
    ],
)
@pytest.mark.parametrize("vary", [None, "Accept-Language"])
def test_an_explanation_names_what_of_the_request_keeps_its_response_from_being_stored(
    fields: dict[str, str], why: str, vary: str | None
):
    """If nothing is stored for the URL, and if there are only other variants."""
    site = site_of(ttl=60)
    if vary is not None:
        site.app = lambda _: reply(content_length="4", vary=vary)
        site.visit()
    explained = explain(site, request(accept_language="de", **fields))
    assert explained.outcome == ("vary-miss" if vary else "uri-miss")
    assert why in explained.why


def test_an_explanation_says_that_a_function_gets_no_native_request_here():
    """On the command line there is none, and many functions read it."""
    site = site_of(ttl=60, user=lambda request: request.native.user)
    explained = explain(site, request())
    assert explained.outcome == "bypass"
    assert "request.native, the framework's own request, is None here" in explained.why


@pytest.mark.parametrize(
    ("cdn", "fields", "has_tags"),
    [
        ("cloudflare", {}, True),
        ("cloudflare", {"vary_cookies": ("theme",)}, False),
        ("fastly", {"vary_cookies": ("theme",)}, True),
        ("fastly", {"user": lambda _: None}, False),
    ],
)
def test_an_explanation_shows_tags_only_if_the_cdn_gets_them(
    cdn: str, fields: dict[str, Any], has_tags: bool
):
    site = Site((CacheRule("/page", ttl=60, **fields),), options={"cdn": cdn})
    assert bool(explain(site, request()).cdn_tags) is has_tags
