"""Takes one request through its parts: rate limit, cache, sessions, from the outside in.

The engine joins the commands of its parts into one pipeline, combines their responses in order,
and keeps their failures away from the response.
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
    """Whether ``request_to_forward`` or ``chunk`` does anything."""
    saves: bool = False
    """Whether ``save`` is to be run before the response's head is sent."""
    only_adds: bool = False
    """Whether all that it does with the head is to add ``added_lines``."""

    @property
    def locks(self) -> bool:
        """Whether there is a lock for which other processes wait."""
        return False

    @property
    def keeps(self) -> bool:
        """Whether the rest of the body is used."""
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
        """The name of the session's cookie if the session is empty, and nothing saves it.

        Without that cookie, every client has such a session.
        """
        return ""

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        """Return the request to call the application with, perhaps with a validator."""
        return request

    def save(self) -> Flow[None] | None:
        """Return the flow to run before the response's head is sent; None if it is not needed."""
        return None

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Take the response's head; return what to send.

        A whole Response replaces the application's, whose body is then dropped: the stored
        response that a 304 has validated. A head whose status has no body, in place of one that
        has, is sent alone: the application's body is still passed to ``chunk``.
        """
        return head

    def added_lines(
        self, status: int, lines: Sequence[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        """Return the field lines to add to a head, their names in lower case."""
        raise NotImplementedError

    def failed(self) -> Response | None:
        """Return what to send where the application raised before its response, if anything."""
        return None

    def chunk(self, data: bytes) -> None:
        """Take a piece of the application's body as it passes."""

    def unseen(self, *, certainly: bool) -> None:
        """Note that the server sends the body itself, so that no piece is seen, or may do so."""

    def forbid(self, why: str, *, client_left: bool) -> None:
        """Forbid storing the response, for a reason that only the adapter sees."""

    def forbid_sharing(self, *, sets_cookie: bool, absent_cookie: str = "") -> None:
        """Forbid sharing the response, which depends on the client's session.

        One that sets the session's cookie must not be stored for its own user either. One that
        depends on an empty session is right for all clients without ``absent_cookie``.
        """

    def renewal(self) -> Flow[None] | None:
        """Return the flow that renews what expires on Redis; None if that is not due."""
        return None

    def release(self) -> Flow[None] | None:
        """Return the flow that releases the lock; None while other processes should wait."""
        return None

    def drop(self) -> None:
        """Undo what has begun with a response that is not sent; ``finish`` follows."""

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002
        """Return the flow to run after the last byte, or None.

        Called once, however the request ends. ``complete`` is False where not every byte was
        passed to ``chunk``: the application raised, the client left, the response was cut short,
        or the server read a file itself. It decides whether to store, and never what to charge.
        """
        return None


class Prepared(Struct, eq=False):
    """A request that a part cannot decide about without the replies to some commands."""

    pipeline: Pipeline


Received = PartExchange | Flow[PartExchange | None] | None
Step = PartExchange | Prepared | Flow[PartExchange | None] | None


