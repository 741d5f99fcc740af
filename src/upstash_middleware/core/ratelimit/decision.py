"""Decisions about requests, and how responses show them: header fields and denials."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA
from upstash_middleware.messages import (
    LONGEST_VALUE,
    WITHOUT_BODY,
    Discreet,
    Headers,
    HTTPRequest,
    Response,
    ResponseHead,
    split_list,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class PolicyState(Struct, frozen=True):
    """The state of one limit of a rule after the decision."""

    name: str
    """The rule's name; with the window's length where the rule has several limits."""
    limit: int
    """The quota."""
    window: int | None
    """Seconds within which the quota is given; None if it is not a whole number of them."""
    remaining: int
    """Units that are left."""
    reset: float
    """When the whole quota is available again without further requests: seconds since 1970, UTC."""
    allowed: bool
    """Whether this limit lets the request pass."""
    retry_after: float | None = None
    """Seconds, to the millisecond, until this limit would let the same request pass.

    None where it allows, where it never will, and where it is not known: for a slot to be free.
    """
    never: bool = False
    """Whether the cost is above the limit, so that waiting does not help."""


class LateCharges(Protocol):
    """What settles the charges of requests that have been settled already."""

    def charge_late(self, taken: Sequence[Any], units: int) -> None:
        """Charge units for a request with these charges."""
        ...


class Ledger(Struct, eq=False):
    """What the application charges for a request beyond its cost; safe under threads."""

    units: list[int] = []
    late: tuple[tuple[LateCharges, Sequence[Any]], ...] = ()
    """The limits that have settled the request, each with the charges that it took."""

    def add(self, units: int) -> None:
        """Charge units, or refund them below 0."""
        with _ledgers:
            self.units.append(units)
            late = self.late
        for limit, taken in late:
            limit.charge_late(taken, units)

    def close(self, limit: LateCharges, taken: Sequence[Any]) -> int:
        """Return the total for a limit that now settles it, and that gets later charges."""
        with _ledgers:
            self.late = (*self.late, (limit, taken))
            return sum(self.units)

    # It is not part of a decision's value.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger)

    def __hash__(self) -> int:
        return 0


_ledgers = threading.Lock()


class _NoLedger(Ledger):
    """For requests that no limit was checked for: it drops charges."""

    def add(self, units: int) -> None:
        """Drop a charge."""


class Decision(Discreet, Struct, frozen=True):
    """Whether a request may pass, and the state of its limits: ``request.state.rate_limit``.

    ``limit``, ``remaining`` and ``reset`` are the tightest limit's. They are None where the rule's
    policy decided because Upstash was unreachable, and where no limit was checked.
    """

    allowed: bool
    """Whether the rule lets the request pass."""
    rule: str
    """The name of the rule that decided; empty where no limit was checked."""
    identifier: str
    """As it is written in keys: secrets are hashed."""
    limit: int | None = None
    """The quota."""
    remaining: int | None = None
    """Units that are left."""
    reset: float | None = None
    """When the whole quota is available again: seconds since 1970, UTC."""
    retry_after: float | None = None
    """Seconds until the same request would pass without further requests.

    None if it passed, and if it never will.
    """
    policies: tuple[PolicyState, ...] = ()
    """All limits of the rules that decided."""
    shadow: bool = False
    """Whether the rule only reports, so that a denial stopped nothing."""
    settled_by: str = "upstash"
    """What the decision is based on.

    ``upstash``; ``lease``, where this process had taken units ahead; ``memory``, where it
    remembers a denial; ``deny list``;
    ``challenge``, where no identifier was found; or, where Upstash was unreachable, the rule's
    policy: ``open``, ``closed`` or ``local``. ``unchecked`` where no limit was checked: everything
    is switched off, the route is exempt, or no rule covers the request.
    """
    challenge: str | None = None
    """The challenge of a 401; None for other decisions."""
    ledger: Ledger = field(default_factory=Ledger)
    """What ``charge`` writes to; of this package."""

    @property
    def stops(self) -> bool:
        """Whether the request is denied: a shadow rule only reports."""
        return not (self.allowed or self.shadow)

    def charge(self, units: int) -> None:
        """Take this many units more, or refund some below 0, when the response has been sent.

        They are taken from every limit that the request was counted under, for costs that are
        known only while a request is handled, such as a language model's tokens. They are taken
        whatever is left; what is above the limit is paid off by waiting. May be called any number
        of times. Charges that are made before the last byte is sent are settled together; a later
        one, as in a background task, is settled at once, in a separate round trip. Without
        effect where Upstash did not decide, and where no limit was checked.

        Args:
            units: How many units; below 0 to refund.

        Raises:
            ValueError: `units` is not a whole number.
            RuntimeError: The response has been sent, and the call is made on an event loop of trio.
        """
        given: object = units
        if isinstance(given, bool) or not isinstance(given, int) or abs(given) > MAX_QUOTA:
            raise ValueError(f"charge({units!r}): units should be a whole number up to {MAX_QUOTA}")
        self.ledger.add(units)

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name not in {"challenge", "ledger"}]
        return f"Decision({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


UNCHECKED = Decision(True, "", "", settled_by="unchecked", ledger=_NoLedger())
"""The decision that handlers read where no limit was checked; the same for all requests."""


def decided(
    rule: str,
    identifier: str,
    policies: tuple[PolicyState, ...],
    shadow: bool = False,
    settled_by: str = "upstash",
) -> Decision:
    """Return the combined decision of these limits."""
    # Of the limits that deny, the last one to pass; if none denies, the fullest.
    leading = policies[0] if len(policies) == 1 else max(policies, key=_tightness)
    return Decision(
        leading.allowed,
        rule,
        identifier,
        leading.limit,
        leading.remaining,
        leading.reset,
        leading.retry_after,
        policies,
        shadow,
        settled_by,
    )


def _tightness(policy: PolicyState) -> tuple[bool, float, int, float]:
    if policy.allowed:
        return (False, 0.0, -policy.remaining, policy.reset)
    wait = math.inf if policy.retry_after is None else policy.retry_after
    return (True, wait, -policy.remaining, policy.reset)


def combined(decisions: Sequence[Decision]) -> Decision:
    """Return what several rules together decide: the strictest one's, with all their limits."""
    if len(decisions) == 1:
        return decisions[0]
    leading = max(decisions, key=_strictness)
    policies = tuple(policy for decision in decisions for policy in decision.policies)
    return replace(leading, policies=policies)


