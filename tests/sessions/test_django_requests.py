"""Sessions in requests of Django: cookies, round trips, the cache, and outages."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings

import tests.django.project  # noqa: F401 - it configures Django
from tests.django.project import Urls
from upstash_middleware.core.flow import Pipeline
from upstash_middleware.core.sessions import SessionLookup
from upstash_middleware.django.sessions import SessionStore
from upstash_middleware.events import SessionSaved
from upstash_middleware.local.faults import Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

    from upstash_middleware.local import LocalUpstash

ENGINE = "upstash_middleware.django.sessions"
OURS = "upstash_middleware.django."
BOTH, LIMIT, CACHE, SESSIONS = (
    f"{OURS}{name}Middleware" for name in ("Upstash", "RateLimit", "Cache", "Session")
)
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"


def show(request: Any) -> HttpResponse:
    return JsonResponse(dict(request.session.items()))


async def ashow(request: Any) -> HttpResponse:
    return JsonResponse(dict(await request.session.aitems()))


def put(request: Any) -> HttpResponse:
    request.session.update(request.GET.dict())
    return HttpResponse("put")


async def aput(request: Any) -> HttpResponse:
    await request.session.aupdate(request.GET.dict())
    return HttpResponse("put")


def nested(request: Any) -> HttpResponse:
    request.session.setdefault("cart", []).append(1)
    request.session.modified = False
    return HttpResponse("put")


def swap(request: Any) -> HttpResponse:
    del request.session["a"]
    request.session["b"] = 1
    return HttpResponse("put")


def log_in(request: Any) -> HttpResponse:
    request.session.cycle_key()
    request.session["user"] = 7
    return HttpResponse("welcome")


async def alog_in(request: Any) -> HttpResponse:
    await request.session.acycle_key()
    await request.session.aset("user", 7)
    return HttpResponse("welcome")


def bind(request: Any) -> HttpResponse:
    request.session["user"] = 7
    request.session.bind(7)
    return HttpResponse("welcome")


def revoke_all(request: Any) -> HttpResponse:
    request.session.revoke_all(7)
    return HttpResponse("bye")


def log_out(request: Any) -> HttpResponse:
    request.session.flush()
    return HttpResponse("bye")


async def alog_out(request: Any) -> HttpResponse:
    await request.session.aflush()
    return HttpResponse("bye")


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def late(request: Any) -> StreamingHttpResponse:
    def body() -> Iterator[bytes]:
        yield b"first "
        yield str(request.session.get("a")).encode()
        request.session["late"] = 1

    return StreamingHttpResponse(body())


async def alate(request: Any) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        yield str(await request.session.aget("a")).encode()
        await request.session.aset("late", 1)

    return StreamingHttpResponse(body())


def public(request: Any) -> HttpResponse:
    request.session["a"] = 1
    return HttpResponse("public", headers={"Cache-Control": "public, max-age=60"})


def broken(request: Any) -> HttpResponse:
    request.session["a"] = "lost"
    return HttpResponse("broken", status=500)


VIEWS: dict[str, Callable[..., Any]] = {
    view.__name__: view
    for view in (
        *(show, ashow, put, aput, nested, swap, log_in, alog_in, bind, revoke_all, log_out),
        *(alog_out, plain, late, alate, public, broken),
    )
}
LIMITED = {"default_limit": "1000/hour"}
CACHED = {"cache": [{"path": "/{rest:path}", "ttl": 60}]}


class Browser:
    """A client with cookies, which notes what each request costs."""

    def __init__(self, upstash: LocalUpstash, *, is_async: bool = False) -> None:
        self._upstash = upstash
        self._client: Any = AsyncClient() if is_async else Client()
        self._is_async = is_async
        self.cost = (0, 0)
        """Round trips and billed commands of the last request."""

    @property
    def cookie(self) -> str | None:
        found = self._client.cookies.get("sessionid")
        return found.value if found and found.value else None

    @cookie.setter
    def cookie(self, value: str) -> None:
        self._client.cookies["sessionid"] = value

    def get(self, path: str) -> Any:
        self._upstash.reset_bill()
        response = self._client.get(path)
        if self._is_async:
            response = asyncio.run(response)
        content = b"".join(response) if response.streaming and not response.is_async else b""
        if response.streaming and response.is_async:

            async def read() -> bytes:
                return b"".join([piece async for piece in response])

            content = asyncio.run(read())
        if response.streaming:
            response.close()
            response.whole = content
        bill = self._upstash.bill()
        self.cost = bill.requests, bill.commands
        return response

    def entries(self) -> Any:
        return self.get("/show").json()


def project(*middleware: str, upstash: LocalUpstash, **mapping: Any) -> override_settings:
    return override_settings(
        MIDDLEWARE=middleware,
        ROOT_URLCONF=Urls(**VIEWS),
        SESSION_ENGINE=ENGINE,
        UPSTASH_MIDDLEWARE={"breaker": False, "redis": upstash, **mapping},
    )


@pytest.fixture(params=["WSGI", "ASGI"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "ASGI")


@pytest.fixture
def browser(upstash: LocalUpstash, is_async: bool) -> Iterator[Browser]:
    """A browser of a project with limits, cache and sessions, whose scripts are warm."""
    with project(BOTH, COMMON, SESSIONS, upstash=upstash, **LIMITED, **CACHED):
        warm = Browser(upstash)
        for path in ("/put?x=1", "/put?x=2", "/log_in", "/bind", "/log_out"):
            warm.get(path)
        yield Browser(upstash, is_async=is_async)


def test_a_session_is_created_with_its_first_entry(browser: Browser) -> None:
    response = browser.get("/show")
    assert "sessionid" not in response.cookies
    response = browser.get("/put?a=1")
    assert response.cookies["sessionid"]["httponly"] is True
    assert response.cookies["sessionid"]["samesite"] == "Lax"
    assert response.headers["Vary"] == "Cookie"
    assert browser.entries() == {"a": "1"}
    browser.get("/aput?b=2")
    assert browser.get("/ashow").json() == {"a": "1", "b": "2"}


def test_limit_session_and_hit_take_one_round_trip_and_five_commands(browser: Browser) -> None:
    browser.get("/plain")
    browser.get("/put?a=1")
    assert "hit" in browser.get("/plain").headers["Cache-Status"]
    assert browser.cost == (1, 5)


def test_reading_a_session_costs_one_command_and_no_round_trip(browser: Browser) -> None:
    browser.get("/put?a=1")
    browser.get("/show")
    assert browser.cost == (1, 5)  # 3 of the limit, 1 of the cache


def test_a_change_takes_one_round_trip_more(browser: Browser) -> None:
    browser.get("/put?a=1")
    browser.get("/put?a=2")
    assert browser.cost == (2, 5 + 3)
    browser.get("/swap")
    assert browser.cost == (2, 5 + 4)


def test_a_login_takes_one_round_trip_for_its_key(browser: Browser) -> None:
    browser.get("/put?a=1")
    browser.get("/log_in")
    assert browser.cost == (3, 5 + 4 + 3)
    browser.get("/bind")
    assert browser.cost == (2, 5 + 6)
    browser.get("/show")
    assert browser.cost == (1, 6)
    browser.get("/revoke_all")
    assert browser.cost == (2, 6 + 1)


@pytest.mark.parametrize(
    ("middleware", "reads"),
    [
        ((LIMIT, CACHE, SESSIONS), (1, 5)),
        ((LIMIT, COMMON, SESSIONS), (1, 4)),
        ((CACHE, SESSIONS), (1, 2)),
        ((SESSIONS, LIMIT), (2, 4)),
        ((SESSIONS,), (1, 1)),
        ((DJANGOS,), (1, 1)),
        ((LIMIT, DJANGOS), (2, 4)),
    ],
)
def test_the_read_joins_whatever_is_above(
    upstash: LocalUpstash, middleware: tuple[str, ...], reads: tuple[int, int], is_async: bool
) -> None:
    with project(*middleware, upstash=upstash, **LIMITED, **CACHED):
        browser = Browser(upstash, is_async=is_async)
        browser.get("/put?a=1")
        browser.get("/plain")
        assert browser.entries() == {"a": "1"}
        browser.entries()
        assert browser.cost == reads


def test_reading_from_the_primary_costs_one_command_more(upstash: LocalUpstash) -> None:
    with project(SESSIONS, upstash=upstash, sessions={"read_from": "primary"}):
        browser = Browser(upstash)
        browser.get("/put?a=1")
        browser.entries()
        assert browser.entries() == {"a": "1"}
        assert browser.cost == (1, 2)


def test_without_a_cookie_or_with_a_malformed_one_nothing_is_read(browser: Browser) -> None:
    browser.get("/plain")
    browser.get("/show")
    assert browser.cost == (2, 4 + 2)  # the page is stored for visitors without a session
    browser.cookie = "A" * 32
    browser.get("/show")
    assert browser.cost == (1, 4)


def test_a_session_that_a_view_does_not_use_is_no_reason_not_to_share(browser: Browser) -> None:
    browser.get("/plain")
    browser.get("/put?a=1")
    assert "Vary" not in browser.get("/plain").headers
    assert "hit" in browser.get("/plain").headers["Cache-Status"]


@pytest.mark.parametrize("middleware", [(BOTH, SESSIONS), (LIMIT, COMMON, CACHE, SESSIONS)])
def test_a_view_that_has_found_no_session_is_cached_for_visitors_without_one(
    upstash: LocalUpstash, is_async: bool, middleware: tuple[str, ...]
) -> None:
    with project(*middleware, upstash=upstash, **LIMITED, **CACHED):
        first, second = (Browser(upstash, is_async=is_async).get("/show") for _ in range(2))
        assert "; hit" in second.headers["Cache-Status"]
        assert second.headers["Vary"] == "Cookie"
        browser = Browser(upstash, is_async=is_async)
        browser.get("/put?a=mine")
        for _ in range(2):
            mine = browser.get("/show")
            assert "depends on the session" in mine.headers["Cache-Status"]
            assert mine.content != first.content
        assert Browser(upstash, is_async=is_async).get("/show").content == first.content


@pytest.mark.parametrize("middleware", [(BOTH, SESSIONS), (LIMIT, COMMON, CACHE, SESSIONS)])
@pytest.mark.parametrize("path", ["/show", "/ashow", "/put?a=1", "/late", "/alate"])
def test_a_response_that_used_the_session_is_never_shared(
    upstash: LocalUpstash, is_async: bool, path: str, middleware: tuple[str, ...]
) -> None:
    """Even where a rule says that no cookie but that of the theme is of importance."""
    rule = {"path": "/{rest:path}", "ttl": 60, "vary_cookies": ["theme"]}
    with project(*middleware, upstash=upstash, **LIMITED, cache=[rule]):
        browser, other = Browser(upstash, is_async=is_async), Browser(upstash, is_async=is_async)
        browser.get("/put?a=mine")
        browser.get("/plain")
        assert "hit" in other.get("/plain").headers["Cache-Status"]
        browser.get(path)
        assert "hit" not in other.get(path).headers["Cache-Status"]


@pytest.mark.parametrize("path", ["/late", "/alate"])
def test_what_changes_while_the_body_is_produced_is_saved_into_an_existing_session(
    browser: Browser, path: str
) -> None:
    browser.get("/put?a=1")
    assert browser.get(path).whole == b"first 1"
    assert browser.entries() == {"a": "1", "late": 1}


def test_a_change_within_an_entry_is_saved_though_modified_is_not_set(browser: Browser) -> None:
    browser.get("/put?a=1")
    browser.get("/nested")
    browser.get("/nested")
    assert browser.entries()["cart"] == [1, 1]


def test_no_cache_may_send_the_cookie_of_one_client_to_another(browser: Browser) -> None:
    response = browser.get("/public")
    assert browser.cookie
    assert response["Cache-Control"] == 'public, max-age=60, no-cache="Set-Cookie"'


def test_a_login_gives_another_key_and_a_logout_ends_the_session(browser: Browser) -> None:
    browser.get("/put?a=1")
    before = browser.cookie
    browser.get("/log_in")
    logged_in = browser.cookie
    assert logged_in != before
    assert browser.entries() == {"a": "1", "user": 7}
    response = browser.get("/log_out")
    assert response.cookies["sessionid"]["max-age"] == 0
    for old in (before, logged_in):
        assert old is not None
        browser.cookie = old
        assert browser.entries() == {}


def test_async_views_log_in_and_out(browser: Browser) -> None:
    browser.get("/alog_in")
    assert browser.get("/ashow").json() == {"user": 7}
    browser.get("/alog_out")
    assert browser.cookie is None


def test_a_cookie_of_an_unknown_session_is_neither_adopted_nor_deleted(browser: Browser) -> None:
    """A late response would otherwise delete the cookie of a login that has just succeeded."""
    browser.cookie = "a" * 32
    assert "sessionid" not in browser.get("/show").cookies
    assert browser.get("/put?a=1").cookies["sessionid"].value != "a" * 32


def test_a_save_into_a_session_that_was_ended_is_a_400(upstash: LocalUpstash) -> None:
    def overtaken(request: Any) -> HttpResponse:
        request.session["a"] = 2
        SessionStore(request.session.session_key).delete()
        return HttpResponse("put")

    more = override_settings(ROOT_URLCONF=Urls(**{**VIEWS, "overtaken": overtaken}))
    with project(BOTH, SESSIONS, upstash=upstash, **LIMITED), more:
        browser = Browser(upstash)
        browser.get("/put?a=1")
        assert browser.get("/overtaken").status_code == 400


def test_nothing_of_a_failed_response_is_saved(browser: Browser) -> None:
    browser.get("/put?a=1")
    browser.get("/broken")
    assert browser.entries() == {"a": "1"}


def test_the_timeout_is_extended_once_in_a_twentieth_and_only_if_django_says_so(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.get("/put?a=1")
    upstash.advance(settings.SESSION_COOKIE_AGE / 10)
    assert "sessionid" not in browser.get("/show").cookies
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        assert "sessionid" in browser.get("/show").cookies
        assert "sessionid" not in browser.get("/show").cookies
        assert browser.cost[0] == 1


OUTAGE = pytest.mark.parametrize(
    "middleware", [(BOTH, SESSIONS), (SESSIONS,), (CACHE, SESSIONS)], ids=["both", "alone", "cache"]
)


@OUTAGE
def test_an_outage_logs_nobody_out_and_sets_no_cookie(
    upstash: LocalUpstash, middleware: tuple[str, ...], is_async: bool
) -> None:
    with project(*middleware, upstash=upstash, **LIMITED, **CACHED):
        browser = Browser(upstash, is_async=is_async)
        browser.get("/log_in")
        key = browser.cookie
        with upstash.faults(fault="refuse"):
            for path in ("/show", "/ashow", "/put?b=1", "/aput?b=1", "/plain", "/late"):
                response = browser.get(path)
                assert response.status_code == 200
                assert "sessionid" not in response.cookies
            for path in ("/log_in", "/alog_in", "/log_out", "/alog_out", "/bind", "/revoke_all"):
                response = browser.get(path)
                assert response.status_code == 503
                assert response.headers["Retry-After"] == "5"
                assert "sessionid" not in response.cookies
            new = Browser(upstash, is_async=is_async)
            assert new.get("/put?b=1").status_code == 200
            assert new.cookie is None
            assert new.get("/log_in").status_code == 503
        assert browser.cookie == key
        assert browser.entries() == {"user": 7}


@pytest.mark.parametrize("fault", Fault)
def test_no_fault_becomes_an_error_a_logout_or_a_false_confirmation(
    upstash: LocalUpstash, fault: Fault
) -> None:
    wire = {"redis": None, "url": upstash.url, "token": upstash.token, "deadline": 0.3}
    with project(BOTH, SESSIONS, upstash=upstash, **LIMITED, **wire):
        reader, visitor, leaver = Browser(upstash), Browser(upstash), Browser(upstash)
        for browser in (reader, leaver):
            browser.get("/log_in")
        with upstash.faults(fault=fault.value):
            for path in ("/show", "/put?b=1"):
                assert reader.get(path).status_code == 200
            came, left = visitor.get("/log_in"), leaver.get("/log_out")
        assert {came.status_code, left.status_code} <= {200, 503}
        assert reader.entries()["user"] == 7
        assert (visitor.entries() == {"user": 7}) == (came.status_code == 200)
        if left.status_code == 200:
            assert leaver.entries() == {}
        else:
            assert "sessionid" not in left.cookies


def test_with_on_error_closed_what_cannot_be_saved_is_a_503(upstash: LocalUpstash) -> None:
    mapping = {"sessions": {"on_error": "closed"}}
    with project(SESSIONS, upstash=upstash, **mapping):
        browser = Browser(upstash)
        browser.get("/put?a=1")
        with upstash.faults(fault="refuse"):
            new = Browser(upstash)
            assert new.get("/put?a=1").status_code == 503
            assert new.get("/plain").status_code == 200
        assert browser.entries() == {"a": "1"}


def test_with_django_s_own_middleware_an_outage_logs_nobody_out_either(
    upstash: LocalUpstash,
) -> None:
    with project(DJANGOS, upstash=upstash):
        browser = Browser(upstash)
        browser.get("/log_in")
        key = browser.cookie
        with upstash.faults(fault="refuse"):
            assert browser.get("/show").status_code == 200
            assert browser.get("/put?a=1").status_code == 200
            assert browser.get("/log_in").status_code == 400
            assert browser.get("/log_out").status_code == 400
        assert browser.cookie == key
        assert browser.entries() == {"user": 7}


def test_what_was_dropped_is_reported(upstash: LocalUpstash) -> None:
    events: list[object] = []
    with project(BOTH, SESSIONS, upstash=upstash, **LIMITED, observers=[events.append]):
        browser = Browser(upstash)
        browser.get("/put?a=1")
        with upstash.faults(fault="refuse"):
            browser.get("/put?b=1")
    seen = [event for event in events if isinstance(event, SessionSaved)]
    assert seen == [
        SessionSaved("created", True),
        SessionSaved("saved", False, "the session could not be loaded"),
    ]


def test_overlapping_requests_that_change_different_entries_lose_nothing(
    upstash: LocalUpstash,
) -> None:
    barrier = threading.Barrier(5)

    def meet(request: Any, name: str) -> HttpResponse:
        request.session.get("a")
        barrier.wait()
        request.session[name] = 1
        return HttpResponse("put")

    views = {**VIEWS, "meet/<str:name>": meet}
    more = override_settings(ROOT_URLCONF=Urls(**views))
    with project(BOTH, SESSIONS, upstash=upstash, **LIMITED), more:
        browser = Browser(upstash)
        browser.get("/put?a=1")
        key = browser.cookie
        assert key is not None

        def request(name: str) -> None:
            own = Browser(upstash)
            own.cookie = key
            own.get(f"/meet/{name}")

        threads = [threading.Thread(target=request, args=(f"n{i}",)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(browser.entries()) == 6


def test_a_wrong_setting_is_said_at_startup(upstash: LocalUpstash) -> None:
    said = pytest.raises(ImproperlyConfigured, match=r"set SESSION_COOKIE_SAMESITE instead")
    with project(SESSIONS, upstash=upstash, sessions={"same_site": "strict"}), said:
        Client().get("/plain")


def test_with_another_engine_the_middleware_is_django_s(
    upstash: LocalUpstash, is_async: bool
) -> None:
    engine = "django.contrib.sessions.backends.signed_cookies"
    more = override_settings(SESSION_ENGINE=engine)
    with project(BOTH, SESSIONS, upstash=upstash, **LIMITED), more:
        browser = Browser(upstash, is_async=is_async)
        browser.get("/put?a=1")
        assert browser.entries() == {"a": "1"}


def again(request: Any) -> HttpResponse:
    """Log in once more, while another request ends the session before its key is changed."""
    session = request.session
    assert session["cart"] == "1"
    SessionStore(session.session_key).flush()
    session["user"] = "7"
    session.update({"b": "2"})
    session.cycle_key()
    return HttpResponse("welcome")


async def aagain(request: Any) -> HttpResponse:
    session = request.session
    assert await session.aget("cart") == "1"
    await SessionStore(session.session_key).aflush()
    await session.aset("user", "7")
    await session.aupdate({"b": "2"})
    await session.abind("7")
    return HttpResponse("welcome")


def revoked(request: Any) -> HttpResponse:
    """The user's sessions are revoked between the change of the key and the binding."""
    session = request.session
    session.cycle_key()
    SessionStore().revoke_all("7")
    session["user"] = "7"
    session["b"] = "2"
    session.bind("7")
    return HttpResponse("welcome")