class Part:
    """The rate limit, the cache or the sessions. It raises no UpstashError."""

    def detached(self) -> PartExchange | None:
        """Return the exchange for a request that no client has sent: a background revalidation."""
        return None

    def prepare(self, request: HTTPRequest) -> Step:
        """Begin a request: with its exchange, with commands, or with a flow if it needs more.

        None if there is nothing to do.
        """
        raise NotImplementedError

    def receive(self, prepared: Any, replies: list[Reply] | UpstashError) -> Received:
        """Go on with the replies to the commands of ``prepare``, or with the error of the call."""
        raise NotImplementedError

    def interrupted(self, prepared: Any) -> None:
        """Note that the call was interrupted: ``receive`` is not called."""

    async def begin(self, request: HTTPRequest) -> PartExchange | None:
        """Decide about a request by this part alone. A flow."""
        return await self.finish_step(self.prepare(request))

    async def finish_step(self, step: Step) -> PartExchange | None:
        """Return what becomes of a step. A flow."""
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
    """Decides about requests with the parts it was given, outermost first."""

    def __init__(self, parts: Sequence[Part], *, observe: Observer) -> None:
        self.parts: tuple[Part, ...] = tuple(parts)
        self.observe: Observer = observe

    def prepare(
        self, request: HTTPRequest, inner: Engine | None = None
    ) -> Begun | Exchange | Flow[Exchange]:
        """Begin a request, in one pipeline with ``inner``, which sees it next.

        Returns what to send to Upstash, an exchange where nothing is to be sent, or a flow where a
        part needs more than one pipeline. Raises ConfigurationError where credentials are missing,
        and nothing else.
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
                    # An interruption would have to undo it.
                    return self._begin_together(request, inner, parts, steps)
                if step.response is not None:
                    break
            else:
                return self._begin_together(request, inner, parts, steps)
        if pipeline is None:
            return self.exchange(request, inner, steps)
        return Begun(pipeline, self, request, inner, parts, steps)

    async def begin(self, request: HTTPRequest, inner: Engine | None = None) -> Exchange:
        """Decide about a request, as the caller of ``prepare`` does without a flow.

        If interrupted, it finishes the exchanges that it has begun, since it returns none.
        """
        begun = self.prepare(request, inner)
        if isinstance(begun, Begun):
            try:
                replies = await begun.pipeline
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - each part handles it
                begun = begun.receive(error)
            else:
                begun = begun.receive(replies)
        return begun if isinstance(begun, Exchange) else await begun

    async def begin_in_turn(self, request: HTTPRequest) -> Exchange:
        """Decide about a request with each part once those further out let it pass. A flow."""
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
        """Join the pipelines of parts of which some need more than one; ``steps`` are the first."""
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
        """Finish what nothing will go on with. A flow."""
        for one in begun:
            try:
                one.drop()
                if (flow := one.finish(complete=False)) is not None:
                    await flow
            except Exception as error:  # noqa: BLE001 - the interruption passes on
                self.observe(InternalError("begin", error))

    def exchange(
        self, request: HTTPRequest, inner: Engine | None, results: list[PartExchange | None]
    ) -> Exchange:
        """Return the exchange of all parts, with that of ``inner`` if it has been begun."""
        if inner is None:
            return Exchange(self, request, results)
        own, further = results[: len(self.parts)], results[len(self.parts) :]
        if any(map(_has_response, own)):  # nothing inside is reached
            return Exchange(self, request, results)
        return Exchange(self, request, own, Exchange(inner, request, further))


class Begun(Prepared, eq=False):
    """A request whose parts wait for the replies to one pipeline."""

    _engine: Engine
    _request: HTTPRequest
    _inner: Engine | None
    _parts: tuple[Part, ...]
    _steps: list[Any]

    def receive(self, replies: list[Reply] | Exception) -> Exchange | Flow[Exchange]:
        """Have each part go on with its replies, or with the error of the call.

        Returns a flow where a part needs more than one pipeline.
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
        for part, step in zip(self._parts, self._steps):  # noqa: B905 - the last were not begun
            if isinstance(step, Prepared):
                part.interrupted(step)

    async def _run_flows(self) -> Exchange:
        """Run the flows of parts that need more, outermost first, until one has a response."""
        steps, stopped = self._steps, False
        try:
            for index, step in enumerate(steps):
                if isinstance(step, Coroutine):
                    steps[index] = None
                    try:
                        steps[index] = _without_waiting(step) if stopped else await step
                    except Exception as error:  # noqa: BLE001 - as in prepare
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
    """Run a flow whose result is not sent as far as it goes without a call, for its events."""
    try:
        flow.send(None)
    except StopIteration as end:
        return cast("PartExchange | None", end.value)
    flow.close()
    return None


def _has_response(begun: PartExchange | None) -> bool:
    return begun is not None and begun.response is not None


