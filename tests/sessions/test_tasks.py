"""Sessions within one request: saved early, late, by several tasks, on trio, and interrupted."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.testclient import TestClient

from tests.sessions.site import changes, stored_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.sessions.site import Browser, Site
    from upstash_middleware.local import LocalUpstash


# --- Late ---------------------------------------------------------------------------------------


def streaming(session: Any, act: Callable[[], Any]) -> StreamingResponse:
    """Return a response that does something with the session after its first piece."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        act()
        yield b"last"

    return StreamingResponse(pieces())


def test_a_change_while_the_body_is_sent_is_saved_at_its_end(browser: Browser) -> None:
    browser.sets(cart=[1])
    response = browser.does(lambda session: streaming(session, lambda: session["cart"].append(2)))
    assert response.content == b"firstlast"
    assert browser.entries() == {"cart": [1, 2]}


def test_a_late_change_creates_no_session(browser: Browser, upstash: LocalUpstash) -> None:
    browser.does(lambda session: streaming(session, lambda: session.update(a=1)))
    assert stored_keys(upstash) == []
    assert changes(browser.site.events) == [("saved", False)]


def test_a_late_change_of_a_session_created_before_the_head_is_saved(browser: Browser) -> None:
    def act(session: Any) -> StreamingResponse:
        session["a"] = 1
        return streaming(session, lambda: session.update(b=2))

    browser.does(act)
    assert browser.entries() == {"a": 1, "b": 2}


def test_a_late_login_is_dropped_with_what_it_wrote(browser: Browser) -> None:
    browser.sets(cart=[1])
    before = browser.cookie

    def log_in(session: Any) -> None:
        session["user"] = "ada"
        session.bind("ada")

    browser.does(lambda session: streaming(session, lambda: log_in(session)))
    assert browser.cookie == before
    assert browser.entries() == {"cart": [1]}


def test_a_late_logout_ends_the_session(browser: Browser, upstash: LocalUpstash) -> None:
    browser.sets(cart=[1])
    browser.does(lambda session: streaming(session, session.clear))
    assert stored_keys(upstash) == []
    assert browser.entries() == {}


def test_a_background_task_can_save_into_an_existing_session(browser: Browser) -> None:
    browser.sets(a=1)

    def act(session: Any) -> JSONResponse:
        async def later() -> None:
            session["a"] = 2
            await session.save()

        return JSONResponse(None, background=BackgroundTask(later))

    browser.does(act)
    assert browser.entries() == {"a": 2}


def test_it_cannot_create_one(browser: Browser) -> None:
    def act(session: Any) -> JSONResponse:
        async def later() -> None:
            session["a"] = 2
            with pytest.raises(RuntimeError, match="so no cookie can be set"):
                await session.save()

        return JSONResponse(None, background=BackgroundTask(later))

    assert browser.does(act).status_code == 200


# --- Early --------------------------------------------------------------------------------------


def test_a_session_can_be_saved_before_the_response(browser: Browser) -> None:
    async def act(session: Any) -> Any:
        session["a"] = [1]
        await session.save()
        session["a"].append(2)
        session["b"] = 1
        await session.save()
        del session["b"]
        return dict(session)

    assert browser.does(act).json() == {"a": [1, 2]}
    assert browser.entries() == {"a": [1, 2]}


def test_a_logout_after_an_early_save_ends_what_was_saved(
    browser: Browser, upstash: LocalUpstash
) -> None:
    async def act(session: Any) -> None:
        session["a"] = 1
        await session.save()
        session.clear()

    assert "Max-Age=0" in browser.does(act).headers["set-cookie"]
    assert stored_keys(upstash) == []


def test_a_login_after_the_session_was_ended_elsewhere_has_only_what_is_new(
    browser: Browser, upstash: LocalUpstash
) -> None:
    browser.sets(user="grace", cart=[1])
    elsewhere = browser.like()

    async def act(session: Any) -> None:
        assert session["user"] == "grace"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, end_elsewhere)
        session["cart"].append(2)
        await session.save()
        session["name"] = "ada"
        session.bind("ada")

    def end_elsewhere() -> None:
        from tests.sessions.site import ask  # noqa: PLC0415

        for key in stored_keys(upstash):
            ask(upstash, "DEL", key)

    browser.does(act)
    assert browser.entries() == {"name": "ada"}
    assert elsewhere.entries() == {}


