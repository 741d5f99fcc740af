"""Client and AsyncClient execute pipelines over a transport, for threads and for event loops.

The first call opens the connections. After a fork, or after the machine was suspended, earlier
connections are not used.

A call is retried only if its connection was never established, or if it only reads and the
connection was lost. If the server did not know a script (``NOSCRIPT``), nothing was executed, so
the script is sent again as text.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Self, TypeVar, cast

from msgspec import Struct, field
from msgspec.structs import replace

from upstash_middleware.core.flow import Command
from upstash_middleware.errors import (
    CircuitOpen,
    CommandError,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    Refusal,
    Refused,
    UpstashError,
)
from upstash_middleware.events import CircuitClosed, CircuitOpened
from upstash_middleware.upstash.process import ForkSafeLock, OnePerProcess, current_process
from upstash_middleware.upstash.protocol import (
    TRANSACTION_PATH,
    Call,
    decode,
    encode,
    encode_members,
    encode_transaction,
    pipeline_call,
)
from upstash_middleware.upstash.transport import completed, exceeded, warn_once

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from upstash_middleware.core.flow import Pipeline, Reply
    from upstash_middleware.upstash.batching import AsyncBatcher, ThreadBatcher
    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.transport import AsyncTransport, Transport

T = TypeVar("T")


class Called(Struct, frozen=True):
    """A pipeline that has ended after ``seconds``."""

    commands: Sequence[Command]
    seconds: float
    error: BaseException | None
    """The exception that was raised, or the error of the first failed command."""


Watch = Callable[[Called], None]

Library = Literal["sockets", "httpx"]
"""``sockets`` is faster, ``httpx`` supports proxies."""


class _Client(Generic[T]):
    """The base class of Client and AsyncClient; T is the type of the transport.

    Args:
        credentials: The database.
        deadline: Seconds for each pipeline without its own deadline.
        transport: The name of an HTTP library, by default chosen by the URL; an httpx client of the
            application, which is not closed here; or a function that creates a custom transport and
            is called in each process that needs one.
        sync_token: The token that all clients of one database share.
        coalesce: Whether concurrent pipelines share calls (``batching``).
        breaker: The circuit breaker that the clients of one database share; None for none.
        quick_breaker: The circuit breaker for calls with shorter deadlines than ``deadline``: on a
            busy machine these may be missed although other calls would succeed.
        watch: Called with the result of each pipeline, in the thread that started it.
    """

    kind: ClassVar[Literal["Client", "AsyncClient"]]
    _is_async: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 - keyword arguments, each a separate setting
        self,
        credentials: Credentials,
        *,
        deadline: float = 1.0,
        transport: Any = None,
        sync_token: SyncToken | None = None,
        coalesce: bool = True,
        breaker: OnePerProcess[Breaker] | None = None,
        quick_breaker: OnePerProcess[Breaker] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.credentials = credentials
        self._secret = credentials.token
        self._deadline = deadline
        self._transport = transport
        self._sync_token = sync_token or SyncToken()
        self._coalesce = coalesce
        self._breaker = breaker
        self._quick_breaker = quick_breaker or breaker
        self._watch = watch
        self._opened: OnePerProcess[_Transports[T]] = OnePerProcess(lambda: _Transports(self._open))
        self._process: _ProcessState[T] | None = None

    def _open(self) -> T:
        return cast("T", open_transport(self.credentials, self._transport, self.kind))

    def separate(self, breaker: OnePerProcess[Breaker] | None) -> Self:
        """Return a client with the same connections, but with separate batches and circuit breaker.

        A slow command of one client does not delay the other's calls or open its circuit breaker.
        """
        other = copy(self)
        other._breaker = other._quick_breaker = breaker  # noqa: SLF001
        other._process = None  # noqa: SLF001
        return other

    def _begin(self, pipeline: Pipeline) -> tuple[_ProcessState[T], float]:
        """Return this process's state, and the pipeline's deadline in seconds.

        Raises CircuitOpen.
        """
        here = self._process
        if here is None or here.process != current_process():
            opened = self._opened.get()
            opened.transport()  # loading it does not count against the first call's deadline
            breaker = None if self._breaker is None else self._breaker.get()
            quick = None if self._quick_breaker is None else self._quick_breaker.get()
            here = self._process = _ProcessState(current_process(), opened, breaker, quick, here)
        if (breaker := here.breaker) is not None and breaker.is_open:
            breaker.check()
        seconds = pipeline.deadline
        if seconds is None:
            return here, self._deadline
        if seconds < self._deadline and here.quick_breaker is not None:
            here.quick_breaker.check()
        return here, seconds

    def _start(self, pipeline: Pipeline) -> Coroutine[Any, Any, list[Reply]]:
        """Return a coroutine for a pipeline; raises CircuitOpen, and ValueError as ``encode``."""
        commands = pipeline.commands
        if not commands:
            return _no_replies()
        here, seconds = self._begin(pipeline)
        until = time.monotonic() + seconds
        apart = pipeline.alone or not self._coalesce
        if apart or (members := encode_members(commands)) is None:
            call = encode(commands, self._sync_token.latest)
            return self._perform(call, commands, seconds, until)
        return self._perform(members, commands, seconds, until, self._batcher(here))

    async def _start_transaction(self, pipeline: Pipeline) -> list[Reply]:
        if not pipeline.commands:
            return []
        _, seconds = self._begin(pipeline)
        call = encode_transaction(pipeline.commands, self._sync_token.latest)
        until = time.monotonic() + seconds
        return await self._perform(call, pipeline.commands, seconds, until, may_repeat=False)

    def _batcher(self, here: _ProcessState[T]) -> ThreadBatcher | AsyncBatcher:
        raise NotImplementedError

    async def _perform(  # noqa: C901, PLR0912, PLR0913, PLR0915 - one coroutine less
        self,
        call: Call | bytes,
        commands: Sequence[Command],
        seconds: float,
        until: float,
        batcher: Any = None,
        *,
        may_repeat: bool = True,
    ) -> list[Reply]:
        """Send the call, retry it if necessary, and return the replies to the commands.

        Instead of a call, the encoded commands may be given, which may then be batched with others.
        In a Client, the transport and the batcher block, so this coroutine never waits.
        """
        here, token, now = self._process, self._sync_token, time.monotonic()
        assert here is not None  # noqa: S101
        in_flight: Any = None
        attempt: Attempt | None = None
        error: BaseException | None = None
        if isinstance(call, bytes):
            if batcher is not None:
                in_flight = batcher.enter(commands, call, seconds, until, now)
                if in_flight is not None and type(in_flight) is not int:  # it is part of a batch
                    return await in_flight.replies() if self._is_async else in_flight  # type: ignore[no-any-return]
            call = pipeline_call(call, len(commands), token.latest)
        opened, ahead = here.opened, time.time() - now
        breaker = here.quick_breaker if seconds < self._deadline else here.breaker
        left = until - now
        try:
            if ahead - opened.ahead > GAP_SECONDS and (retired := opened.retire_suspended(ahead)):
                await self._close(retired)
            opened.ahead = ahead
            transport: Any = opened.current or opened.transport()
            attempt = None if breaker is None else breaker.begin()
            if now >= until:
                raise exceeded(seconds)  # noqa: TRY301
            number, repeated, response = next(token.numbers), False, None
            while True:
                try:
                    response = transport.send(call, until - now)
                    if self._is_async:
                        response = await response
                    break
                except (NotConnected, ConnectionLost) as lost:
                    now = time.monotonic()
                    if repeated or now >= until or not _is_repeatable(lost, commands, may_repeat):
                        raise
                    number, call = next(token.numbers), replace(call, sync_token=token.latest)
                    repeated = True
            token.keep(number, response.sync_token)
            is_transaction = call.path == TRANSACTION_PATH
            replies = decode(response, len(commands), self._secret, transaction=is_transaction)
        except DeadlineExceeded:
            error = exceeded(seconds)  # not what was left of the deadline
            raise error from None
        except BaseException as raised:
            error = raised
            raise
        finally:
            if breaker is not None and attempt is not None:
                breaker.end(attempt, error, had_time=left >= min(breaker.slow, seconds / 2))
            if in_flight is not None:
                batcher.end(in_flight)
        if CommandError in map(type, replies) and (unknown := _unknown(replies, commands)):
            await self._send_scripts(unknown, replies, commands, seconds, until, may_repeat)
        return replies

    async def _send_scripts(  # noqa: PLR0913, PLR0917 - the arguments of _perform
        self,
        unknown: list[int],
        replies: list[Reply],
        commands: Sequence[Command],
        seconds: float,
        until: float,
        may_repeat: bool,
    ) -> None:
        """Send the text of scripts that the server did not know, and replace their replies."""
        sent = [_with_text(commands[index]) for index in unknown]
        call = encode(sent, self._sync_token.latest)
        received = await self._perform(call, sent, seconds, until, may_repeat=may_repeat)
        for index, reply in zip(unknown, received, strict=True):
            replies[index] = reply

    async def _close(self, *transports: Any) -> None:
        for transport in transports:
            if transport is not None:
                await transport.aclose() if self._is_async else transport.close()


class _ProcessState(Struct, Generic[T], eq=False):
    """The state of a client in one process: circuit breakers, batchers and transports."""

    process: int
    opened: _Transports[T]
    breaker: Breaker | None
    quick_breaker: Breaker | None
    inherited: _ProcessState[T] | None
    """The parent's state in a forked process, kept unused: its tasks and threads are not here."""
    batcher: ThreadBatcher | None = None
    batchers: dict[int, AsyncBatcher] = field(default_factory=dict)
    """The batchers of event loops, by the loop's id."""