class Exchange(Struct, eq=False):
    """One request and its response in an engine.

    An adapter sends ``response`` at once if there is one. Else it calls the application with
    ``request``, sends what ``head`` returns, passes each piece of the body to ``chunk``, and
    always finishes the exchange, once. Between two pieces it drives ``renewal`` if any part
    is ``holding``. A part that fails is left out from there on.
    """

    engine: Engine
    request: HTTPRequest
    """The request to call the application with."""
    _begun: Sequence[PartExchange | None]
    """What the parts have begun, outermost first."""
    inner: Exchange | None = None
    """What the engine directly inside has begun, to be handed to it."""
    _parts: list[PartExchange] = []
    _unreached: Sequence[PartExchange] = ()
    refresh: Exchange | None = None
    """The background revalidation of a stale response, until it is taken."""
    holding: Sequence[PartExchange] = ()
    """The parts that hold something on Redis that has to be renewed; for most requests none."""
    watching: Sequence[PartExchange] = ()
    """The parts that see the body."""
    locking: PartExchange | None = None
    """The part that has a lock for which other processes wait."""
    saving: PartExchange | None = None
    """The part that has the client's session, to be saved before the head is sent."""
    session: PartExchange | None = None
    """The part that has the client's session: that of this exchange, or of one further out."""
    caches: Sequence[Exchange] = ()
    """Exchanges of middleware further out that may store this response."""
    decision: Decision | None = None
    """The rate limit's decision, for the application's handler to read."""
    response: Response | None = None
    """The response to send at once, or None: call the application."""

    @property
    def parts(self) -> Sequence[PartExchange]:
        """What its parts have begun, outermost first."""
        return self._parts

    @property
    def only_adds(self) -> bool:
        """Whether all that happens to the head is that ``added_lines`` are added."""
        parts = self._parts
        if self.session is not None:
            return False
        return not parts or (len(parts) == 1 and parts[0].only_adds)

    @property
    def passes_body(self) -> bool:
        """Whether nothing happens between the head and the end of the body."""
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
            except Exception as error:  # noqa: BLE001 - the request goes on without this part
                self._leave_out(part, "request", error)

    def save(self) -> Flow[None] | None:
        """Return the flow to run before ``head``, which saves the session; None if it is not due.

        For an adapter to call if a part is ``saving``. The flow raises NotStorable for a value of
        the application's that cannot be stored.
        """
        part = self.saving
        if part is None:
            return None
        try:
            flow = part.save()
        except Exception as error:  # noqa: BLE001 - the response goes on without this part
            self._leave_out(part, "save", error)
            return None
        return None if flow is None else self._saved(part, flow)

    async def _saved(self, part: PartExchange, flow: Flow[None]) -> None:
        try:
            await flow
        except NotStorable:
            raise
        except Exception as error:  # noqa: BLE001 - the response goes on without this part
            self._leave_out(part, "save", error)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Take the application's response head; return what to send in its place.

        After a whole Response the application's body is neither sent nor passed to ``chunk``.
        After a head without a body in place of one with a body, it is passed and not sent.
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
            except Exception as error:  # noqa: BLE001 - the response goes on without this part
                self._leave_out(part, "head", error)
        return outgoing

    def added_lines(
        self, status: int, lines: Sequence[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        """Return the field lines to add to a head, of an exchange that ``only_adds``."""
        for part in self._parts:
            try:
                return part.added_lines(status, lines)
            except Exception as error:  # noqa: BLE001 - the response goes on without this part
                self._leave_out(part, "head", error)
        return ()

    def failed(self) -> Response | None:
        """Return what to send where the application raised before its response began, if anything.

        A stored response that may be used if there is an error (RFC 5861 §4).
        """
        if self.session is not None:
            self.forbid_sharing()
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

    def forbid_sharing(self) -> None:
        """Forbid sharing the response if the application has used the client's session so far.

        For an adapter to call before each message of the response if there is a ``session``;
        ``head`` and ``finish`` do so too.
        """
        session = self.session
        if session is None or not (self.watching or self.caches) or not session.uses_session:
            return
        for exchange in (self, *self.caches):
            exchange.note_session(
                sets_cookie=session.changes_cookie, absent_cookie=session.absent_cookie
            )

    def note_session(self, *, sets_cookie: bool, absent_cookie: str) -> None:
        """Forbid sharing the response, which depends on a session, whoever has loaded it.

        For ``absent_cookie``, see ``PartExchange.absent_cookie``.
        """
        for part in self.watching:
            part.forbid_sharing(sets_cookie=sets_cookie, absent_cookie=absent_cookie)

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
        if self.session is not None:
            self.forbid_sharing()
        pending: list[Flow[None]] = []
        if self.refresh is not None:
            self.refresh.drop()
        ended: Sequence[Any] = self._parts
        if self._unreached or self.inner or self.refresh:  # nothing has taken the last two
            others = (*self._unreached, self.inner, self.refresh)
            ended = [*self._parts, *[one for one in others if one is not None]]
        for one in ended:
            try:
                flow = one.finish(complete=complete and one in self._parts)
            except Exception as error:  # noqa: BLE001 - the response was sent long ago
                self.engine.observe(InternalError("finish", error))
            else:
                if flow is not None:
                    pending.append(self._guarded("finish", flow))
        return _all(pending) if pending else None

    def drop(self) -> None:
        """Undo what has begun for a background revalidation that is not carried out.

        The caller finishes it nevertheless.
        """
        for part in self._parts:
            self._drop(part)

    def take_inner(self) -> Exchange | None:
        """Hand over the inner engine's exchange; the caller finishes it."""
        inner, self.inner = self.inner, None
        return inner

    def take_refresh(self) -> Exchange | None:
        """Hand over the background revalidation of a stale response (RFC 5861 §3), if any.

        The caller calls the application with its ``request`` once the response has been sent, and
        finishes it like any other; its response is sent to no client.
        """
        refresh, self.refresh = self.refresh, None
        return refresh

    def _outward_from(self, index: int, response: Response) -> Response:
        """Pass a part's whole response through the parts outside of it."""
        for outer in reversed(self._parts[:index]):
            response = _outward(outer, response)
        return response

    async def _guarded(self, where: str, flow: Flow[None]) -> None:
        try:
            await flow
        except Exception as error:  # noqa: BLE001 - the response was sent, or is being sent
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
        self.saving = None if self.saving is part else self.saving  # its use is still of interest
        self._unreached = (*self._unreached, part)
        self.engine.observe(InternalError(where, error))


def _outward(part: PartExchange, response: Response) -> Response:
    """Pass a whole response from inside through a part; it keeps its body."""
    head = part.head(response.head)
    return head if isinstance(head, Response) else Response(head, response.body)


async def _all(flows: list[Flow[None]]) -> None:
    await together(*flows)
