"""Client and AsyncClient: pipelines performed over a transport, for threads and for event loops.

They hold what lives as long as a process does (the opened transport, the sync token) and drive
``calls``; what is sent, sent again, and read is decided there. Nothing is opened before the first
call, and nothing that was opened is used on the other side of a fork, or of a sleep.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from upstash_middleware.errors import UpstashError
from upstash_middleware.upstash.calls import Deadline, Session, calls_for
from upstash_middleware.upstash.process import OnePerProcess
from upstash_middleware.upstash.protocol import as_members, encode
from upstash_middleware.upstash.sync_token import SyncToken
from upstash_middleware.upstash.transport import open_async_transport, open_transport
from upstash_middleware.upstash.waking import Waking
from upstash_middleware.upstash.watching import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from upstash_middleware.core.effects import Command, Pipeline, Reply
    from upstash_middleware.upstash.breaker import Breaker
    from upstash_middleware.upstash.calls import Calls
    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.gathering import Gatherings
    from upstash_middleware.upstash.gathering_threads import ThreadGathering
    from upstash_middleware.upstash.protocol import Call
    from upstash_middleware.upstash.transport import AsyncTransport, Library, Transport
    from upstash_middleware.upstash.watching import Watch


class Client:
    """Performs pipelines for threads; one may be used by all of them.

    ``deadline`` is in seconds, for every pipeline that sets none. ``transport`` names the HTTP
    library instead of having it chosen, or is what makes a Transport of one's own: it is called
    in each process that needs one. ``sync_token`` and ``breaker`` are shared by the clients of
    one database; without a breaker every call is made. ``coalesce`` lets pipelines of threads that
    meet share calls (``gathering_threads``). ``watch`` is told how each pipeline went,
    in the thread that asked.
    """

    def __init__(  # noqa: PLR0913 - keyword arguments, each a setting of its own
        self,
        credentials: Credentials,
        *,
        deadline: float = 1.0,
        transport: Library | Callable[[Credentials], Transport] | None = None,
        sync_token: SyncToken | None = None,
        coalesce: bool = True,
        breaker: OnePerProcess[Breaker] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._deadline = deadline
        self._session = Session(sync_token or SyncToken(), credentials.token)
        self._breaker = breaker
        self._watch = watch
        self._transport = OnePerProcess(lambda: _transport(credentials, transport))
        self._coalesce = coalesce
        self._gathering = OnePerProcess(self._make_gathering)
        self._waking = OnePerProcess(Waking)
        self._retired: OnePerProcess[list[Transport]] = OnePerProcess(list)

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        """Perform the pipeline and return its replies in order, each failed one as its error.

        Raises UpstashError for the call as a whole, within the pipeline's deadline; ValueError
        for arguments that cannot travel.
        """
        if not pipeline.commands:
            return []
        if self._watch is None:
            return self._execute(pipeline)
        with Watched(self._watch, pipeline.commands) as watched:
            return watched.answered(self._execute(pipeline))

    def _execute(self, pipeline: Pipeline) -> list[Reply]:
        if self._breaker is not None:
            self._breaker.get().check()
        self._transport.get()
        deadline = _deadline(pipeline, self._deadline)
        if self._coalesce and (members := as_members(pipeline.commands)) is not None:
            return self._gathering.get().execute(pipeline, members, deadline)
        call = encode([command.args for command in pipeline.commands])
        return self._perform(call, pipeline.commands, deadline, repeat=pipeline.reads_only)

    def _perform(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        if self._waking.get().has_slept():
            self._retire()
        transport = self._transport.get()
        calls = calls_for(call, commands, deadline, self._session, repeat=repeat)
        with _passing(self._breaker):
            return _driven(calls, transport)

    def _make_gathering(self) -> ThreadGathering:
        from upstash_middleware.upstash.gathering_threads import ThreadGathering  # noqa: PLC0415

        return ThreadGathering(self._perform, self._session.secret)

    def _retire(self) -> None:
        """Leave the opened transport to the calls that it has in flight, until the next time."""
        before, opened = self._retired.forget(), self._transport.forget()
        if opened is not None:
            self._retired.get().append(opened)
        for transport in before or ():
            transport.close()

    def close(self) -> None:
        """Close what was opened; a later call opens it anew."""
        self._retire()
        self._retire()


class AsyncClient:
    """Performs pipelines for event loops; one may be used by several, in turn and at once.

    The parameters are Client's; ``transport`` makes an AsyncTransport, and pipelines that meet on
    an event loop share calls (``gathering``).
    """

    def __init__(  # noqa: PLR0913 - keyword arguments, each a setting of its own
        self,
        credentials: Credentials,
        *,
        deadline: float = 1.0,
        transport: Library | Callable[[Credentials], AsyncTransport] | None = None,
        sync_token: SyncToken | None = None,
        coalesce: bool = True,
        breaker: OnePerProcess[Breaker] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._deadline = deadline
        self._session = Session(sync_token or SyncToken(), credentials.token)
        self._breaker = breaker
        self._watch = watch
        self._transport = OnePerProcess(lambda: _async_transport(credentials, transport))
        self._under_trio = OnePerProcess(
            lambda: _async_transport(credentials, transport or "httpx")
        )
        self._waking = OnePerProcess(Waking)
        self._retired: OnePerProcess[list[AsyncTransport]] = OnePerProcess(list)
        self._coalesce = coalesce
        self._gatherings = OnePerProcess(self._make_gatherings)
        """Made with the first transport, which pipelines need not open then."""

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
        with Watched(watch, pipeline.commands) as watched:
            return watched.answered(await self._execute(pipeline))

    def _execute(self, pipeline: Pipeline) -> Coroutine[Any, Any, list[Reply]]:
        if self._breaker is not None:
            self._breaker.get().check()
        here = self._here()
        gatherings = None
        if self._coalesce and here is self._transport:
            gatherings = self._gatherings.get()
        else:
            here.get()
        deadline = _deadline(pipeline, self._deadline)
        if gatherings is not None and (members := as_members(pipeline.commands)) is not None:
            return gatherings.here().execute(pipeline, members, deadline)
        call = encode([command.args for command in pipeline.commands])
        return self._perform(call, pipeline.commands, deadline, repeat=pipeline.reads_only)

    async def _perform(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        if self._waking.get().has_slept():
            await self._retire()
        transport = self._here().get()
        calls = calls_for(call, commands, deadline, self._session, repeat=repeat)
        with _passing(self._breaker):
            return await _adriven(calls, transport)

    def _make_gatherings(self) -> Gatherings:
        from upstash_middleware.upstash.gathering import Gatherings  # noqa: PLC0415 - loads asyncio

        self._transport.get()
        return Gatherings(self._perform, self._session.secret)

    async def aclose(self) -> None:
        """Close what was opened; a later call opens it anew."""
        await self._retire()
        await self._retire()

    async def _retire(self) -> None:
        """Do the same as ``Client._retire`` with this event loop's transport."""
        before, opened = self._retired.forget(), self._here().forget()
        if opened is not None:
            self._retired.get().append(opened)
        for transport in before or ():
            await transport.aclose()

    def _here(self) -> OnePerProcess[AsyncTransport]:
        """Return where this event loop's transport is: trio has one of its own."""
        trio = sys.modules.get("trio")
        under_trio = trio is not None and trio.lowlevel.in_trio_run()
        return self._under_trio if under_trio else self._transport


