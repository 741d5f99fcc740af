"""One request's way through the halves: rate limit outside, cache inside.

The engine joins what the halves ask of Upstash into one pipeline, puts their answers in order,
and keeps their faults away from the response. It knows no rule of either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from upstash_middleware.core.effects import together
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import InternalError
from upstash_middleware.messages import Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core import exchange
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request, ResponseHead


class Begins(Protocol):
    """What an engine can begin together with its own halves: another engine."""

    def begin(self, request: Request) -> Flow[Exchange]:
        """Return the flow that decides about the request."""
        ...


class Engine:
    """Decides about requests with the halves it was given, outermost first."""

    def __init__(self, halves: Sequence[exchange.Half], *, observe: Observer) -> None:
        self._halves = tuple(halves)
        self._observe = observe

    def begin(self, request: Request, inner: Begins | None = None) -> Flow[Exchange]:
        """Decide about a request, in one pipeline with ``inner``, which is to see it next.

        A flow. Raises ConfigurationError where credentials are missing, and nothing else.
        Interrupted, it ends what it has begun: nobody will have an exchange to finish.
        """
        if inner is None and len(self._halves) == 1:  # nothing to join
            return self._begin_alone(self._halves[0], request)
        return self._begin_joined(request, inner)

    async def _begin_alone(self, half: exchange.Half, request: Request) -> Exchange:
        part = await self._begin_half(half, request, [])
        return Exchange(self, request, [] if part is None else [part], None, self._observe)

    async def _begin_joined(self, request: Request, inner: Begins | None) -> Exchange:
        ready: list[exchange.Exchange | Exchange] = []
        flows: list[Flow[object]] = [
            self._begin_half(half, request, ready) for half in self._halves
        ]
        if inner is not None:
            flows.append(_begin_inner(inner, request, ready))
        try:
            begun = await together(*flows, enough=_answers)
        except (Exception, GeneratorExit):  # an error begins nothing; else nobody drives this
            raise
        except BaseException:
            await self._abandon(ready)
            raise
        handed: Exchange | None = begun.pop() if inner is not None else None
        parts: list[exchange.Exchange] = [part for part in begun if part is not None]
        return Exchange(self, request, parts, handed, self._observe)

    async def _abandon(self, ready: list[exchange.Exchange | Exchange]) -> None:
        for one in ready:
            try:
                if (flow := one.finish(complete=False)) is not None:
                    await flow
            except Exception as error:  # noqa: BLE001 - what interrupted us is what passes on
                self._observe(InternalError("begin", error))

    async def _begin_half(
        self,
        half: exchange.Half,
        request: Request,
        ready: list[exchange.Exchange | Exchange],
    ) -> exchange.Exchange | None:
        try:
            begun = await half.begin(request)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - no fault of ours may cost a response
            self._observe(InternalError("begin", error))
            return None
        if begun is not None:
            ready.append(begun)
        return begun


class Exchange:
    """One request and its response on their way through an engine.

    An adapter gives ``response`` at once if there is one. Else it calls the application with
    ``request``, sends what ``head`` answers, shows each piece of the body to ``chunk``, and on
    every way out finishes the exchange, once. Between two pieces it drives ``renewal`` where
    somebody is ``holding``. A half that fails is left out from there on.
    """

    __slots__ = (
        "_observe",
        "_parts",
        "_refresh",
        "_unreached",
        "decision",
        "engine",
        "holding",
        "inner",
        "request",
        "response",
        "watching",
    )

    def __init__(
        self,
        engine: Engine,
        request: Request,
        parts: list[exchange.Exchange],
        inner: Exchange | None,
        observe: Observer,
    ) -> None:
        self.engine: Engine = engine
        self.inner = inner
        """What the engine directly inside has already found out, to be handed to it."""
        self._parts = parts
        self.holding: Sequence[exchange.Holding] = ()
        """Who holds something on Redis that has to be renewed; for most requests nobody."""
        self.watching: Sequence[exchange.Exchange] = ()
        """Who sees the body."""
        self._unreached: Sequence[exchange.Exchange] = ()
        self._observe = observe
        self._refresh: Exchange | None = None
        self.decision: Decision | None = None
        """What the rate limit has decided, for the application's handler to read."""
        self.response: Response | None = None
        """The response to give at once, or None: call the application."""
        self.request: Request = request
        """The request as the application shall see it."""
        for index, part in enumerate(parts):
            self.decision = self.decision or part.decision
            if part.holds:
                self.holding = (*self.holding, part)  # type: ignore[assignment,arg-type] # it is one
            if part.watches:
                self.watching = (*self.watching, part)
            if part.response is not None:
                self._parts, self._unreached = parts[: index + 1], parts[index + 1 :]
                self.response = self._ready_response(index, part, part.response)
                return
        for part in parts:
            try:
                self.request = part.request_to_forward(self.request)
            except Exception as error:  # noqa: BLE001 - the request goes on without this half
                self._leave_out(part, "request", error)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """See the application's response head; return what to send in its place.

        After a whole Response the application's body is not sent, nor shown to ``chunk``.
        """
        answer: ResponseHead | Response = head
        for part in reversed(self._parts):
            try:
                answer = _outward(part, answer)
            except Exception as error:  # noqa: BLE001 - the response goes on without this half
                self._leave_out(part, "head", error)
        return answer

    def failed(self) -> Response | None:
        """Return what to send where the application raised before its response began, if anything.

        A stored response that may stand in for an error (RFC 5861 §4).
        """
        for index, part in reversed(list(enumerate(self._parts))):
            try:
                answer = part.failed() if hasattr(part, "failed") else None
            except Exception as error:  # noqa: BLE001 - the application's exception passes on
                self._leave_out(part, "failed", error)
            else:
                if answer is not None:
                    return self._outward_from(index, answer)
        return None

    def chunk(self, data: bytes) -> None:
        """See a piece of the application's body as it passes, where somebody is ``watching``."""
        for part in self.watching:
            try:
                part.chunk(data)
            except Exception as error:  # noqa: BLE001
                self._leave_out(part, "chunk", error)

    def renewal(self) -> Flow[None] | None:
        """Return what renews what the request holds on Redis, or None if nothing is due.

        For an adapter to ask between two pieces of the body, where somebody is ``holding``; not
        before the first, which shall not wait for it.
        """
        flows = [self._renewal_of(part) for part in self.holding]
        due = [self._guarded("renewal", flow) for flow in flows if flow is not None]
        return _all(due) if due else None

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Return what is left to do after the last byte, or None.

        ``complete`` is False where not every byte was shown to ``chunk``: the application raised,
        the client left, the response was cut short, or the server read a file itself.
        """
        pending: list[Flow[None]] = []
        for part in self._parts:
            self._end(part, complete, pending)
        for part in self._unreached:
            self._end(part, False, pending)
        for one in (self.inner, self._refresh):  # what nobody took over has come to nothing
            if one is not None:
                self._end(one, False, pending)
        return _all(pending) if pending else None

    def take_inner(self) -> Exchange | None:
        """Hand over what the inner engine has found out; whoever takes it finishes it."""
        inner, self.inner = self.inner, None
        return inner

    def take_refresh(self) -> Exchange | None:
        """Hand over the fetching anew of what was used stale (RFC 5861 §3), if there is such.

        Whoever takes it calls the application with its ``request`` once the response has gone
        out, and finishes it, as any other; nobody is sent what comes.
        """
        refresh, self._refresh = self._refresh, None
        return refresh

    def _ready_response(self, index: int, part: exchange.Exchange, answer: Response) -> Response:
        """Return a part's response as it comes from inside; take over its refresh, if any."""
        if (refresh := getattr(part, "refresh", None)) is not None:
            parts = [refresh.exchange]
            self._refresh = Exchange(self.engine, refresh.request, parts, None, self._observe)
        return self._outward_from(index, answer)

    def _outward_from(self, index: int, answer: Response) -> Response:
        """Show a part's whole response to the parts outside of it."""
        for outer in reversed(self._parts[:index]):
            answer = cast("Response", _outward(outer, answer))
        return answer

    def _end(
        self, one: Exchange | exchange.Exchange, fully: bool, pending: list[Flow[None]]
    ) -> None:
        try:
            flow = one.finish(complete=fully)
        except Exception as error:  # noqa: BLE001 - the response has long gone out
            self._observe(InternalError("finish", error))
            return
        if flow is not None:
            pending.append(self._guarded("finish", flow))

    def _renewal_of(self, part: exchange.Holding) -> Flow[None] | None:
        try:
            return part.renewal()
        except Exception as error:  # noqa: BLE001 - the response goes on without it
            self._observe(InternalError("renewal", error))
            return None

    async def _guarded(self, where: str, flow: Flow[None]) -> None:
        try:
            await flow
        except Exception as error:  # noqa: BLE001 - the response has gone out, or is on its way
            self._observe(InternalError(where, error))

    def _leave_out(self, part: exchange.Exchange, where: str, error: Exception) -> None:
        self._parts = [other for other in self._parts if other is not part]
        self.watching = [other for other in self.watching if other is not part]
        self._unreached = (*self._unreached, part)
        self._observe(InternalError(where, error))


async def _begin_inner(
    inner: Begins, request: Request, ready: list[exchange.Exchange | Exchange]
) -> Exchange:
    begun = await inner.begin(request)
    ready.append(begun)
    return begun


def _answers(begun: object) -> bool:
    """Whether a half has a response already, so that what is inside of it need not be asked."""
    return getattr(begun, "response", None) is not None


def _outward(part: exchange.Exchange, answer: ResponseHead | Response) -> ResponseHead | Response:
    """Show a half what comes from inside of it; a whole Response keeps its body."""
    if not isinstance(answer, Response):
        return part.head(answer)
    seen = part.head(answer.head)
    return seen if isinstance(seen, Response) else Response(seen, answer.body)


async def _all(flows: list[Flow[None]]) -> None:
    await together(*flows)