GAP_SECONDS: Final = 5.0
"""If the wall clock has gained this much on the monotonic clock since the last call, the machine
was suspended: it is more than usual clock corrections, and less than the time for which routers
keep silent connections. Setting the wall clock forward counts too, which costs one connection."""


class _Transports(Struct, Generic[T], eq=False):
    """The current transport of a process, and the previous one."""

    open_: Callable[[], T]
    current: T | None = None
    retired: T | None = None
    ahead: float = field(default_factory=lambda: time.time() - time.monotonic())
    """How far the wall clock was ahead of the monotonic clock at the last call."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def transport(self) -> T:
        """Return the transport, which is created on first use."""
        with self.lock:
            if self.current is None:
                self.current = self.open_()
            return self.current

    def retire_suspended(self, ahead: float) -> T | None:
        """Do the same as ``retire`` once, if the wall clock has gained GAP_SECONDS."""
        with self.lock:
            suspended, self.ahead = ahead - self.ahead > GAP_SECONDS, ahead
        return self.retire() if suspended else None

    def retire(self) -> T | None:
        """Leave the transport to its calls in flight; return the previous one, to be closed."""
        with self.lock:
            before, self.retired, self.current = self.retired, self.current, None
            return before


class Client(_Client["Transport"]):
    """Executes pipelines for threads; several threads may share a client."""

    kind: ClassVar[Literal["Client", "AsyncClient"]] = "Client"

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        """Execute the pipeline and return its replies in order; failed commands reply an error.

        Raises UpstashError if the whole call fails, within the pipeline's deadline, and ValueError
        for arguments that cannot be sent.
        """
        watch = self._watch
        if watch is None:
            return completed(self._start(pipeline))
        began = time.perf_counter()
        try:
            replies = completed(self._start(pipeline))
        except BaseException as error:
            _report(watch, pipeline, began, (), error)
            raise
        _report(watch, pipeline, began, replies, None)
        return replies

    @property
    def waiting(self) -> int:
        """The number of pipelines that wait for a call in flight to end."""
        here = self._process
        return here.batcher.waiting if here is not None and here.batcher is not None else 0

    def _batcher(self, here: _ProcessState[Transport]) -> ThreadBatcher:
        if here.batcher is None:
            from upstash_middleware.upstash.batching import ThreadBatcher  # noqa: PLC0415 - when used

            here.batcher = ThreadBatcher(self._perform, self._secret)
        return here.batcher

    def execute_transaction(self, pipeline: Pipeline) -> list[Reply]:
        """Execute the pipeline as a transaction, in a separate call; see ``execute``.

        Raises CommandError if the transaction was discarded.
        """
        return completed(self._start_transaction(pipeline))

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        opened = self._opened.get()
        completed(self._close(opened.retire(), opened.retire()))


class AsyncClient(_Client["AsyncTransport"]):
    """Executes pipelines for event loops; several loops may share a client."""

    kind: ClassVar[Literal["Client", "AsyncClient"]] = "AsyncClient"
    _is_async: ClassVar[bool] = True

    def __init__(
        self, credentials: Credentials, *, is_under_trio: bool = False, **options: Any
    ) -> None:
        super().__init__(credentials, **options)
        self._under_trio: AsyncClient | None = None
        if not is_under_trio:  # trio needs a separate transport
            options |= {"transport": self._transport or "httpx", "coalesce": False}
            options["sync_token"] = self._sync_token
            self._under_trio = AsyncClient(credentials, is_under_trio=True, **options)

    def execute(self, pipeline: Pipeline) -> Coroutine[Any, Any, list[Reply]]:
        """Return a coroutine that does the same as ``Client.execute`` on an event loop.

        Errors that are known at once are raised by this method: CircuitOpen and ValueError.
        """
        if "trio" in sys.modules and (under_trio := self._in_trio()) is not None:
            return under_trio.execute(pipeline)
        performing = self._start(pipeline)
        return performing if self._watch is None else _report_end(self._watch, pipeline, performing)

    def _in_trio(self) -> AsyncClient | None:
        """Return the client for trio if this code runs under trio."""
        trio = sys.modules.get("trio")  # None if its import is blocked
        return self._under_trio if trio is not None and trio.lowlevel.in_trio_run() else None

    def _batcher(self, here: _ProcessState[AsyncTransport]) -> AsyncBatcher:
        loop = sys.modules["asyncio"].get_running_loop()
        batcher = here.batchers.get(id(loop))
        if batcher is None or batcher.loop() is not loop:
            from upstash_middleware.upstash.batching import AsyncBatcher  # noqa: PLC0415 - when used

            known = tuple(here.batchers.items())  # a copy: another thread may add its loop's
            here.batchers = {key: each for key, each in known if not each.is_over}
            batcher = here.batchers[id(loop)] = AsyncBatcher(loop, self._perform, self._secret)
        return batcher

    async def execute_transaction(self, pipeline: Pipeline) -> list[Reply]:
        """Do the same as ``Client.execute_transaction`` on an event loop."""
        if "trio" in sys.modules and (under_trio := self._in_trio()) is not None:
            return await under_trio.execute_transaction(pipeline)
        return await self._start_transaction(pipeline)

    def separate(self, breaker: OnePerProcess[Breaker] | None) -> Self:
        """Do the same as ``Client.separate``."""
        other = super().separate(breaker)
        if self._under_trio is not None:
            other._under_trio = self._under_trio.separate(breaker)  # noqa: SLF001
        return other

    async def aclose(self) -> None:
        """Close the connections; a later call opens new ones."""
        if "trio" in sys.modules and (under_trio := self._in_trio()) is not None:
            return await under_trio.aclose()
        opened = self._opened.get()
        return await self._close(opened.retire(), opened.retire())


# Transports --------------------------------------------------------------------------------------


def open_transport(
    credentials: Credentials, choice: Any, kind: Literal["Client", "AsyncClient"]
) -> Transport | AsyncTransport:
    """Return the transport for a client, according to the setting ``transport``."""
    if callable(choice):
        return choice(credentials)  # type: ignore[no-any-return]
    own = own_client(choice, kind)
    if own is not None or _library(choice, credentials) == "httpx":
        from upstash_middleware.upstash import httpx_transport  # noqa: PLC0415 - loads httpx

        if kind == "AsyncClient":
            return httpx_transport.AsyncHttpxTransport(credentials, own)
        if own is not None:
            return httpx_transport.OwnClientTransport(credentials, own)
        return httpx_transport.HttpxTransport(credentials)
    from upstash_middleware.upstash import sockets  # noqa: PLC0415 - loads socket

    opened = sockets.AsyncSocketsTransport if kind == "AsyncClient" else sockets.SocketsTransport
    return opened(credentials)


def own_client(choice: Any, kind: Literal["Client", "AsyncClient"]) -> Any:
    """Return the application's httpx client of this kind; None if the choice is a name.

    Raises ConfigurationError for an invalid choice, and if only the other kind of client is given.
    """
    if choice is None or (isinstance(choice, str) and choice in {"sockets", "httpx"}):
        return None
    own = getattr(sys.modules.get("httpx"), kind, ())
    for each in choice if isinstance(choice, tuple | list) else [choice]:
        if isinstance(each, own):
            return each
    raise ConfigurationError(
        f"transport is {choice!r}: should be 'httpx', 'sockets' or an httpx.{kind}; where both are "
        "needed, as in Django with sync and async views, give a tuple: "
        "(httpx.Client(…), httpx.AsyncClient(…))"
    )


def _library(library: Library | None, credentials: Credentials) -> Library:
    if credentials.transport is not None:
        return "httpx"
    if library is not None:
        return library
    if not credentials.local and _behind_proxy(credentials):
        warn_once("a proxy is set, so calls to Upstash go over httpx, which is slower")
        return "httpx"
    return "sockets"


def _behind_proxy(credentials: Credentials) -> bool:
    """Whether a proxy is set for the URL, in the environment or the system's settings."""
    if sys.platform not in {"darwin", "win32"} and not any(
        text and name.lower().endswith("_proxy") for name, text in os.environ.items()
    ):
        return False  # avoids importing urllib.request, which is slow
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    scheme = credentials.url.partition(":")[0]
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(
        f"{credentials.host}:{credentials.port}"
    )


