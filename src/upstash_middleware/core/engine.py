"""The engine: passes a request through its parts: rate limit, cache and sessions, outermost first.

It joins the commands of all parts into one pipeline, and combines the parts' responses in order. If
a part fails, the response continues without it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from upstash_middleware.core.flow import Flow, Pipeline, joined, together
from upstash_middleware.errors import (
    ConfigurationError,
    ConnectionLost,
    NotStorable,
    UpstashError,
)
from upstash_middleware.events import InternalError
from upstash_middleware.messages import HTTPRequest, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.flow import Reply
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import ResponseHead


class PartExchange:
    """A request and its response in one part of the engine. Parts override methods they need."""

    __slots__ = ()

    decision: Decision | None = None
    """The decision about the request, if the part makes one."""
    response: Response | None = None
    """A response to send without calling the application; None to call it."""
    refresh: Any = None
    """A background revalidation with its ``request`` and ``exchange``, or None."""
    holds: bool = False
    """Whether the request may hold data on Redis that expires unless it is renewed."""
    watches: bool = False
    """Whether ``request_to_forward`` or ``chunk`` is overridden."""
    saves: bool = False
    """Whether ``save`` must run before the response's head is sent."""
    only_adds: bool = False
    """Whether the part only adds ``added_lines`` to the head."""

    @property
    def locks(self) -> bool:
        """Whether the part has a lock that other processes wait for."""
        return False

    @property
    def keeps(self) -> bool:
        """Whether the part needs the rest of the body."""
        return True

    @property
    def uses_session(self) -> bool:
        """Whether the application has read or written the client's session so far."""
        return False

    @property
    def changes_cookie(self) -> bool:
        """Whether the response sets the session's cookie."""
        return False

    @property
    def absent_cookie(self) -> str:
        """The name of the session's cookie if the session is empty and will not be saved.

        All clients without that cookie have an equal, empty session.
        """
        return ""

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        """Return the request for the application, which may have an additional validator."""
        return request

    def save(self) -> Flow[None] | None:
        """Return the flow to run before the response's head is sent; None if there is none."""
        return None

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Process the response's head; return the head or response to send.

        A Response replaces the application's response, whose body is dropped, such as a stored
        response that a 304 has validated. A returned head whose status has no body is sent without
        the application's body, which is still passed to ``chunk``.
        """
        return head

    def added_lines(
        self, status: int, lines: Sequence[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        """Return the field lines to add to a head, with names in lower case."""
        raise NotImplementedError

    def failed(self) -> Response | None:
        """Return the response to send if the application raised before its response, or None."""
        return None

    def chunk(self, data: bytes) -> None:
        """Process a piece of the application's body."""

    def unseen(self, *, certainly: bool) -> None:
        """Note that the server sends the body itself, so ``chunk`` is not or may not be called."""

    def forbid_storing(self, why: str, *, client_left: bool) -> None:
        """Forbid storing the response for a reason that only the adapter knows."""

    def forbid_sharing(self, *, sets_cookie: bool, absent_cookie: str = "") -> None:
        """Forbid sharing the response, which depends on the client's session.

        A response that sets the session's cookie must not be stored even for its own user. A
        response that depends on an empty session is correct for all clients without
        ``absent_cookie``.
        """

    def renewal(self) -> Flow[None] | None:
        """Return the flow that renews data on Redis; None if it is not due."""
        return None

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock; None while other processes should wait."""
        return None

    def drop(self) -> None:
        """Cancel what the part has begun, because the response is not sent; ``finish`` follows."""

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002
        """Return the flow to run after the last byte; None if there is none.

        Called once, however the request ends. ``complete`` is False if ``chunk`` did not get every
        byte: the application raised, the client left, the response was cut short, or the server
        sent a file itself. It decides whether the response is stored, but not what is charged.
        """
        return None


class Prepared(Struct, eq=False):
    """A request with the commands whose replies a part needs."""

    pipeline: Pipeline


Received = PartExchange | Flow[PartExchange | None] | None
Step = PartExchange | Prepared | Flow[PartExchange | None] | None


class Part:
    """A part of the engine: rate limit, cache or sessions. It never raises UpstashError."""

    def detached(self) -> PartExchange | None:
        """Return the exchange of a request without a client, such as a background revalidation."""
        return None

    def prepare(self, request: HTTPRequest) -> Step:
        """Begin a request: return its exchange, the commands that it needs, or a flow.

        None if the part has nothing to do.
        """
        raise NotImplementedError

    def receive(self, prepared: Any, replies: list[Reply] | UpstashError) -> Received:
        """Process the replies to the commands of ``prepare``, or the error of the call."""
        raise NotImplementedError

    def interrupted(self, prepared: Any) -> None:
        """Note that the call was interrupted, so that ``receive`` is not called."""

    async def begin(self, request: HTTPRequest) -> PartExchange | None:
        """Begin a request in this part alone. A flow."""
        return await self.finish_step(self.prepare(request))

    async def finish_step(self, step: Step) -> PartExchange | None:
        """Return the exchange that results from a step. A flow."""
        if isinstance(step, Prepared):
            try:
                replies = await step.pipeline
            except UpstashError as error:
                step = self.receive(step, error)
            except (Exception, GeneratorExit):
                raise
            except BaseException:
                self.interrupted(step)
                raise
            else:
                step = self.receive(step, replies)
        return step if step is None or isinstance(step, PartExchange) else await step


class Engine:
    """Passes requests through its parts, outermost first."""

    def __init__(self, parts: Sequence[Part], *, observe: Observer) -> None:
        self.parts: tuple[Part, ...] = tuple(parts)
        self.observe: Observer = observe

    def prepare(
        self, request: HTTPRequest, inner: Engine | None = None
    ) -> Begun | Exchange | Flow[Exchange]:
        """Begin a request. The parts of ``inner``, the next engine, share the pipeline.

        Returns the pipeline to send, an exchange if there is nothing to send, or a flow if a part
        needs more than one pipeline. Raises only ConfigurationError, if credentials are missing.
        """
        parts = self.parts if inner is None else self.parts + inner.parts
        steps: list[Any] = []
        pipeline: Pipeline | None = None
        for part in parts:
            try:
                step = part.prepare(request)
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - a bug here must not break the response
                self.observe(InternalError("begin", error))
                step = None
            steps.append(step)
            if step is None:
                continue
            if isinstance(step, Prepared):
                own = step.pipeline
                pipeline = own if pipeline is None else joined([pipeline, own])
            elif isinstance(step, PartExchange):
                if pipeline is not None and step.refresh is not None:
                    # An interruption would have to cancel the background revalidation.
                    return self._begin_together(request, inner, parts, steps)
                if step.response is not None:
                    break
            else:
                return self._begin_together(request, inner, parts, steps)
        if pipeline is None:
            return self.exchange(request, inner, steps)
        return Begun(pipeline, self, request, inner, parts, steps)

    async def begin(self, request: HTTPRequest, inner: Engine | None = None) -> Exchange:
        """Begin a request, for callers that can await a flow.

        If it is interrupted, it finishes the exchanges that have begun.
        """
        begun = self.prepare(request, inner)
        if isinstance(begun, Begun):
            try:
                replies = await begun.pipeline
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - each part handles the error
                begun = begun.receive(error)
            else:
                begun = begun.receive(replies)
        return begun if isinstance(begun, Exchange) else await begun

    async def begin_in_turn(self, request: HTTPRequest) -> Exchange:
        """Begin a request in each part after the outer parts have let it pass. A flow."""
        begun: list[PartExchange] = []
        try:
            for part in self.parts:
                if _has_response(await self._guarded(part.begin, request, begun)):
                    break
        except (Exception, GeneratorExit):
            raise
        except BaseException:
            await self.abandon(begun)
            raise
        return Exchange(self, request, begun)

    async def _begin_together(
        self,
        request: HTTPRequest,
        inner: Engine | None,
        parts: tuple[Part, ...],
        steps: list[Any],
    ) -> Exchange:
        """Join the pipelines of parts that may need several; ``steps`` are the first results."""
        begun: list[PartExchange] = []
        flows = [
            *(self._guarded(part.finish_step, step, begun) for part, step in zip(parts, steps)),  # noqa: B905
            *(self._guarded(part.begin, request, begun) for part in parts[len(steps) :]),
        ]
        try:
            results = await together(*flows, enough=_has_response)
        except (Exception, GeneratorExit):  # no part has begun, or the flow was closed
            raise
        except BaseException:
            await self.abandon(begun)
            raise
        return self.exchange(request, inner, results)

    async def _guarded(
        self,
        function: Callable[[Any], Flow[PartExchange | None]],
        given: Any,
        begun: list[PartExchange],
    ) -> PartExchange | None:
        try:
            result = await function(given)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug here must not break the response
            self.observe(InternalError("begin", error))
            return None
        if result is not None:
            begun.append(result)
        return result

    async def abandon(self, begun: Sequence[PartExchange]) -> None:
        """Finish the exchanges of an interrupted request. A flow."""
        for one in begun:
            try:
                one.drop()
                if (flow := one.finish(complete=False)) is not None:
                    await flow
            except Exception as error:  # noqa: BLE001 - the interruption is raised again
                self.observe(InternalError("begin", error))

    def exchange(
        self, request: HTTPRequest, inner: Engine | None, results: list[PartExchange | None]
    ) -> Exchange:
        """Return the exchange of all parts, including those of ``inner`` if they were reached."""
        if inner is None:
            return Exchange(self, request, results)
        own, further = results[: len(self.parts)], results[len(self.parts) :]
        if any(map(_has_response, own)):  # the inner engine is not reached
            return Exchange(self, request, results)
        return Exchange(self, request, own, Exchange(inner, request, further))


class Begun(Prepared, eq=False):
    """A request whose parts wait for the replies of one pipeline."""

    _engine: Engine
    _request: HTTPRequest
    _inner: Engine | None
    _parts: tuple[Part, ...]
    _steps: list[Any]

    def receive(self, replies: list[Reply] | Exception) -> Exchange | Flow[Exchange]:
        """Pass the replies, or the error of the call, to the parts.

        Returns a flow if a part needs more than one pipeline.
        """
        if not isinstance(replies, (list, UpstashError)):  # a bug, or a custom transport's error
            self._engine.observe(InternalError("begin", replies))
            replies = ConnectionLost(f"the call to Upstash raised {type(replies).__name__}")
        steps, end, more = self._steps, 0, False
        for index, step in enumerate(steps):
            if not isinstance(step, Prepared):
                continue
            own = replies
            if len(steps) > 1 and isinstance(replies, list):
                begin, end = end, end + len(step.pipeline.commands)
                own = replies[begin:end]
            result: Received = None
            try:
                result = self._parts[index].receive(step, own)
            except Exception as error:  # noqa: BLE001 - a bug here must not break the response
                self._engine.observe(InternalError("begin", error))
            steps[index] = result
            if result is not None and not isinstance(result, PartExchange):
                more = True
        return (
            self._run_flows() if more else self._engine.exchange(self._request, self._inner, steps)
        )

    def interrupted(self) -> None:
        """Note that the call was interrupted."""
        for part, step in zip(self._parts, self._steps):  # noqa: B905 - some were not begun
            if isinstance(step, Prepared):
                part.interrupted(step)

    async def _run_flows(self) -> Exchange:
        """Run the flows of parts, outermost first, until one has a response."""
        steps, stopped = self._steps, False
        try:
            for index, step in enumerate(steps):
                if isinstance(step, Coroutine):
                    steps[index] = None
                    try:
                        steps[index] = _without_waiting(step) if stopped else await step
                    except Exception as error:  # noqa: BLE001 - as in ``prepare``
                        self._engine.observe(InternalError("begin", error))
                stopped = stopped or _has_response(steps[index])
        except GeneratorExit:
            raise
        except BaseException:
            await self._engine.abandon([one for one in steps if isinstance(one, PartExchange)])
            raise
        finally:
            for step in steps:
                if isinstance(step, Coroutine):
                    step.close()
        return self._engine.exchange(self._request, self._inner, steps)


def _without_waiting(flow: Flow[PartExchange | None]) -> PartExchange | None:
    """Run a flow up to its first call, only for its events: its result is not sent."""
    try:
        flow.send(None)
    except StopIteration as end:
        return cast("PartExchange | None", end.value)
    flow.close()
    return None


def _has_response(begun: PartExchange | None) -> bool:
    return begun is not None and begun.response is not None


class Exchange(Struct, eq=False):
    """A request and its response in an engine.

    If there is a ``response``, an adapter sends it. Otherwise it calls the application with
    ``request``, sends the result of ``head``, and passes each piece of the body to ``chunk``. If a
    part is ``holding``, it runs ``renewal`` between two pieces. It calls ``finish`` exactly once. A
    part that fails is left out from then on.
    """

    engine: Engine
    request: HTTPRequest
    """The request for the application."""
    _begun: Sequence[PartExchange | None]
    """The exchanges of the parts, outermost first."""
    inner: Exchange | None = None
    """The exchange of the next engine inside, which is passed on to it."""
    _parts: list[PartExchange] = []
    _unreached: Sequence[PartExchange] = ()
    refresh: Exchange | None = None
    """The background revalidation of a stale response, until ``take_refresh`` is called."""
    holding: Sequence[PartExchange] = ()
    """The parts with data on Redis that must be renewed. Usually none."""
    watching: Sequence[PartExchange] = ()
    """The parts that process the body."""
    locking: PartExchange | None = None
    """The part that has a lock that other processes wait for."""
    saving: PartExchange | None = None
    """The part with the session that must be saved before the head is sent."""
    session: PartExchange | None = None
    """The part with the client's session: in this exchange, or in an outer middleware's."""
    caches: Sequence[Exchange] = ()
    """The exchanges of outer middleware that may store this response."""
    decision: Decision | None = None
    """The rate limit's decision for the application."""
    response: Response | None = None
    """The response to send; None if the application must be called."""

    @property
    def parts(self) -> Sequence[PartExchange]:
        """The exchanges of the parts, outermost first."""
        return self._parts

    @property
    def only_adds(self) -> bool:
        """Whether the parts only add ``added_lines`` to the head."""
        parts = self._parts
        if self.session is not None:
            return False
        return not parts or (len(parts) == 1 and parts[0].only_adds)

    @property
    def passes_body(self) -> bool:
        """Whether the parts do nothing between the head and the end of the body."""
        if self.session is not None and self.caches:
            return False
        return not (self.watching or self.holding)

    def __post_init__(self) -> None:  # noqa: PLR0912
        parts, response = self._parts, None
        for part in self._begun:
            if part is None:
                continue
            if response is not None:
                self._unreached = (*self._unreached, part)
                self._drop(part)
                continue
            parts.append(part)
            if self.decision is None:
                self.decision = part.decision
            if part.holds:
                self.holding = (*self.holding, part)
            if part.watches:
                self.watching = (*self.watching, part)
                if part.locks:
                    self.locking = part
            if part.saves:
                self.saving = self.session = part
            if (response := part.response) is not None:
                if (refresh := part.refresh) is not None:
                    own = [refresh.exchange, *(each.detached() for each in self.engine.parts)]
                    self.refresh = Exchange(self.engine, refresh.request, own)
                outside = len(parts) - 1
                self.response = self._outward_from(outside, response) if outside else response
        if response is not None or not self.watching:
            return
        for part in self.watching:
            try:
                self.request = part.request_to_forward(self.request)
            except Exception as error:  # noqa: BLE001 - the request continues without this part
                self._leave_out(part, "request", error)

    def save(self) -> Flow[None] | None:
        """Return the flow to run before ``head`` to save the session; None if it is not due.

        Called by the adapter if a part is ``saving``. The flow raises NotStorable for a value that
        cannot be stored.
        """
        part = self.saving
        if part is None:
            return None
        try:
            flow = part.save()
        except Exception as error:  # noqa: BLE001 - the response continues without this part
            self._leave_out(part, "save", error)
            return None
        return None if flow is None else self._run_save(part, flow)

    async def _run_save(self, part: PartExchange, flow: Flow[None]) -> None:
        try:
            await flow
        except NotStorable:
            raise
        except Exception as error:  # noqa: BLE001 - the response continues without this part
            self._leave_out(part, "save", error)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Process the head of the application's response; return the head or response to send.

        If a Response is returned, the application's body is neither sent nor passed to ``chunk``.
        If the returned head has no body, the application's body is not sent, but passed to
        ``chunk``.
        """
        if self.session is not None:
            self.forbid_sharing()
        outgoing: ResponseHead | Response = head
        for part in reversed(self._parts):
            try:
                if isinstance(outgoing, Response):
                    outgoing = _outward(part, outgoing)
                else:
                    outgoing = part.head(outgoing)
            except Exception as error:  # noqa: BLE001 - the response continues without this part
                self._leave_out(part, "head", error)
        return outgoing

    def added_lines(
        self, status: int, lines: Sequence[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        """Return the field lines to add to a head, if the exchange ``only_adds``."""
        for part in self._parts:
            try:
                return part.added_lines(status, lines)
            except Exception as error:  # noqa: BLE001 - the response continues without this part
                self._leave_out(part, "head", error)
        return ()

    def failed(self) -> Response | None:
        """Return the response to send if the application raised before its response, or None.

        It is a stored response that may replace an error (RFC 5861 §4).
        """
        if self.session is not None:
            self.forbid_sharing()
        for index, part in reversed(list(enumerate(self._parts))):
            try:
                response = part.failed()
            except Exception as error:  # noqa: BLE001 - the application's exception is raised
                self._leave_out(part, "failed", error)
            else:
                if response is not None:
                    return self._outward_from(index, response)
        return None

    def chunk(self, data: bytes) -> None:
        """Process a piece of the application's body, if any part is ``watching``."""
        for part in self.watching:
            try:
                part.chunk(data)
            except Exception as error:  # noqa: BLE001 - the response continues without this part
                self._leave_out(part, "chunk", error)

    def renewal(self) -> Flow[None] | None:
        """Return the flow that renews the request's slots and locks; None if it is not due.

        Called by the adapter between two pieces of the body if any part is ``holding``. It is not
        called before the first piece, which should not be delayed.
        """
        due: list[Flow[None]] = []
        for part in self.holding:
            try:
                flow = part.renewal()
            except Exception as error:  # noqa: BLE001 - the response continues without it
                self.engine.observe(InternalError("renewal", error))
            else:
                if flow is not None:
                    due.append(self._guarded("renewal", flow))
        return _all(due) if due else None

    def unseen(self, *, certainly: bool = True) -> None:
        """Note that the server sends the body itself, so ``chunk`` is not or may not be called.

        Called before ``head`` if the adapter knows it by then.
        """
        for part in self.watching:
            part.unseen(certainly=certainly)

    def forbid_storing(self, why: str, *, client_left: bool = False) -> None:
        """Forbid storing the response for a reason that only the adapter knows.

        Called before ``head`` if the adapter knows the reason by then.
        """
        for part in self.watching:
            part.forbid_storing(why, client_left=client_left)

    def forbid_sharing(self) -> None:
        """Forbid sharing the response if the application has used the client's session.

        Called by the adapter before each message of the response if there is a ``session``, and by
        ``head`` and ``finish``.
        """
        session = self.session
        if session is None or not (self.watching or self.caches) or not session.uses_session:
            return
        for exchange in (self, *self.caches):
            exchange.note_session(
                sets_cookie=session.changes_cookie, absent_cookie=session.absent_cookie
            )

    def note_session(self, *, sets_cookie: bool, absent_cookie: str) -> None:
        """Forbid sharing the response, which depends on a session of any middleware.

        ``absent_cookie`` is described at ``PartExchange.absent_cookie``.
        """
        for part in self.watching:
            part.forbid_sharing(sets_cookie=sets_cookie, absent_cookie=absent_cookie)

    @property
    def kept(self) -> bool:
        """Whether any part needs the rest of the body."""
        return any(part.keeps for part in self.watching)

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock; None if there is nothing to release.

        Called by the adapter if a part is ``locking``: after the head is known, and after the first
        piece but before it is sent, because the client may read slowly.
        """
        flow = None if self.locking is None else self.locking.release()
        if flow is None:
            return None
        self.locking = None
        return self._guarded("release", flow)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Return the flow to run after the last byte; None if there is none.

        ``complete`` is False if ``chunk`` did not get every byte: the application raised, the
        client left, the response was cut short, or the server sent a file itself.
        """
        if self.session is not None:
            self.forbid_sharing()
        pending: list[Flow[None]] = []
        if self.refresh is not None:
            self.refresh.drop()
        ended: Sequence[Any] = self._parts
        if self._unreached or self.inner or self.refresh:  # the last two were not taken
            others = (*self._unreached, self.inner, self.refresh)
            ended = [*self._parts, *[one for one in others if one is not None]]
        for one in ended:
            try:
                flow = one.finish(complete=complete and one in self._parts)
            except Exception as error:  # noqa: BLE001 - the response was already sent
                self.engine.observe(InternalError("finish", error))
            else:
                if flow is not None:
                    pending.append(self._guarded("finish", flow))
        return _all(pending) if pending else None

    def drop(self) -> None:
        """Cancel a background revalidation that is not carried out.

        The caller must still finish it.
        """
        for part in self._parts:
            self._drop(part)

    def take_inner(self) -> Exchange | None:
        """Return the inner engine's exchange once; the caller must finish it."""
        inner, self.inner = self.inner, None
        return inner

    def take_refresh(self) -> Exchange | None:
        """Return the background revalidation of a stale response (RFC 5861 §3) once, or None.

        After the response was sent, the caller calls the application with the exchange's
        ``request``, and finishes the exchange as usual. This response is not sent to a client.
        """
        refresh, self.refresh = self.refresh, None
        return refresh

    def _outward_from(self, index: int, response: Response) -> Response:
        """Pass the response of a part through the parts outside of it."""
        for outer in reversed(self._parts[:index]):
            response = _outward(outer, response)
        return response

    async def _guarded(self, where: str, flow: Flow[None]) -> None:
        try:
            await flow
        except Exception as error:  # noqa: BLE001 - the head was already sent
            self.engine.observe(InternalError(where, error))

    def _drop(self, part: PartExchange) -> None:
        try:
            part.drop()
        except Exception as error:  # noqa: BLE001 - the response does not depend on it
            self.engine.observe(InternalError("drop", error))

    def _leave_out(self, part: PartExchange, where: str, error: Exception) -> None:
        self._parts = [other for other in self._parts if other is not part]
        self.watching = [other for other in self.watching if other is not part]
        self.locking = None if self.locking is part else self.locking
        self.saving = None if self.saving is part else self.saving  # ``session`` is kept
        self._unreached = (*self._unreached, part)
        self.engine.observe(InternalError(where, error))


def _outward(part: PartExchange, response: Response) -> Response:
    """Pass a response through an outer part; it keeps its body."""
    head = part.head(response.head)
    return head if isinstance(head, Response) else Response(head, response.body)


async def _all(flows: list[Flow[None]]) -> None:
    await together(*flows)
