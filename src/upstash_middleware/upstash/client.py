"""Client and AsyncClient: perform pipelines over a transport, for threads and for event loops.

Nothing is opened before the first call, and nothing that was opened is used after a fork, or after
the machine was suspended.

A call is sent a second time only if its connection was never established, or if it only reads and
was lost on the way. A script that the server did not know (``NOSCRIPT``) ran nothing, so it is sent
again in full.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from upstash_middleware.errors import CircuitOpen, CommandError, ConnectionLost, NotConnected
from upstash_middleware.upstash.process import ForkSafeLock, OnePerProcess, SuspendDetector
from upstash_middleware.upstash.protocol import (
    TRANSACTION_PATH,
    Call,
    as_members,
    decode,
    encode,
    encode_transaction,
)
from upstash_middleware.upstash.transport import Deadline, warn_once

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from upstash_middleware.core.flow import Argument, Command, Pipeline, Reply
    from upstash_middleware.upstash.batching import AsyncBatchers, ThreadBatcher
    from upstash_middleware.upstash.breaker import Breaker
    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.transport import AsyncTransport, Transport


class Called(Struct, frozen=True):
    """A pipeline that has ended, ``seconds`` after it was begun."""

    commands: Sequence[Command]
    seconds: float
    error: BaseException | None
    """What was raised, or the first of the commands that failed."""


Watch = Callable[[Called], None]

Library = Literal["sockets", "httpx"]
"""``sockets`` is faster, ``httpx`` supports proxies."""


class Client:
    """Performs pipelines for threads; one client may be used by all of them.

    Args:
        credentials: The database.
        deadline: Seconds for every pipeline that sets none.
        transport: The name of an HTTP library, by default chosen by the URL; or a function that
            creates a custom Transport, called in each process that needs one.
        sync_token: Shared by the clients of one database.
        coalesce: Whether concurrent pipelines share calls (``batching``).
        breaker: Shared by the clients of one database; without one, every call is made.
        quick_breaker: For calls whose deadline is below ``deadline``: a busy machine may miss that,
            which does not mean that other calls would fail.
        watch: Called with how each pipeline ended, in the thread that began it.
    """

    def __init__(  # noqa: PLR0913 - keyword arguments, each a separate setting
        self,
        credentials: Credentials,
        *,
        deadline: float = 1.0,
        transport: Library | Callable[[Credentials], Transport] | None = None,
        sync_token: SyncToken | None = None,
        coalesce: bool = True,
        breaker: OnePerProcess[Breaker] | None = None,
        quick_breaker: OnePerProcess[Breaker] | None = None,
        watch: Watch | None = None,
    ) -> None:
        def opened() -> Transport:
            if transport is None or isinstance(transport, str):
                return open_transport(credentials, transport)
            return transport(credentials)

        self._deadline = deadline
        self._secret = credentials.token
        self._sync_token = sync_token or SyncToken()
        self._breaker = breaker
        self._quick_breaker = quick_breaker or breaker
        self._watch = watch
        self._transport = OnePerProcess(opened)
        self._retired: OnePerProcess[list[Transport]] = OnePerProcess(list)
        self._suspension = OnePerProcess(SuspendDetector)
        self._coalesce = coalesce
        self._batcher = OnePerProcess(self._make_batcher)

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        """Perform the pipeline and return its replies in order, each failed one as its error.

        Raises UpstashError for the call as a whole, within the pipeline's deadline; ValueError
        for arguments that cannot be sent.
        """
        if not pipeline.commands:
            return []
        watch = self._watch
        if watch is None:
            return self._execute(pipeline)
        began = time.perf_counter()
        replies: list[Reply] = []
        error: BaseException | None = None
        try:
            replies = self._execute(pipeline)
        except BaseException as raised:
            error = raised
            raise
        else:
            return replies
        finally:
            _watch(watch, pipeline.commands, began, replies, error)

    def _execute(self, pipeline: Pipeline) -> list[Reply]:
        if self._breaker is not None:
            self._breaker.get().check()
        if pipeline.deadline is None:
            seconds = self._deadline
        else:
            seconds = pipeline.deadline
            if seconds < self._deadline and self._quick_breaker is not None:
                self._quick_breaker.get().check()
        self._transport.get()  # loading it once in a process does not count
        deadline = Deadline(seconds)
        if self._coalesce and (members := as_members(pipeline.commands)) is not None:
            return self._batcher.get().execute(pipeline, members, deadline)
        call = encode([command.args for command in pipeline.commands])
        return self._perform(call, pipeline.commands, deadline, repeat=pipeline.reads_only)

    def _make_batcher(self) -> ThreadBatcher:
        from upstash_middleware.upstash.batching import ThreadBatcher  # noqa: PLC0415 - when used

        return ThreadBatcher(self._perform, self._secret)

    def _perform(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        """Send the call, with retries if needed, and return the replies to the commands."""
        if self._suspension.get().was_suspended():
            self._retire()
        transport = self._transport.get()
        chosen = self._quick_breaker if deadline.seconds < self._deadline else self._breaker
        breaker = None if chosen is None else chosen.get()
        began = None if breaker is None else breaker.begin()
        error: BaseException | None = None
        try:
            replies = self._send(transport, call, len(commands), deadline, repeat=repeat)
            if unknown := _unknown_scripts(replies, commands):
                full = encode([_with_script(commands[index]) for index in unknown])
                again = self._send(transport, full, len(unknown), deadline, repeat=repeat)
                for index, reply in zip(unknown, again, strict=True):
                    replies[index] = reply
        except BaseException as raised:
            error = raised
            raise
        else:
            return replies
        finally:
            if breaker is not None and began is not None:
                breaker.end(began, error)

    def _send(
        self, transport: Transport, call: Call, expected: int, deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        token, once_more = self._sync_token, True
        while True:
            number = token.number_call()
            to_send = Call(call.path, call.headers + token.headers, call.body)
            try:
                response = transport.send(to_send, deadline.left())
            except (NotConnected, ConnectionLost) as error:
                if not (once_more and (repeat or isinstance(error, NotConnected))):
                    raise
                once_more = False
            else:
                token.keep(number, response.sync_token)
                transaction = call.path == TRANSACTION_PATH
                return decode(response, expected, self._secret, transaction=transaction)

    def _retire(self) -> None:
        """Leave the transport to the calls that it has in flight, and close the one before."""
        before, opened = self._retired.forget(), self._transport.forget()
        if opened is not None:
            self._retired.get().append(opened)
        for transport in before or ():
            transport.close()

    def execute_transaction(self, pipeline: Pipeline) -> list[Reply]:
        """Perform the pipeline as a transaction, in a separate call; see ``execute``.

        Raises CommandError if it was discarded.
        """
        if not pipeline.commands:
            return []
        if self._breaker is not None:
            self._breaker.get().check()
        self._transport.get()
        call = encode_transaction([command.args for command in pipeline.commands])
        deadline = Deadline(self._deadline if pipeline.deadline is None else pipeline.deadline)
        return self._perform(call, pipeline.commands, deadline, repeat=False)

    def separate(self, breaker: OnePerProcess[Breaker] | None) -> Client:
        """Return a client over the same connections that shares no call and no circuit with this.

        A slow command there delays no call here, and does not open the circuit here.
        """
        other = copy(self)
        other._breaker = other._quick_breaker = breaker  # noqa: SLF001
        other._batcher = OnePerProcess(other._make_batcher)  # noqa: SLF001
        return other

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._retire()
        self._retire()


class AsyncClient:
    """Performs pipelines for event loops; several may use one client, also concurrently.

    The parameters are Client's; ``transport`` makes an AsyncTransport.
    """

    def __init__(  # noqa: PLR0913 - keyword arguments, each a separate setting
        self,
        credentials: Credentials,
        *,
        deadline: float = 1.0,
        transport: Library | Callable[[Credentials], AsyncTransport] | None = None,
        sync_token: SyncToken | None = None,
        coalesce: bool = True,
        breaker: OnePerProcess[Breaker] | None = None,
        quick_breaker: OnePerProcess[Breaker] | None = None,
        watch: Watch | None = None,
    ) -> None:
        def opened(choice: Library | Callable[[Credentials], AsyncTransport] | None) -> Any:
            if choice is None or isinstance(choice, str):
                return open_async_transport(credentials, choice)
            return choice(credentials)

        self._deadline = deadline
        self._secret = credentials.token
        self._sync_token = sync_token or SyncToken()
        self._breaker = breaker
        self._quick_breaker = quick_breaker or breaker
        self._watch = watch
        self._transport: OnePerProcess[AsyncTransport] = OnePerProcess(lambda: opened(transport))
        self._under_trio: OnePerProcess[AsyncTransport] = OnePerProcess(
            lambda: opened(transport or "httpx")
        )
        self._retired: OnePerProcess[list[AsyncTransport]] = OnePerProcess(list)
        self._suspension = OnePerProcess(SuspendDetector)
        self._coalesce = coalesce
        self._batchers = OnePerProcess(self._make_batchers)

    def execute(self, pipeline: Pipeline) -> Coroutine[Any, Any, list[Reply]]:
        """Return a coroutine that does the same as ``Client.execute`` on an event loop.

        What is known without waiting is raised at once: CircuitOpen, and the ValueError.
        """
        if not pipeline.commands:
            return _nothing()
        if self._watch is None:
            return self._execute(pipeline)
        return self._watched(self._watch, pipeline)

    async def _watched(self, watch: Watch, pipeline: Pipeline) -> list[Reply]:
        began = time.perf_counter()
        replies: list[Reply] = []
        error: BaseException | None = None
        try:
            replies = await self._execute(pipeline)
        except BaseException as raised:
            error = raised
            raise
        else:
            return replies
        finally:
            _watch(watch, pipeline.commands, began, replies, error)

    def _execute(self, pipeline: Pipeline) -> Coroutine[Any, Any, list[Reply]]:
        if self._breaker is not None:
            self._breaker.get().check()
        if pipeline.deadline is None:
            seconds = self._deadline
        else:
            seconds = pipeline.deadline
            if seconds < self._deadline and self._quick_breaker is not None:
                self._quick_breaker.get().check()
        transport = self._here()
        transport.get()  # loading it once in a process does not count
        deadline = Deadline(seconds)
        if (
            self._coalesce
            and transport is self._transport
            and (members := as_members(pipeline.commands)) is not None
        ):
            return self._batchers.get().here().execute(pipeline, members, deadline)
        call = encode([command.args for command in pipeline.commands])
        return self._perform(call, pipeline.commands, deadline, repeat=pipeline.reads_only)

    def _make_batchers(self) -> AsyncBatchers:
        from upstash_middleware.upstash.batching import AsyncBatchers  # noqa: PLC0415 - when used

        return AsyncBatchers(self._perform, self._secret)

    async def _perform(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        """Send the call, with retries if needed, and return the replies to the commands."""
        if self._suspension.get().was_suspended():
            await self._retire()
        transport = self._here().get()
        chosen = self._quick_breaker if deadline.seconds < self._deadline else self._breaker
        breaker = None if chosen is None else chosen.get()
        began = None if breaker is None else breaker.begin()
        error: BaseException | None = None
        try:
            replies = await self._send(transport, call, len(commands), deadline, repeat=repeat)
            if unknown := _unknown_scripts(replies, commands):
                full = encode([_with_script(commands[index]) for index in unknown])
                again = await self._send(transport, full, len(unknown), deadline, repeat=repeat)
                for index, reply in zip(unknown, again, strict=True):
                    replies[index] = reply
        except BaseException as raised:
            error = raised
            raise
        else:
            return replies
        finally:
            if breaker is not None and began is not None:
                breaker.end(began, error)

    async def _send(
        self,
        transport: AsyncTransport,
        call: Call,
        expected: int,
        deadline: Deadline,
        *,
        repeat: bool,
    ) -> list[Reply]:
        token, once_more = self._sync_token, True
        while True:
            number = token.number_call()
            to_send = Call(call.path, call.headers + token.headers, call.body)
            try:
                response = await transport.send(to_send, deadline.left())
            except (NotConnected, ConnectionLost) as error:
                if not (once_more and (repeat or isinstance(error, NotConnected))):
                    raise
                once_more = False
            else:
                token.keep(number, response.sync_token)
                transaction = call.path == TRANSACTION_PATH
                return decode(response, expected, self._secret, transaction=transaction)

    async def _retire(self) -> None:
        """Do the same as ``Client._retire`` with this event loop's transport."""
        before, opened = self._retired.forget(), self._here().forget()
        if opened is not None:
            self._retired.get().append(opened)
        for transport in before or ():
            await transport.aclose()

    async def execute_transaction(self, pipeline: Pipeline) -> list[Reply]:
        """Do the same as ``Client.execute_transaction`` on an event loop."""
        if not pipeline.commands:
            return []
        if self._breaker is not None:
            self._breaker.get().check()
        self._here().get()
        call = encode_transaction([command.args for command in pipeline.commands])
        deadline = Deadline(self._deadline if pipeline.deadline is None else pipeline.deadline)
        return await self._perform(call, pipeline.commands, deadline, repeat=False)

    def separate(self, breaker: OnePerProcess[Breaker] | None) -> AsyncClient:
        """Do the same as ``Client.separate``."""
        other = copy(self)
        other._breaker = other._quick_breaker = breaker  # noqa: SLF001
        other._batchers = OnePerProcess(other._make_batchers)  # noqa: SLF001
        return other

    async def aclose(self) -> None:
        """Close the connections; a later call opens them again."""
        await self._retire()
        await self._retire()

    def _here(self) -> OnePerProcess[AsyncTransport]:
        """Return this event loop's transport; trio needs a separate one."""
        trio = sys.modules.get("trio")
        under_trio = trio is not None and trio.lowlevel.in_trio_run()
        return self._under_trio if under_trio else self._transport


