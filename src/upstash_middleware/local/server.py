"""`LocalUpstash`: the whole local server as one object, for scripts and for tests.

What a user does with a server lives here; how it runs is the business of `running`, and what it
answers that of `service`.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio.to_thread

from upstash_middleware.local.console.addresses import CONSOLE
from upstash_middleware.local.console.door import Door
from upstash_middleware.local.embedded import EmbeddedValkey
from upstash_middleware.local.errors import LocalUpstashError
from upstash_middleware.local.running import RunningServer
from upstash_middleware.local.service import Tokens
from upstash_middleware.local.weather import CLEAR, Weather, parse_weather

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from upstash_middleware.local.bill import Bill
    from upstash_middleware.local.transport import InProcessTransport

_NOWHERE: Final = "http://upstash.invalid"


class LocalUpstash:
    """An Upstash Redis of your own, over HTTP on this machine.

    ::

        with LocalUpstash() as upstash:
            redis = upstash_redis.Redis(url=upstash.url, token=upstash.token)

    Use it with ``with`` or ``async with``.  It runs in a thread of its own, beside a Valkey that
    it starts and stops, in memory unless `data` names a directory to keep the data in; or over the
    server at `redis`, a URL such as ``redis://127.0.0.1:6379/0``.  `port` 0 takes a free one.
    With ``listen=False`` there is no socket for HTTP, and `transport` is the way in.

    Raises ValueError for settings that contradict each other; entering raises LocalUpstashError
    when the port is taken, or when there is no Valkey to be had.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        read_only_token: str | None = None,
        redis: str | None = None,
        data: str | Path | None = None,
        weather: Weather = CLEAR,
        listen: bool = True,
    ) -> None:
        if redis is not None and data is not None:
            raise ValueError(
                "data keeps the embedded Valkey's data; the server at the redis address "
                "keeps its own: give one of the two"
            )
        self.host = host
        self.port: int = port
        self.token: str = secrets.token_hex(16) if token is None else token
        self.read_only_token: str = (
            secrets.token_hex(16) if read_only_token is None else read_only_token
        )
        if self.token == self.read_only_token:
            raise ValueError("token and read_only_token should differ")
        self.redis_url: str = redis or ""
        """The address of the Redis server behind, for any Redis client."""
        self._given_redis = redis
        self._data = None if data is None else Path(data)
        self._first_weather = weather
        self._listen = listen
        self._valkey: EmbeddedValkey | None = None
        self._running: RunningServer | None = None

    @property
    def url(self) -> str:
        """The value for UPSTASH_REDIS_REST_URL."""
        if not self._listen:
            return _NOWHERE
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The two environment variables that the SDKs read."""
        return {
            "UPSTASH_REDIS_REST_URL": self.url,
            "UPSTASH_REDIS_REST_TOKEN": self.token,
        }

    @property
    def console_url(self) -> str:
        """The console's address for a browser, with the key that opens it."""
        return f"{self.url}{CONSOLE.decode()}?key={Door.of(self.token).key}"

    @property
    def transport(self) -> InProcessTransport:
        """A transport for `httpx.Client` and `httpx.AsyncClient` that needs no socket."""
        from upstash_middleware.local.transport import InProcessTransport  # noqa: PLC0415 - httpx

        return InProcessTransport(self._alive.submit)

    def start(self) -> None:
        """Start; returns when requests are answered.  Raises LocalUpstashError."""
        if self._running is not None:
            raise LocalUpstashError("this local Upstash is running already")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        store_url = self.redis_url
        if self._given_redis is None:
            self._valkey = EmbeddedValkey(self._data)
            self._valkey.start()
            self.redis_url, store_url = self._valkey.redis_url, self._valkey.socket_url
        self._running = RunningServer(
            store_url,
            Tokens(self.token, self.read_only_token),
            self._first_weather,
            (self.host, self.port) if self._listen else None,
        )
        if self._valkey is not None:
            self._valkey.watch(self._running.valkey_process_id())
        self.port = self._running.address[1]

    def stop(self) -> None:
        """Stop the server, and its Valkey; nothing happens when it is not running."""
        if self._running is not None:
            self._running.stop()
            self._running = None
        if self._valkey is not None:
            self._valkey.stop()
            self._valkey = None

    def bill(self) -> Bill:
        """What was used since the start or the last reset."""
        return self._alive.service.meter.read()

    def reset_bill(self) -> None:
        """Begin a new bill."""
        self._alive.service.reset_bill()

    def flush(self) -> None:
        """Empty the database, scripts and functions included; costs nothing on the bill."""
        self._alive.call(self._alive.flush())

    def set_weather(self, weather: Weather | None = None, /, **settings: Any) -> None:
        """Change the weather: to `weather`, or by the settings of `Weather`; clear without any.

        ``set_weather(fault="drop-after", times=1)``.  Raises ValueError, naming the setting.
        """
        self._alive.change_weather(parse_weather(settings) if weather is None else weather)

    @contextmanager
    def weather(self, weather: Weather | None = None, /, **settings: Any) -> Iterator[None]:
        """The same for the length of a ``with`` block; then the weather is as it was before."""
        before = self._alive.service.weather.now
        self.set_weather(weather, **settings)
        try:
            yield
        finally:
            self.set_weather(before)

    @property
    def _alive(self) -> RunningServer:
        if self._running is None:
            raise LocalUpstashError("this local Upstash is not running: use it in a `with` block")
        return self._running

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await anyio.to_thread.run_sync(self.stop)