# Shared by both ----------------------------------------------------------------------------------


class SyncToken:
    """The token that orders calls on replicated databases; all clients of a database share it.

    Upstash responds with an ``Upstash-Sync-Token``. If the next call contains the token, a replica
    waits until it has the writes of the earlier call, so that clients read their own writes. The
    token of the call that was sent last is used.
    """

    __slots__ = ("_number", "latest", "numbers")

    def __init__(self) -> None:
        self.numbers: itertools.count[int] = itertools.count(1)
        """Numbers for calls, in the order in which they are sent."""
        self.latest: str | None = None
        """The token for the next call."""
        self._number = 0

    def keep(self, number: int, token: str | None) -> None:
        """Keep the token of the response to call ``number``, unless a later call has one.

        A token that is not a valid field value is ignored.
        """
        if token is None or (token != self.latest and not _TOKEN.fullmatch(token)):
            return
        with _keep_sync_token.lock:
            if number > self._number:
                self._number, self.latest = number, token


_TOKEN: Final = re.compile(r"[!-~]{1,1024}")
_keep_sync_token = ForkSafeLock()


async def _no_replies() -> list[Reply]:
    return []


async def _report_end(
    watch: Watch, pipeline: Pipeline, performing: Coroutine[Any, Any, list[Reply]]
) -> list[Reply]:
    began = time.perf_counter()
    try:
        replies = await performing
    except BaseException as error:
        _report(watch, pipeline, began, (), error)
        raise
    _report(watch, pipeline, began, replies, None)
    return replies