def _strictness(decision: Decision) -> tuple[bool, bool, float, int]:
    remaining = decision.remaining
    if decision.allowed:
        return (False, remaining is not None, 0.0, -(remaining or 0))
    # A denial that no wait ends comes first, then the longest wait, then the least left.
    wait = math.inf if decision.retry_after is None else decision.retry_after
    return (True, True, wait, -(remaining or 0))


def remembered(decision: Decision, milliseconds: int) -> Decision:
    """Return a denial made this long ago, with its remaining waits."""

    wait = decision.retry_after
    rest = None if wait is None else _rest(wait, milliseconds)
    policies: list[PolicyState] = []
    for policy in decision.policies:
        own = policy.retry_after
        if own is not None:
            left = rest if own == wait else _rest(own, milliseconds)
            policies.append(replace(policy, retry_after=left))
        else:
            policies.append(policy)
    return replace(
        decision,
        retry_after=rest,
        policies=tuple(policies),
        settled_by="memory",
        ledger=Ledger(),
    )


def _rest(seconds: float, milliseconds: int) -> float:
    return max(0, round(seconds * 1000) - milliseconds) / 1000


# ------------------------------------------------------------------------------------------------
# Header fields. ``RateLimit`` and ``RateLimit-Policy`` follow
# draft-ietf-httpapi-ratelimit-headers-10, a list of strings with parameters each (RFC 9651);
# ``X-RateLimit-*`` are those of most APIs, for the tightest limit.

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines as they are sent."""

LIMIT_FIELDS = frozenset(
    {
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        # Those of earlier revisions of the draft.
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
    }
)
"""They are one set: a response that has one of them already gets none of ours."""


_NAMES = (
    b"X-RateLimit-Limit",
    b"X-RateLimit-Remaining",
    b"X-RateLimit-Reset",
    b"RateLimit-Policy",
    b"RateLimit",
)
_LOWER_NAMES = tuple(name.lower() for name in _NAMES)


def limit_fields(decision: Decision, now: float, *, lower: bool = False) -> Fields:
    """Return the fields for a decision, none where Upstash was unreachable.

    ``now`` is the time in seconds since 1970 by the clock that the decision was made with. With
    ``lower``, their names are in lower case.
    """
    if decision.limit is None or decision.remaining is None or decision.reset is None:
        return ()
    # The draft, §5: Retry-After should not be earlier than a `t` beside it; it may be left out.
    latest = None if decision.allowed else seconds_to_wait(decision)
    policies = states = b""
    for each in decision.policies:
        name, policy = _policy(each.name, each.limit, each.window)
        wait = each.retry_after
        if wait is None:
            wait = each.reset - now if each.allowed else 0.0
        seconds = _whole_seconds(wait)
        if seconds > 0 and (latest is None or seconds <= latest):
            state = b"%b;r=%d;t=%d" % (name, each.remaining, seconds)
        else:
            state = b"%b;r=%d" % (name, each.remaining)
        policies = policies + b", " + policy if policies else policy
        states = states + b", " + state if states else state
    limit_name, remaining_name, reset_name, policies_name, states_name = (
        _LOWER_NAMES if lower else _NAMES
    )
    return (
        (limit_name, b"%d" % decision.limit),
        (remaining_name, b"%d" % decision.remaining),
        (reset_name, b"%d" % math.ceil(decision.reset)),
        (policies_name, policies),
        (states_name, states),
    )


@lru_cache(maxsize=256)
def _policy(name: str, limit: int, window: int | None) -> tuple[bytes, bytes]:
    """Return a policy's name as a String of RFC 9651 §3.3.3, and with it its quota and window.

    Names are printable ASCII by construction.
    """
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    text = f'"{escaped}"'.encode("ascii")
    return text, b"%b;q=%d" % (text, limit) + (b"" if window is None else b";w=%d" % window)


def _whole_seconds(seconds: float) -> int:
    # Times are whole milliseconds; without rounding to them, 3.0000000001 would become 4.
    return math.ceil(seconds - 0.0005)


_EXPLICIT = frozenset({"public", "max-age", "s-maxage"})
# RFC 9111 §3.5: what lets a shared cache store the response to an authorized request.
_DESPITE_AUTHORIZATION = frozenset({"public", "s-maxage", "must-revalidate"})
# RFC 9110 §15.1, and 304, which refreshes a stored response.
_HEURISTIC = frozenset({200, 203, 204, 206, 300, 301, 304, 308, 404, 405, 410, 414, 501})


def takes_fields(request: HTTPRequest, head: ResponseHead) -> bool:
    """Whether a response gets the limits' fields.

    Not if it has such fields already, or a shared cache might store them.
    """
    return LIMIT_FIELDS.isdisjoint(head.headers.names()) and not may_be_shared(request, head)


def may_be_shared(request: HTTPRequest, head: ResponseHead) -> bool:
    """Whether a shared cache downstream might store this response, or has stored it already.

    Such a response must not contain the state of one client's limits. This is a cautious reading
    of RFC 9111 §3: where a cache could find any reason to store, it is assumed to.
    """
    headers = head.headers
    names = headers.names()
    # RFC 9111 §5.1: with Age it comes from a cache, ours or one behind us.
    if "age" in names:
        return True
    targeted = [_directives(headers.combined(name)) for name in names if _is_targeted(name)]
    if any(not each & {"no-store", "private"} for each in targeted):  # RFC 9213
        return True
    directives = _directives(headers.combined("cache-control"))
    if "no-store" in directives or "private" in directives:
        return False
    if "authorization" in request.headers and not directives & _DESPITE_AUTHORIZATION:
        return False
    if directives & _EXPLICIT or "expires" in headers:
        return True
    validated = "etag" in headers or "last-modified" in headers
    return request.method in {"GET", "HEAD"} and validated and head.status in _HEURISTIC


_ABOUT_CACHES = frozenset({"age", "cache-control", "etag", "expires", "last-modified"})


@lru_cache(maxsize=512)
def concern_limits_or_caches(lines: tuple[bytes, ...]) -> bool:
    """Whether field lines with these names may concern limits or caches.

    Without such fields, as in most responses of an API, the limits' fields can be added.
    """
    names = [line.lower().decode("latin-1") for line in lines]
    concerned = _ABOUT_CACHES | LIMIT_FIELDS
    return not concerned.isdisjoint(names) or any(map(_is_targeted, names))


def _is_targeted(name: str) -> bool:
    return name.endswith("cdn-cache-control") or name == "surrogate-control"


def _directives(value: str | None) -> frozenset[str]:
    if value is None:
        return frozenset()
    if len(value) > LONGEST_VALUE:  # as if it allowed storing: the cautious reading
        return _EXPLICIT
    # `private="field"` restricts one field only, so the response may still be stored.
    members = (member.lower().partition("=") for member in split_list(value))
    return frozenset(
        name.strip(" \t")
        for name, equals, _ in members
        if not (equals and name.strip() == "private")
    )


# ------------------------------------------------------------------------------------------------
# Denials: 429 when a quota is used up, 503, 403, 401. Problem types are those of
# draft-ietf-httpapi-ratelimit-headers-10 §6, in RFC 9457's format; plain text or HTML where the
# client prefers it.

_PROBLEMS = "https://iana.org/assignments/http-problem-types#"
RETRY_UNAVAILABLE = 5
"""Seconds after which a client that got a 503 may try again: there is no better estimate."""


class _Problem(Struct, frozen=True):
    status: int
    type: str
    title: str
    detail: str
    violated: tuple[str, ...] | None = None
    """The names of the violated policies, as ``violated-policies`` in the draft."""


def denial(request: HTTPRequest, decision: Decision, now: float) -> Response:
    """Return the response for a request that a decision stops; ``now`` in seconds since 1970."""
    seconds, media_type = seconds_to_wait(decision), _media_type(request.headers)
    if len(decision.policies) == 1 and seconds is not None:
        (policy,) = decision.policies
        reset = math.ceil(policy.reset)
        response = _denial_of_one(
            media_type, policy.name, policy.limit, policy.window, policy.remaining, reset, seconds
        )
    else:
        response = _denial(media_type, decision, now)
    # RFC 9110 §9.3.2: the fields are those of the GET, the body is left out.
    return Response(response.head) if request.method == "HEAD" else response


@lru_cache(maxsize=1024)
def _denial_of_one(  # noqa: PLR0913, PLR0917 - what the response depends on
    media_type: str,
    name: str,
    limit: int,
    window: int | None,
    remaining: int,
    reset: int,
    seconds: int,
) -> Response:
    """Return the response where a single limit denies, for the whole seconds to wait."""
    state = PolicyState(name, limit, window, remaining, reset, False, seconds)
    decision = Decision(False, name, "", limit, remaining, reset, seconds, (state,))
    return _denial(media_type, decision, reset)


def _denial(media_type: str, decision: Decision, now: float) -> Response:
    """Return a denial's representation of a media type."""
    fields: Fields = ()
    match decision.settled_by:
        case "closed":
            detail = "Requests cannot be counted at the moment."
            return _unavailable(media_type, detail, (decision.rule,))
        case "deny list":
            problem = _Problem(403, "about:blank", "Forbidden", "Access is denied.")
        case "challenge":  # RFC 9110 §15.5.2
            problem = _Problem(401, "about:blank", "Unauthorized", "Authentication required.")
            fields = ((b"WWW-Authenticate", (decision.challenge or "").encode("ascii")),)
        case _:  # RFC 6585 §4
            seconds, policies = seconds_to_wait(decision), decision.policies
            never = seconds is None and any(policy.never for policy in policies)
            violated = tuple([policy.name for policy in policies if not policy.allowed])
            if seconds is not None:
                detail = f"Try again in {seconds} {'second' if seconds == 1 else 'seconds'}."
            elif never:
                detail = "This request costs more than its quota; waiting does not help."
            else:
                detail = "Too many requests at once. Try again when others have ended."
            kind = _PROBLEMS + "quota-exceeded"
            problem = _Problem(429, kind, "Too many requests", detail, violated)
            fields = limit_fields(decision, now)
            if seconds is not None:
                fields = ((b"Retry-After", b"%d" % seconds), *fields)
    described, body = _represented(media_type, problem)
    return Response(ResponseHead(problem.status, Headers(described + fields)), body)