async def _nothing() -> list[Reply]:
    return []


def _driven(calls: Calls, transport: Transport) -> list[Reply]:
    step: Callable[[Any], tuple[Call, float]] = calls.send
    value: Any = None
    while True:
        try:
            call, seconds = step(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            step, value = calls.send, transport.send(call, seconds)
        except UpstashError as error:
            step, value = calls.throw, error


async def _adriven(calls: Calls, transport: AsyncTransport) -> list[Reply]:
    step: Callable[[Any], tuple[Call, float]] = calls.send
    value: Any = None
    while True:
        try:
            call, seconds = step(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            step, value = calls.send, await transport.send(call, seconds)
        except UpstashError as error:
            step, value = calls.throw, error


def _passing(breaker: OnePerProcess[Breaker] | None) -> AbstractContextManager[None]:
    return nullcontext() if breaker is None else breaker.get().passing()


def _deadline(pipeline: Pipeline, default: float) -> Deadline:
    """Start the clock: connecting counts, loading the wire once in a process does not."""
    seconds = default if pipeline.deadline is None else pipeline.deadline
    return Deadline(seconds, time.monotonic() + seconds, time.monotonic)


def _transport(
    credentials: Credentials, choice: Library | Callable[[Credentials], Transport] | None
) -> Transport:
    if choice is None or isinstance(choice, str):
        return open_transport(credentials, choice)
    return choice(credentials)


def _async_transport(
    credentials: Credentials, choice: Library | Callable[[Credentials], AsyncTransport] | None
) -> AsyncTransport:
    if choice is None or isinstance(choice, str):
        return open_async_transport(credentials, choice)
    return choice(credentials)