def _report(
    watch: Watch,
    pipeline: Pipeline,
    began: float,
    replies: Sequence[Reply],
    error: BaseException | None,
) -> None:
    """Report the result of a pipeline, unless it is empty or the circuit breaker was open."""
    seconds = time.perf_counter() - began
    if error is None:
        error = next((reply for reply in replies if isinstance(reply, CommandError)), None)
    if pipeline.commands and not isinstance(error, CircuitOpen):
        watch(Called(pipeline.commands, seconds, error))


def _is_repeatable(
    error: NotConnected | ConnectionLost, commands: Sequence[Command], may_repeat: bool
) -> bool:
    """Whether a call that failed with this error may be retried."""
    if isinstance(error, NotConnected):
        return True
    return may_repeat and all(command.reads_only for command in commands)


def _unknown(replies: list[Reply], commands: Sequence[Command]) -> list[int]:
    """Return the positions of the scripts that the server did not know."""
    return [
        index
        for index, reply in enumerate(replies)
        if isinstance(reply, CommandError) and reply.code == "NOSCRIPT" and commands[index].script
    ]


def _with_text(command: Command) -> Command:
    """Return the command with its script's text instead of the SHA."""
    assert command.script is not None  # noqa: S101
    name = str(command.args[0]).upper().replace("EVALSHA", "EVAL")
    return Command((name, command.script.text, *command.args[2:]), command.reads_only)