def unavailable(headers: Headers, detail: str) -> Response:
    """Return the 503 for a request with these header fields, in the form that it accepts."""
    return _unavailable(_media_type(headers), detail)


def _unavailable(media_type: str, detail: str, violated: tuple[str, ...] | None = None) -> Response:
    kind = _PROBLEMS + "temporary-reduced-capacity"
    problem = _Problem(503, kind, "Service unavailable", detail, violated)
    described, body = _represented(media_type, problem)
    retry = (b"Retry-After", b"%d" % RETRY_UNAVAILABLE)
    return Response(ResponseHead(503, Headers((*described, retry))), body)


def seconds_to_wait(decision: Decision) -> int | None:
    """Return the Retry-After, in seconds rounded up; None where waiting does not help."""
    return None if decision.retry_after is None else _whole_seconds(decision.retry_after)


def completing(denial: Headers, names: Collection[str]) -> Fields:
    """Return the fields of a denial to be added to the application's own response to it.

    ``names`` are that response's fields, in lower case. Those that it has are left as they are; if
    it has one of the limits' fields, none of ours is added.
    """
    present = {"content-type", "content-length", *names}
    if not LIMIT_FIELDS.isdisjoint(names):
        present |= LIMIT_FIELDS
    return denial.without(*present).raw


