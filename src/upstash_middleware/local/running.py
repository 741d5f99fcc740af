"""A server at work: its event loop in a thread of its own, its socket, its connections.

Only what needs the event loop may live here.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from upstash_middleware.local.errors import LocalUpstashError
from upstash_middleware.local.http1 import HttpConnection
from upstash_middleware.local.service import Service, Tokens, open_service
from upstash_middleware.local.store import Store, StoreUnreachable, parse_address
from upstash_middleware.local.weather import CLEAR, Fault, Weather

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

    from upstash_middleware.local.messages import Request, Response
    from upstash_middleware.local.store import Address
    from upstash_middleware.local.weather import Manner

T = TypeVar("T")

BACKLOG: Final = 1024
_AFTER_THE_ANSWER: Final = 0.01
_BETWEEN_SAMPLES: Final = 1.0


class RunningServer:
    """Serves from the moment it is made until `stop`.  Raises LocalUpstashError."""

    def __init__(
        self, store_url: str, tokens: Tokens, weather: Weather, listen: tuple[str, int] | None
    ) -> None:
        self.address: tuple[str, int] = listen or ("", 0)
        """Host and port, the port as it was given out by the system."""
        self._connections: set[HttpConnection] = set()
        self._orphans: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._door = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="upstash-local", daemon=True
        )
        self._thread.start()
        try:
            self._store = Store(_address(store_url))
            self.service: Service = self.call(self._open(tokens, weather))
            self.call(self._keep_history())
            if listen:
                self.call(self._listen())
            self.change_weather(weather)
        except BaseException:
            self.stop()
            raise

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Run `work` on the server's own loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, request: Request) -> Future[tuple[Response, Manner]]:
        """Answer a request that came by another way than the socket."""
        return asyncio.run_coroutine_threadsafe(self.service.answer(request), self._loop)

    def change_weather(self, weather: Weather) -> None:
        """Change the weather from another thread; it holds when this returns."""
        self.call(self._change_weather(weather))

    async def flush(self) -> None:
        """Empty the database; what was asked for by clients that have left is not done any more."""
        for task in list(self._orphans):
            task.cancel()
        await self.service.flush()

    def valkey_process_id(self) -> str:
        """The process id of the server behind, as it tells it."""
        (info,) = self.call(self._store.run([[b"INFO", b"server"]]))
        lines = info.decode().splitlines() if isinstance(info, bytes) else []
        return next(line[11:] for line in lines if line.startswith("process_id:"))

    def stop(self) -> None:
        """Stop; connections are closed."""
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, tokens: Tokens, weather: Weather) -> Service:
        try:
            service = await open_service(self._store, tokens, weather)
        except StoreUnreachable as error:
            raise LocalUpstashError(str(error)) from error
        service.weather_changed = self._obey
        return service

    async def _listen(self) -> None:
        host, port = self.address
        try:
            self._listener = await self._loop.create_server(
                lambda: HttpConnection(self.service.answer, self._connections, self._orphans),
                host,
                port,
                backlog=BACKLOG,
            )
        except OSError as error:
            raise LocalUpstashError(
                f"cannot listen on {host}:{port}, {error.strerror or error}: "
                "give another port, or port 0 for a free one"
            ) from error
        self.address = (host, self._listener.sockets[0].getsockname()[1])

    async def _keep_history(self) -> None:
        self._sample()

    def _sample(self) -> None:
        """Keep the bill as it is now, again and again."""
        self.service.history.take(self.service.meter.read())
        self._sampling = self._loop.call_later(_BETWEEN_SAMPLES, self._sample)

    async def _change_weather(self, weather: Weather) -> None:
        self.service.weather.change(weather)
        await self._mind_the_door()

    def _obey(self) -> None:
        """Follow weather that was changed over HTTP, once that request is answered."""
        self._loop.call_later(
            _AFTER_THE_ANSWER, lambda: self._loop.create_task(self._mind_the_door())
        )

    async def _mind_the_door(self) -> None:
        """Listen, or refuse connections, as the weather is now."""
        async with self._door:
            if self._reopening is not None:
                self._reopening.cancel()
                self._reopening = None
            weather = self.service.weather.now
            if weather.fault is Fault.REFUSE:
                self._refuse_connections(weather.seconds)
            elif self._listener is None and self.address[1]:
                await self._listen()

    def _refuse_connections(self, seconds: float | None) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._connections):
            connection.abort()
        if seconds is not None:
            self._reopening = self._loop.call_later(
                seconds, lambda: self._loop.create_task(self._change_weather(CLEAR))
            )

    async def _close(self) -> None:
        for timer in (self._reopening, self._sampling):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.abort()
        if hasattr(self, "_store"):
            self._store.close()
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _address(url: str) -> Address:
    try:
        return parse_address(url)
    except ValueError as error:
        raise LocalUpstashError(str(error)) from error