@pytest.mark.parametrize("view", [again, aagain, revoked])
def test_a_login_whose_session_was_ended_meanwhile_stores_all_that_it_has_set(
    upstash: LocalUpstash, is_async: bool, view: Any
) -> None:
    """Also what was the same in the session that has ended; of that nothing is left."""
    more = override_settings(ROOT_URLCONF=Urls(**{**VIEWS, "again": view}))
    with project(BOTH, SESSIONS, upstash=upstash, **LIMITED), more:
        browser = Browser(upstash, is_async=is_async)
        browser.get("/put?cart=1&b=2&user=7")
        browser.get("/bind")
        assert browser.get("/put?user=7").content == b"put"
        assert browser.get("/again").content == b"welcome"
        assert browser.entries() == {"user": "7", "b": "2"}


def test_a_page_that_shows_the_session_s_key_is_never_shared(
    upstash: LocalUpstash, is_async: bool
) -> None:
    def key(request: Any) -> HttpResponse:
        return HttpResponse(f"key {request.session.session_key}")

    def available(request: Any) -> HttpResponse:
        return HttpResponse(f"available {request.session.available}")

    more = override_settings(ROOT_URLCONF=Urls(**VIEWS, key=key, available=available))
    rule = {"path": "/{rest:path}", "ttl": 60, "vary_cookies": []}
    with project(BOTH, SESSIONS, upstash=upstash, cache=[rule]), more:
        browser, other = Browser(upstash, is_async=is_async), Browser(upstash, is_async=is_async)
        browser.get("/put?a=1")
        for path in ("/key", "/available"):
            assert browser.get(path).headers["Vary"] == "Cookie"
            assert "hit" not in other.get(path).headers["Cache-Status"]


def test_what_reads_a_session_shows_no_key() -> None:
    lookup = SessionLookup(Pipeline(()), "0secret0", "", ("0secret0",))
    assert "0secret0" not in repr(lookup)