# Transports --------------------------------------------------------------------------------------


def open_transport(credentials: Credentials, library: Library | None) -> Transport:
    """Return a transport for threads over ``library``, or else over the one for the URL."""
    if _chosen(library, credentials) == "httpx":
        from upstash_middleware.upstash.httpx_transport import HttpxTransport  # noqa: PLC0415 - loads httpx

        return HttpxTransport(credentials)
    from upstash_middleware.upstash.sockets import SocketsTransport  # noqa: PLC0415 - loads socket

    return SocketsTransport(credentials)


def open_async_transport(credentials: Credentials, library: Library | None) -> AsyncTransport:
    """Return a transport for event loops, like ``open_transport``."""
    if _chosen(library, credentials) == "httpx":
        from upstash_middleware.upstash.httpx_transport import AsyncHttpxTransport  # noqa: PLC0415 - loads httpx

        return AsyncHttpxTransport(credentials)
    from upstash_middleware.upstash.sockets import AsyncSocketsTransport  # noqa: PLC0415 - loads socket

    return AsyncSocketsTransport(credentials)


def _chosen(library: Library | None, credentials: Credentials) -> Library:
    if credentials.transport is not None:
        return "httpx"
    if library is not None:
        return library
    if not credentials.local and _behind_proxy(credentials):
        warn_once("a proxy is set, so calls to Upstash go over httpx, which is slower")
        return "httpx"
    return "sockets"