def test_what_was_read_from_an_ended_session_is_never_written_again(
    browser: Browser, upstash: LocalUpstash
) -> None:
    from tests.sessions.site import ask  # noqa: PLC0415

    browser.sets(user="ada", cart=[1])
    (key,) = stored_keys(upstash)

    async def act(session: Any) -> StreamingResponse:
        assert session["user"] == "ada"
        await anyio.to_thread.run_sync(lambda: ask(upstash, "DEL", key))
        session["theme"] = "dark"
        session.regenerate()
        return streaming(session, lambda: session.update(late=1))

    browser.does(act)
    assert browser.entries() == {"theme": "dark", "late": 1}


# --- Several tasks ------------------------------------------------------------------------------


def test_tasks_that_save_at_the_same_time_create_one_session(
    browser: Browser, upstash: LocalUpstash
) -> None:
    async def act(session: Any) -> None:
        async def one(number: int) -> None:
            session[str(number)] = number
            await session.save()

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(one, number)

    browser.does(act)
    assert browser.entries() == {str(number): number for number in range(5)}
    assert len(stored_keys(upstash)) == 1


def test_what_changes_while_a_task_saves_is_saved_as_well(browser: Browser) -> None:
    browser.sets(a=1, b=1, c=1)

    async def act(session: Any) -> None:
        session.update(a=2, d=2)
        del session["b"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.save)
            await anyio.lowlevel.checkpoint()
            session["a"] = 3
            del session["c"]
            del session["d"]

    browser.does(act)
    assert browser.entries() == {"a": 3}


def test_a_logout_while_a_task_saves_wins(browser: Browser, upstash: LocalUpstash) -> None:
    async def act(session: Any) -> None:
        session["a"] = 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.save)
            await anyio.lowlevel.checkpoint()
            session.clear()

    browser.does(act)
    assert stored_keys(upstash) == []
    assert browser.entries() == {}


def test_a_task_that_is_cancelled_while_it_saves_holds_up_no_other(browser: Browser) -> None:
    async def act(session: Any) -> None:
        session["a"] = 1
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.save)
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        session["b"] = 2

    browser.does(act)
    assert browser.entries() == {"a": 1, "b": 2}


def test_sessions_work_on_trio(site: Site) -> None:
    browser = site.browser(backend="trio")

    async def act(session: Any) -> None:
        session["a"] = 1
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(session.save)
        session["b"] = 2

    browser.does(act)
    assert browser.entries() == {"a": 1, "b": 2}


# --- The end of a request -----------------------------------------------------------------------


def test_a_request_leaves_no_reference_cycle_with_its_session(
    browser: Browser,
) -> None:
    seen: list[weakref.ref[Any]] = []

    def act(session: Any) -> None:
        session["a"] = 1
        seen.append(weakref.ref(session))

    browser.sets(a=0)
    site, cookie = browser.site, browser.cookie

    async def serve() -> None:
        site.doing(act)
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [(b"cookie", b"session=" + (cookie or "").encode())],
            "query_string": b"",
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            pass

        await site.app(scope, receive, send)

    with asyncio.Runner() as runner:
        runner.run(serve())
        gc.collect()
        gc.disable()
        try:
            runner.run(serve())
            assert seen[-1]() is None
        finally:
            gc.enable()


def test_a_head_request_saves_like_a_get(browser: Browser) -> None:
    browser.does(lambda session: session.update(a=1), method="HEAD")
    assert browser.entries() == {"a": 1}


def test_paths_that_use_no_sessions_have_none(site_with: Callable[..., Site]) -> None:
    browser = site_with(paths=("/",)).browser()
    browser.sets(a=1)
    with pytest.raises(KeyError, match="session"):
        browser.does(dict, "/elsewhere")
    assert browser.entries() == {"a": 1}


def test_the_test_client_of_starlette_shows_the_error() -> None:
    """``request.session`` without any middleware says so, as in Starlette."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    def show(request: Any) -> JSONResponse:
        return JSONResponse(dict(request.session))

    with pytest.raises(AssertionError, match="SessionMiddleware must be installed"):
        TestClient(Starlette(routes=[Route("/", show)])).get("/")