DeniedResponse = tuple[int, Mapping[str, str], str | bytes] | None
"""A status, header fields and a body, text in UTF-8; None for this package's own response."""
OnDenied = Callable[[HTTPRequest, Decision], DeniedResponse | Awaitable[DeniedResponse]]
_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # compiled when first used, as all of these
_ENDS_LINES = r"[\r\n\x00]"
_FRAMING = frozenset({"content-length", "transfer-encoding"})
"""Fields that follow from the body."""


def custom_denial(returned: Any, own: Response, request: HTTPRequest) -> Response:
    """Return the response that an ``on_denied`` has returned, with the fields that it lacks.

    Raises an exception if it is not one.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 3:
        raise TypeError(f"on_denied returned {returned!r}; it should return (status, fields, body)")
    status, fields, body = returned
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"on_denied returned the status {status!r}; it should be 200 to 599")
    if not isinstance(body, str | bytes):
        raise TypeError(f"on_denied returned the body {body!r}; it should be text or bytes")
    body = body.encode() if isinstance(body, str) else body
    lines = [(name, text) for name, text in dict(fields).items() if name.lower() not in _FRAMING]
    for name, text in lines:
        # What breaks a line would end the connection, or forge a field (RFC 9110 §5.1, §5.5).
        if not re.fullmatch(_FIELD_NAME, name) or re.search(_ENDS_LINES, text):
            raise ValueError(f"on_denied returned an invalid header field: {name!r}: {text!r}")
    given = Headers((name.encode("latin-1"), text.encode("latin-1")) for name, text in lines)
    missing = completing(own.head.headers, given.names())
    if status in WITHOUT_BODY:
        return Response(ResponseHead(status, given.adding(*missing)))
    headers = given.setting("content-length", str(len(body))).adding(*missing)
    return Response(ResponseHead(status, headers), b"" if request.method == "HEAD" else body)


@lru_cache(maxsize=256)
def _represented(media_type: str, problem: _Problem) -> tuple[Fields, bytes]:
    """Return the fields that describe a representation of a problem, and its body."""
    body = _WRITERS[media_type](problem).encode()
    kind = f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
    fields = (
        (b"Content-Type", kind.encode("ascii")),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
    )
    return fields, body


def _as_problem(problem: _Problem) -> str:
    import json  # noqa: PLC0415 - not needed for a cold start

    members: dict[str, object] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.violated is not None:
        members["violated-policies"] = problem.violated
    return json.dumps(members)


def _as_html(problem: _Problem) -> str:
    from html import escape  # noqa: PLC0415 - not needed for a cold start

    title, detail = escape(problem.title), escape(problem.detail)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<h1>{title}</h1>\n<p>{detail}</p>\n</html>\n"
    )


def _as_text(problem: _Problem) -> str:
    return f"{problem.title}. {problem.detail}\n"


_WRITERS: dict[str, Callable[[_Problem], str]] = {
    "application/problem+json": _as_problem,
    "text/html": _as_html,
    "text/plain": _as_text,
}
_WEIGHT = r"[01](?:\.[0-9]{0,3})?"
_LONGEST_REMEMBERED = 256
"""Characters of an Accept field whose meaning is remembered: browsers' have some 130."""


def _media_type(headers: Headers) -> str:
    accept = headers.combined("accept") or "*/*"
    if len(accept) <= _LONGEST_REMEMBERED:
        return _preferred(accept)
    return _preferred.__wrapped__(accept if len(accept) <= LONGEST_VALUE else "*/*")


@lru_cache(maxsize=64)
def _preferred(accept: str) -> str:
    """Return the representation that the client prefers (RFC 9110 §12.5.1)."""
    weights: dict[str, float] = {}
    for member in accept.lower().split(","):
        media_range, *parameters = member.split(";")
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q" and re.fullmatch(_WEIGHT, value.strip()):
                weight = float(value)
        weights[media_range.strip()] = weight

    def weight_of(media_type: str) -> float:
        names = (media_type, "application/json") if media_type.endswith("json") else (media_type,)
        named = [weights[name] for name in names if name in weights]
        if named:
            return max(named)
        return weights.get(media_type.partition("/")[0] + "/*", weights.get("*/*", 0.0))

    best = max(_WRITERS, key=weight_of)
    return best if weight_of(best) > 0 else "application/problem+json"