def _behind_proxy(credentials: Credentials) -> bool:
    """Whether a proxy is set for the URL: in the environment, or in the system's settings."""
    if sys.platform not in {"darwin", "win32"} and not any(
        text and name.lower().endswith("_proxy") for name, text in os.environ.items()
    ):
        return False  # without importing urllib.request, which takes long
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    scheme = credentials.url.partition(":")[0]
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(
        f"{credentials.host}:{credentials.port}"
    )


# Shared by both ----------------------------------------------------------------------------------


class SyncToken:
    """The token that orders calls on replicated databases; one for all clients of a database.

    Upstash responds with an ``Upstash-Sync-Token``. Sent back, it makes a replica wait until it has
    seen what the earlier call wrote, so that clients read their own writes. The token of the call
    that was sent last counts.
    """

    __slots__ = ("_latest", "_numbers", "headers")

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._latest = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        """What the next call sends: nothing before a token has arrived."""

    def number_call(self) -> int:
        """Return this call's place in the order of sending."""
        return next(self._numbers)

    def keep(self, number: int, token: str | None) -> None:
        """Keep the token from the response to call ``number``, unless a later call has one.

        A token that could not be a header field's value is ignored.
        """
        if token is None or not _TOKEN.fullmatch(token):
            return
        with _keeping:
            if number > self._latest:
                self._latest = number
                self.headers = (("Upstash-Sync-Token", token),)


_TOKEN: Final = re.compile(r"[!-~]{1,1024}")
_keeping = ForkSafeLock()


async def _nothing() -> list[Reply]:
    return []


def _watch(
    watch: Watch,
    commands: Sequence[Command],
    began: float,
    replies: Sequence[Reply],
    error: BaseException | None,
) -> None:
    """Report how a pipeline ended, unless the circuit was open."""
    seconds = time.perf_counter() - began
    if error is None:
        error = next((reply for reply in replies if isinstance(reply, CommandError)), None)
    if not isinstance(error, CircuitOpen):
        watch(Called(commands, seconds, error))


def _unknown_scripts(replies: list[Reply], commands: Sequence[Command]) -> list[int]:
    """Return the positions of the scripts that the server did not know."""
    if CommandError not in map(type, replies):
        return []
    return [
        index
        for index, reply in enumerate(replies)
        if isinstance(reply, CommandError) and reply.code == "NOSCRIPT" and commands[index].script
    ]


def _with_script(command: Command) -> tuple[Argument, ...]:
    """Return the command with its script's text in place of the SHA."""
    assert command.script is not None  # noqa: S101
    name = str(command.args[0]).upper().replace("EVALSHA", "EVAL")
    return (name, command.script.text, *command.args[2:])