# The circuit breaker -----------------------------------------------------------------------------

REMEMBERED_CALLS: Final = 20
REMEMBERED_SECONDS: Final = 30.0
MIN_BAD_CALLS: Final = 5
"""The circuit opens when at least half of the recorded calls, and this many, were bad."""

FIRST_PAUSE: Final = 0.25
"""Seconds until the first probe; each failed probe doubles the pause."""

_CANCELLED: Final = ""
"""The outcome of a call that was cancelled, or ended by an error that is not Upstash's."""


Attempt = tuple[float, bool]
"""When a call began, and whether it is a probe."""


class Breaker:
    """One database's circuit in one process; safe under threads and event loops.

    *Closed*, every call is made and its outcome is remembered. *Open*, none is. *Half-open*, after
    a pause, one call is made as a probe; it closes the circuit, or opens it for twice as long.

    A call counts as bad if there was no response or a wrong one, if the token was rejected or the
    quota is used up (then every call would fail), or if it was slow. A command that failed does not
    count: Upstash has responded.

    Args:
        slow: Seconds that a call may take before it counts as bad; None for the application's own
            commands, which may take long.
        clock: Counts seconds.
        emit: Called when the circuit opens and when it closes, outside of every lock.
        longest_pause: Seconds between two probes at most.
    """

    def __init__(
        self,
        *,
        slow: float | None,
        clock: Callable[[], float],
        emit: Callable[[CircuitOpened | CircuitClosed], object],
        longest_pause: float = 10.0,
    ) -> None:
        self.slow: float = math.inf if slow is None else slow
        self._is_for_commands = slow is None
        self._longest_pause = longest_pause
        self._clock = clock
        self._emit = emit
        self._lock = threading.Lock()
        self._calls: deque[tuple[float, bool]] = deque(maxlen=REMEMBERED_CALLS)
        self.is_open: bool = False
        self._opened_at = 0.0
        self._pause = FIRST_PAUSE
        self._probe_at = 0.0
        self._probing = False

    def check(self) -> None:
        """Raise CircuitOpen if no call may be made now; takes no lock."""
        if self.is_open and (self._probing or self._clock() < self._probe_at):
            raise CircuitOpen("no call was made: too many recent calls failed or were slow")

    def reset(self) -> None:
        """Close the circuit and forget the calls."""
        with self._lock:
            self.is_open = self._probing = False
            self._calls.clear()

    def begin(self) -> Attempt:
        """Begin a call, which ``end`` has to end; raises CircuitOpen if none may be made."""
        is_probe = False
        if self.is_open:
            with self._lock:
                self.check()
                is_probe = self._probing = self.is_open
        return self._clock(), is_probe

    def end(self, call: Attempt, error: BaseException | None, *, had_time: bool = True) -> None:
        """End a call, with the error that it ended with, which may be a cancellation.

        ``had_time`` is False for a call that waited in this process for most of its deadline: that
        there was no response in the rest says nothing about Upstash.
        """
        began, is_probe = call
        now = self._clock()
        if error is None and not is_probe and not self.is_open and now - began <= self.slow:
            self._calls.append((now, False))
            return
        outcome = None if error is None else _outcome(error)
        if now - began > self.slow and outcome in {None, _CANCELLED}:
            outcome = f"it took {now - began:.2g} s"
        if not had_time and isinstance(error, DeadlineExceeded):
            outcome = _CANCELLED
        event: CircuitOpened | CircuitClosed | None = None
        with self._lock:
            if is_probe:
                self._probing = False
                if outcome is None:
                    self.is_open = False
                    self._calls.clear()
                    event = CircuitClosed(now - self._opened_at)
                elif (
                    outcome != _CANCELLED
                ):  # after one that was cut off, the next call is the probe
                    self._pause = min(self._pause * 2, self._longest_pause)
                    self._probe_at = now + self._pause
            elif (
                not self.is_open and outcome != _CANCELLED
            ):  # else it began before the circuit opened
                self._calls.append((now, outcome is not None))
                if outcome is not None:
                    event = self._open_if_many_are_bad(now, outcome)
        if event is not None:
            self._emit(event)

    def _open_if_many_are_bad(self, now: float, outcome: str) -> CircuitOpened | None:
        recent = [bad for at, bad in self._calls if now - at < REMEMBERED_SECONDS]
        bad = sum(recent)
        if bad < MIN_BAD_CALLS or bad * 2 < len(recent):
            return None
        self.is_open, self._opened_at, self._pause = True, now, FIRST_PAUSE
        self._probe_at = now + self._pause
        return CircuitOpened(bad, len(recent), outcome, self._is_for_commands)


def _outcome(error: BaseException) -> str | None:
    """Return the outcome of a call that raised this error; None if the call counts as good."""
    if not isinstance(error, UpstashError):
        return _CANCELLED
    if isinstance(error, CommandError):
        return None
    if isinstance(error, Refused) and error.kind not in {Refusal.TOKEN, Refusal.QUOTA}:
        return None
    return f"{type(error).__name__}: {error}"
