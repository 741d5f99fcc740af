"""Takes one request through its parts: the rate limit outside, the cache inside.

The engine joins the commands of its parts into one pipeline, combines their responses in order,
and keeps their failures away from the response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from upstash_middleware.core.flow import together
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import InternalError
from upstash_middleware.messages import Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.flow import Flow
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest, ResponseHead


class PartExchange:
    """One request and its response in one part of the engine; a part overrides what it needs."""

    __slots__ = ()

    decision: Decision | None = None
    """The decision about the request, of a part that decides."""
    response: Response | None = None
    """A response to send without calling the application; None to go on."""
    refresh: Any = None
    """A background revalidation, with its ``request`` and ``exchange``, if one is to follow."""
    holds: bool = False
    """Whether the request may hold something on Redis that expires unless it is renewed."""
    watches: bool = False
    """Whether ``chunk`` does anything."""

    @property
    def locks(self) -> bool:
        """Whether there is a lock for which other processes wait."""
        return False

    @property
    def keeps(self) -> bool:
        """Whether the rest of the body is used."""
        return True

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        """Return the request to call the application with, perhaps with a validator."""
        return request

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Take the response's head; return what to send.

        A whole Response replaces the application's, whose body is then dropped: the stored
        response that a 304 has validated. A head whose status has no body, in place of one that
        has, is sent alone: the application's body is still passed to ``chunk``.
        """
        return head

    def failed(self) -> Response | None:
        """Return what to send where the application raised before its response, if anything."""
        return None

    def chunk(self, data: bytes) -> None:
        """Take a piece of the application's body as it passes."""

    def unseen(self, *, certainly: bool) -> None:
        """Note that the server sends the body itself, so that no piece is seen, or may do so."""

    def forbid(self, why: str, *, client_left: bool) -> None:
        """Forbid storing the response, for a reason that only the adapter sees."""

    def renewal(self) -> Flow[None] | None:
        """Return the flow that renews what expires on Redis; None if that is not due."""
        return None

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock; None while other processes should wait."""
        return None

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002
        """Return the flow to run after the last byte, or None.

        Called once, however the request ends. ``complete`` is False where not every byte was
        passed to ``chunk``: the application raised, the client left, the response was cut short,
        or the server read a file itself. It decides whether to store, and never what to charge.
        """
        return None


class Part(Protocol):
    """The rate limit or the cache."""

    def begin(self, request: HTTPRequest) -> Flow[PartExchange | None]:
        """Return the flow that decides about a request; None if there is nothing to do.

        It never raises an UpstashError.
        """
        ...


class Begins(Protocol):
    """What an engine can begin together with its own parts: another engine."""

    def begin(self, request: HTTPRequest) -> Flow[Exchange]:
        """Return the flow that decides about the request."""
        ...


class Engine:
    """Decides about requests with the parts it was given, outermost first."""

    def __init__(self, parts: Sequence[Part], *, observe: Observer) -> None:
        self._parts = tuple(parts)
        self.observe: Observer = observe

    async def begin(self, request: HTTPRequest, inner: Begins | None = None) -> Exchange:
        """Decide about a request, in one pipeline with ``inner``, which sees it next.

        A flow. Raises ConfigurationError where credentials are missing, and nothing else.
        If interrupted, it finishes the exchanges that it has begun, since it returns none.
        """
        begun: list[PartExchange | Exchange] = []
        if inner is None and len(self._parts) == 1:  # nothing to join
            await self._begin_part(self._parts[0], request, begun)
            return Exchange(self, request, cast("list[PartExchange]", begun))
        flows: list[Flow[object]] = [self._begin_part(part, request, begun) for part in self._parts]
        if inner is not None:
            flows.append(_begin_inner(inner, request, begun))
        try:
            results = await together(*flows, enough=_has_response)
        except (Exception, GeneratorExit):  # no part has begun, or the flow was closed
            raise
        except BaseException:
            await self._abandon(begun)
            raise
        handed: Exchange | None = results.pop() if inner is not None else None
        return Exchange(self, request, [part for part in results if part is not None], handed)

    async def begin_in_turn(self, request: HTTPRequest) -> Exchange:
        """Decide about a request with each part once those further out let it pass. A flow."""
        begun: list[PartExchange | Exchange] = []
        try:
            for part in self._parts:
                if _has_response(await self._begin_part(part, request, begun)):
                    break
        except (Exception, GeneratorExit):
            raise
        except BaseException:
            await self._abandon(begun)
            raise
        return Exchange(self, request, cast("list[PartExchange]", begun))

    async def _begin_part(
        self,
        part: Part,
        request: HTTPRequest,
        begun: list[PartExchange | Exchange],
    ) -> PartExchange | None:
        try:
            result = await part.begin(request)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug here must not break the response
            self.observe(InternalError("begin", error))
            return None
        if result is not None:
            begun.append(result)
        return result

    async def _abandon(self, begun: list[PartExchange | Exchange]) -> None:
        for one in begun:
            try:
                if (flow := one.finish(complete=False)) is not None:
                    await flow
            except Exception as error:  # noqa: BLE001 - the interruption passes on
                self.observe(InternalError("begin", error))


async def _begin_inner(
    inner: Begins, request: HTTPRequest, begun: list[PartExchange | Exchange]
) -> Exchange:
    result = await inner.begin(request)
    begun.append(result)
    return result


def _has_response(begun: object) -> bool:
    return getattr(begun, "response", None) is not None


class Exchange:
    """One request and its response in an engine.

    An adapter sends ``response`` at once if there is one. Else it calls the application with
    ``request``, sends what ``head`` returns, passes each piece of the body to ``chunk``, and
    always finishes the exchange, once. Between two pieces it drives ``renewal`` if any part
    is ``holding``. A part that fails is left out from there on.
    """

    __slots__ = (
        "_parts",
        "_refresh",
        "_unreached",
        "decision",
        "engine",
        "holding",
        "inner",
        "locking",
        "request",
        "response",
        "watching",
    )

    def __init__(
        self,
        engine: Engine,
        request: HTTPRequest,
        parts: list[PartExchange],
        inner: Exchange | None = None,
    ) -> None:
        self.engine: Engine = engine
        self.inner = inner
        """What the engine directly inside has begun, to be handed to it."""
        self._parts = parts
        self._unreached: Sequence[PartExchange] = ()
        self._refresh: Exchange | None = None
        self.holding: Sequence[PartExchange] = ()
        """The parts that hold something on Redis that has to be renewed; for most requests none."""
        self.watching: Sequence[PartExchange] = ()
        """The parts that see the body."""
        self.locking: PartExchange | None = None
        """The part that has a lock for which other processes wait."""
        self.decision: Decision | None = None
        """The rate limit's decision, for the application's handler to read."""
        self.response: Response | None = None
        """The response to send at once, or None: call the application."""
        self.request: HTTPRequest = request
        """The request to call the application with."""
        for index, part in enumerate(parts):
            self.decision = self.decision or part.decision
            if part.holds:
                self.holding = (*self.holding, part)
            if part.watches:
                self.watching = (*self.watching, part)
                if part.locks:
                    self.locking = part
            if part.response is not None:
                self._parts, self._unreached = parts[: index + 1], parts[index + 1 :]
                if (refresh := part.refresh) is not None:
                    self._refresh = Exchange(engine, refresh.request, [refresh.exchange])
                self.response = self._outward_from(index, part.response)
                return
        for part in parts:
            try:
                self.request = part.request_to_forward(self.request)
            except Exception as error:  # noqa: BLE001 - the request goes on without this part
                self._leave_out(part, "request", error)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Take the application's response head; return what to send in its place.

        After a whole Response the application's body is neither sent nor passed to ``chunk``.
        After a head without a body in place of one with a body, it is passed and not sent.
        """
        outgoing: ResponseHead | Response = head
        for part in reversed(self._parts):
            try:
                outgoing = _outward(part, outgoing)
            except Exception as error:  # noqa: BLE001 - the response goes on without this part
                self._leave_out(part, "head", error)
        return outgoing

    def failed(self) -> Response | None:
        """Return what to send where the application raised before its response began, if anything.

        A stored response that may be used if there is an error (RFC 5861 §4).
        """
        for index, part in reversed(list(enumerate(self._parts))):
            try:
                response = part.failed()
            except Exception as error:  # noqa: BLE001 - the application's exception passes on
                self._leave_out(part, "failed", error)
            else:
                if response is not None:
                    return self._outward_from(index, response)
        return None

    def chunk(self, data: bytes) -> None:
        """Take a piece of the application's body as it passes, if any part is ``watching``."""
        for part in self.watching:
            try:
                part.chunk(data)
            except Exception as error:  # noqa: BLE001 - the response goes on without this part
                self._leave_out(part, "chunk", error)

    def renewal(self) -> Flow[None] | None:
        """Return the flow that renews the request's slots and locks, or None if none is due.

        For an adapter to call between two pieces of the body, if any part is ``holding``; not
        before the first, which should not wait for it.
        """
        due: list[Flow[None]] = []
        for part in self.holding:
            try:
                flow = part.renewal()
            except Exception as error:  # noqa: BLE001 - the response goes on without it
                self.engine.observe(InternalError("renewal", error))
            else:
                if flow is not None:
                    due.append(self._guarded("renewal", flow))
        return _all(due) if due else None

    def unseen(self, *, certainly: bool = True) -> None:
        """Note that the server sends the body itself, so that no piece is seen, or may do so.

        To be called before ``head`` where it is known by then.
        """
        for part in self.watching:
            part.unseen(certainly=certainly)

    def forbid(self, why: str, *, client_left: bool = False) -> None:
        """Forbid storing the response, for a reason that only the adapter sees.

        To be called before ``head`` where it is known by then.
        """
        for part in self.watching:
            part.forbid(why, client_left=client_left)

    @property
    def kept(self) -> bool:
        """Whether any part uses the rest of the body."""
        return any(part.keeps for part in self.watching)

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock, or None if there is nothing to release.

        For an adapter to call if a part is ``locking``, once the head is known and after the first
        piece, and before it is sent: the client may read slowly.
        """
        flow = None if self.locking is None else self.locking.release()
        if flow is None:
            return None
        self.locking = None
        return self._guarded("release", flow)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Return the flow to run after the last byte, or None.

        ``complete`` is False where not every byte was passed to ``chunk``: the application raised,
        the client left, the response was cut short, or the server read a file itself.
        """
        pending: list[Flow[None]] = []
        for part in self._parts:
            self._finish(part, complete, pending)
        for part in self._unreached:
            self._finish(part, False, pending)
        for one in (self.inner, self._refresh):  # nothing has taken them
            if one is not None:
                self._finish(one, False, pending)
        return _all(pending) if pending else None

    def take_inner(self) -> Exchange | None:
        """Hand over the inner engine's exchange; the caller finishes it."""
        inner, self.inner = self.inner, None
        return inner

    def take_refresh(self) -> Exchange | None:
        """Hand over the background revalidation of a stale response (RFC 5861 §3), if any.

        The caller calls the application with its ``request`` once the response has been sent, and
        finishes it like any other; its response is sent to no client.
        """
        refresh, self._refresh = self._refresh, None
        return refresh

    def _outward_from(self, index: int, response: Response) -> Response:
        """Pass a part's whole response through the parts outside of it."""
        for outer in reversed(self._parts[:index]):
            response = cast("Response", _outward(outer, response))
        return response

    def _finish(
        self, one: Exchange | PartExchange, complete: bool, pending: list[Flow[None]]
    ) -> None:
        try:
            flow = one.finish(complete=complete)
        except Exception as error:  # noqa: BLE001 - the response was sent long ago
            self.engine.observe(InternalError("finish", error))
            return
        if flow is not None:
            pending.append(self._guarded("finish", flow))

    async def _guarded(self, where: str, flow: Flow[None]) -> None:
        try:
            await flow
        except Exception as error:  # noqa: BLE001 - the response was sent, or is being sent
            self.engine.observe(InternalError(where, error))

    def _leave_out(self, part: PartExchange, where: str, error: Exception) -> None:
        self._parts = [other for other in self._parts if other is not part]
        self.watching = [other for other in self.watching if other is not part]
        self.locking = None if self.locking is part else self.locking
        self._unreached = (*self._unreached, part)
        self.engine.observe(InternalError(where, error))


def _outward(part: PartExchange, outgoing: ResponseHead | Response) -> ResponseHead | Response:
    """Pass what comes from inside through a part; a whole Response keeps its body."""
    if not isinstance(outgoing, Response):
        return part.head(outgoing)
    head = part.head(outgoing.head)
    return head if isinstance(head, Response) else Response(head, outgoing.body)


async def _all(flows: list[Flow[None]]) -> None:
    await together(*flows)
