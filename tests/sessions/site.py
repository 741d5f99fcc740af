"""A site whose one handler does what a test says, with its session."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware.starlette import SessionMiddleware, UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request

    from upstash_middleware.core.sessions import Session
    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash

SECRET = "a long random text of this application"


class Site:
    """An application behind SessionMiddleware, and what its middleware has reported."""

    def __init__(self, upstash: LocalUpstash, **settings: Any) -> None:
        self.events: list[Event] = []
        self.upstash = upstash
        self._action: Callable[[Session], Any] = lambda _session: None
        self.app: Any = Starlette(
            routes=[
                Route("/", self._handle, methods=["GET", "POST"]),
                Route("/elsewhere", self._handle),
                Route("/sync", self._handle_in_a_thread),
            ]
        )
        shared: dict[str, Any] = {"observers": [self.events.append]}
        if "url" not in settings:
            shared["redis"] = upstash  # in this process, without a socket
        if "sessions" in settings:
            self.app.add_middleware(UpstashMiddleware, **shared, **settings)
        else:
            arguments = {"secret_key": SECRET, **shared, **settings}
            self.app.add_middleware(SessionMiddleware, **arguments)

    def browser(self, scheme: str = "http", **more: Any) -> Browser:
        """Return a new browser, without cookies."""
        return Browser(self, TestClient(self.app, base_url=f"{scheme}://shop.example", **more))

    def doing(self, action: Callable[[Session], Any]) -> None:
        """Have the handler do this from now on."""
        self._action = action

    async def _handle(self, request: Request) -> Response:
        result = self._action(request.scope["session"])
        if inspect.isawaitable(result):
            result = await result
        return result if isinstance(result, Response) else JSONResponse(result)

    def _handle_in_a_thread(self, request: Request) -> Response:
        return JSONResponse(self._action(request.scope["session"]))


class Browser:
    """A browser of the site."""

    def __init__(self, site: Site, client: TestClient) -> None:
        self.site = site
        self.client = client

    def does(
        self, action: Callable[[Session], Any], path: str = "/", method: str = "GET", **more: Any
    ) -> Any:
        """Send a request whose handler does this with the session; return the response."""
        self.site.doing(action)
        return self.client.request(method, path, **more)

    def sets(self, **entries: Any) -> Any:
        """Send a request that stores entries."""
        return self.does(lambda session: session.update(entries))

    def entries(self) -> Any:
        """Return what the session contains, as a request finds it."""
        return self.does(dict).json()

    @property
    def cookie(self) -> str | None:
        """The value of the only cookie."""
        values = [each.value for each in self.client.cookies.jar]
        assert len(values) <= 1
        return values[0] if values else None

    def like(self) -> Browser:
        """Return another browser with the same cookies."""
        other = self.site.browser(str(self.client.base_url.scheme))
        for each in self.client.cookies.jar:
            other.client.cookies.jar.set_cookie(each)
        return other

    def cost(self, action: Callable[[Session], Any]) -> tuple[int, int]:
        """Return the calls and billed commands of a request that does this."""
        self.site.upstash.reset_bill()
        self.does(action)
        bill = self.site.upstash.bill()
        return bill.requests, bill.commands


def untouched(_session: Session) -> None:
    """What a handler does that has nothing to do with the session."""


def stored_keys(upstash: LocalUpstash, pattern: str = "*:session:*") -> list[str]:
    """Return the keys of all sessions, or of what else matches."""
    found = ask(upstash, "KEYS", pattern)
    return sorted(key.decode() for key in found)


def ask(upstash: LocalUpstash, *words: Any) -> Any:
    """Ask Redis."""
    from tests.upstash.support import pipeline  # noqa: PLC0415
    from upstash_middleware.upstash import Client, Credentials  # noqa: PLC0415

    client = Client(Credentials(upstash.url, upstash.token), deadline=20.0)
    try:
        return client.execute(pipeline(words))[0]
    finally:
        client.close()


def changes(events: Sequence[Any]) -> list[tuple[str, bool]]:
    """Return what SessionSaved has reported."""
    return [(each.change, each.saved) for each in events if type(each).__name__ == "SessionSaved"]
