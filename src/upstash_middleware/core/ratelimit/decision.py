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
    """The rule's name, followed by the window's length if the rule has several limits."""
    limit: int
    """The quota."""
    window: int | None
    """The length of the window in seconds; None if it has fractions of a second."""
    remaining: int
    """The units that are left."""
    reset: float
    """When the whole quota is available again without further requests, in seconds since 1970."""
    allowed: bool
    """Whether this limit allows the request."""
    retry_after: float | None = None
    """Seconds, to the millisecond, until this limit would allow the same request.

    None if the limit allows it, if it never will, or if the time is unknown, as for a slot.
    """
    never: bool = False
    """Whether the cost exceeds the limit, so that waiting does not help."""


class LateCharges(Protocol):
    """A settler that takes charges of requests that were already settled."""

    def charge_late(self, taken: Sequence[Any], units: int) -> None:
        """Charge units to a request; ``taken`` are its charges."""
        ...


class Ledger(Struct, eq=False):
    """The units that the application charges for a request beyond its cost. Thread-safe."""

    units: list[int] = []
    late: tuple[tuple[LateCharges, Sequence[Any]], ...] = ()
    """The settlers that have already settled the request, each with the charges it took."""

    def add(self, units: int) -> None:
        """Charge units; below 0 to refund."""
        with _ledgers:
            self.units.append(units)
            late = self.late
        for limit, taken in late:
            limit.charge_late(taken, units)

    def close(self, limit: LateCharges, taken: Sequence[Any]) -> int:
        """Return the total for a settler that now settles the request, and gets later charges."""
        with _ledgers:
            self.late = (*self.late, (limit, taken))
            return sum(self.units)

    # All ledgers are equal, so that decisions are compared by their other fields.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger)

    def __hash__(self) -> int:
        return 0


_ledgers = threading.Lock()


class _NoLedger(Ledger):
    """The ledger of requests without a limit. It ignores charges."""

    def add(self, units: int) -> None:
        """Ignore a charge."""


class Decision(Discreet, Struct, frozen=True):
    """The result of rate limiting for a request: ``request.state.rate_limit``.

    ``limit``, ``remaining`` and ``reset`` are those of the tightest limit. They are None if Upstash
    was unreachable and the rule's policy decided, or if no limit was checked.
    """

    allowed: bool
    """Whether the rule allows the request."""
    rule: str
    """The name of the rule that decided; empty if no limit was checked."""
    identifier: str
    """The identifier as in Redis keys: secrets are hashed."""
    limit: int | None = None
    """The quota."""
    remaining: int | None = None
    """The units that are left."""
    reset: float | None = None
    """When the whole quota is available again, in seconds since 1970."""
    retry_after: float | None = None
    """Seconds until the same request would be allowed, without further requests.

    None if it was allowed, and if it never will be.
    """
    policies: tuple[PolicyState, ...] = ()
    """The states of all limits of the rules that decided."""
    shadow: bool = False
    """Whether the rule is in shadow mode, so that a denial is reported but not applied."""
    settled_by: str = "upstash"
    """The source of the decision.

    ``upstash``; ``lease``, if this process had reserved units; ``memory``, if it remembered a
    denial; ``deny list``; ``challenge``, if no identifier was found; ``open``, ``closed`` or
    ``local``, the rule's policy, if Upstash was unreachable; ``unchecked``, if no limit was
    checked: the middleware is switched off, the route is exempt, or no rule covers the request.
    """
    challenge: str | None = None
    """The challenge of a 401; None for other decisions."""
    ledger: Ledger = field(default_factory=Ledger)
    """Collects the units of ``charge``; for internal use."""

    @property
    def stops(self) -> bool:
        """Whether the request is denied. A denial of a shadow rule is not applied."""
        return not (self.allowed or self.shadow)

    def charge(self, units: int) -> None:
        """Charge more units for the request, or refund some below 0, after the response was sent.

        This is for costs that are known only after the request was handled, such as the tokens of a
        language model. Every limit that counted the request is charged, even beyond its quota;
        later requests then wait longer. The method can be called any number of times. Charges
        before the last byte is sent are settled together. A later charge, such as in a background
        task, needs a round trip of its own. Nothing is charged if Upstash did not decide, or if no
        limit was checked.

        Args:
            units: The number of units; below 0 to refund.

        Raises:
            ValueError: `units` is not a whole number.
            RuntimeError: The response was already sent, and the event loop is trio's.
        """
        given: object = units
        if isinstance(given, bool) or not isinstance(given, int) or abs(given) > MAX_QUOTA:
            raise ValueError(f"charge({units!r}): units should be a whole number up to {MAX_QUOTA}")
        self.ledger.add(units)

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name not in {"challenge", "ledger"}]
        return f"Decision({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


UNCHECKED = Decision(True, "", "", settled_by="unchecked", ledger=_NoLedger())
"""The decision for handlers if no limit was checked; the same object for all requests."""


def decided(
    rule: str,
    identifier: str,
    policies: tuple[PolicyState, ...],
    shadow: bool = False,
    settled_by: str = "upstash",
) -> Decision:
    """Return the decision that combines the states of a rule's limits."""
    # Among the limits that deny, the last one to allow; otherwise the one with the least remaining.
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
    """Return the strictest of several rules' decisions, with the limits of all of them."""
    if len(decisions) == 1:
        return decisions[0]
    leading = max(decisions, key=_strictness)
    policies = tuple(policy for decision in decisions for policy in decision.policies)
    return replace(leading, policies=policies)


def _strictness(decision: Decision) -> tuple[bool, bool, float, int]:
    remaining = decision.remaining
    if decision.allowed:
        return (False, remaining is not None, 0.0, -(remaining or 0))
    # A denial without an end comes first, then the longest wait, then the fewest units left.
    wait = math.inf if decision.retry_after is None else decision.retry_after
    return (True, True, wait, -(remaining or 0))


def remembered(decision: Decision, milliseconds: int) -> Decision:
    """Return a remembered denial, with its waits shortened by the time since then."""

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
# draft-ietf-httpapi-ratelimit-headers-10: lists of strings with parameters (RFC 9651).
# ``X-RateLimit-*`` are widely used; they describe the tightest limit.

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines in the form in which they are sent."""

LIMIT_FIELDS = frozenset(
    {
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        # Fields of earlier revisions of the draft.
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
    }
)
"""If a response already has one of these fields, none is added."""


_NAMES = (
    b"X-RateLimit-Limit",
    b"X-RateLimit-Remaining",
    b"X-RateLimit-Reset",
    b"RateLimit-Policy",
    b"RateLimit",
)
_LOWER_NAMES = tuple(name.lower() for name in _NAMES)


def limit_fields(decision: Decision, now: float, *, lower: bool = False) -> Fields:
    """Return the fields for a decision; none if Upstash was unreachable.

    ``now`` is the time of the clock that the decision was made with, in seconds since 1970. With
    ``lower``, the names are in lower case.
    """
    if decision.limit is None or decision.remaining is None or decision.reset is None:
        return ()
    # The draft, §5: Retry-After should not be earlier than a `t` in the same response (optional).
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
    """Return a policy's name as a String (RFC 9651 §3.3.3), and its item with quota and window.

    The names of rules are checked to be printable ASCII.
    """
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    text = f'"{escaped}"'.encode("ascii")
    return text, b"%b;q=%d" % (text, limit) + (b"" if window is None else b";w=%d" % window)


def _whole_seconds(seconds: float) -> int:
    # Times are in whole milliseconds. Without rounding to these, 3.0000000001 would become 4.
    return math.ceil(seconds - 0.0005)


_EXPLICIT = frozenset({"public", "max-age", "s-maxage"})
# RFC 9111 §3.5: directives that allow a shared cache to store the response to Authorization.
_DESPITE_AUTHORIZATION = frozenset({"public", "s-maxage", "must-revalidate"})
# RFC 9110 §15.1, and 304, which updates a stored response.
_HEURISTIC = frozenset({200, 203, 204, 206, 300, 301, 304, 308, 404, 405, 410, 414, 501})


def takes_fields(request: HTTPRequest, head: ResponseHead) -> bool:
    """Whether to add the limits' fields to a response.

    Not if it already has such fields, or if a shared cache might store it.
    """
    return LIMIT_FIELDS.isdisjoint(head.headers.names()) and not may_be_shared(request, head)


def may_be_shared(request: HTTPRequest, head: ResponseHead) -> bool:
    """Whether a downstream shared cache might store this response, or has stored it.

    Such a response must not contain the state of one client's limits. RFC 9111 §3 is read
    cautiously: if any reason allows a cache to store a response, the cache is assumed to do so.
    """
    headers = head.headers
    names = headers.names()
    # RFC 9111 §5.1: a response with Age comes from a cache, in this middleware or behind it.
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
    """Whether any of these field names concerns limits or caches.

    If none does, as in most responses of an API, the limits' fields can be added without checks.
    """
    names = [line.lower().decode("latin-1") for line in lines]
    concerned = _ABOUT_CACHES | LIMIT_FIELDS
    return not concerned.isdisjoint(names) or any(map(_is_targeted, names))


def _is_targeted(name: str) -> bool:
    return name.endswith("cdn-cache-control") or name == "surrogate-control"


def _directives(value: str | None) -> frozenset[str]:
    if value is None:
        return frozenset()
    if len(value) > LONGEST_VALUE:  # assume that it allows storing
        return _EXPLICIT
    # `private="field"` restricts only that field, so the response may still be stored.
    members = (member.lower().partition("=") for member in split_list(value))
    return frozenset(
        name.strip(" \t")
        for name, equals, _ in members
        if not (equals and name.strip() == "private")
    )


# ------------------------------------------------------------------------------------------------
# Denials: 429 if a quota is used up, 503, 403, 401. Problem types are those of
# draft-ietf-httpapi-ratelimit-headers-10 §6, in the format of RFC 9457, or in plain text or HTML if
# the client prefers it.

_PROBLEMS = "https://iana.org/assignments/http-problem-types#"
RETRY_UNAVAILABLE = 5
"""The Retry-After of a 503 in seconds. It is a fixed value, as the end of an outage is unknown."""


class _Problem(Struct, frozen=True):
    status: int
    type: str
    title: str
    detail: str
    violated: tuple[str, ...] | None = None
    """The names of the violated policies: ``violated-policies`` in the draft."""


def denial(request: HTTPRequest, decision: Decision, now: float) -> Response:
    """Return the response to a request that is denied; ``now`` is in seconds since 1970."""
    seconds, media_type = seconds_to_wait(decision), _media_type(request.headers)
    if len(decision.policies) == 1 and seconds is not None:
        (policy,) = decision.policies
        reset = math.ceil(policy.reset)
        response = _denial_of_one(
            media_type, policy.name, policy.limit, policy.window, policy.remaining, reset, seconds
        )
    else:
        response = _denial(media_type, decision, now)
    # RFC 9110 §9.3.2: the response to HEAD has the fields of GET, without a body.
    return Response(response.head) if request.method == "HEAD" else response


@lru_cache(maxsize=1024)
def _denial_of_one(  # noqa: PLR0913, PLR0917 - the values that determine the response
    media_type: str,
    name: str,
    limit: int,
    window: int | None,
    remaining: int,
    reset: int,
    seconds: int,
) -> Response:
    """Return the response if a single limit denies; ``seconds`` is the time to wait."""
    state = PolicyState(name, limit, window, remaining, reset, False, seconds)
    decision = Decision(False, name, "", limit, remaining, reset, seconds, (state,))
    return _denial(media_type, decision, reset)


def _denial(media_type: str, decision: Decision, now: float) -> Response:
    """Return the response for a denial in a media type."""
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
    """Return the 503 for a request with these header fields, in a format that it accepts."""
    return _unavailable(_media_type(headers), detail)


def _unavailable(media_type: str, detail: str, violated: tuple[str, ...] | None = None) -> Response:
    kind = _PROBLEMS + "temporary-reduced-capacity"
    problem = _Problem(503, kind, "Service unavailable", detail, violated)
    described, body = _represented(media_type, problem)
    retry = (b"Retry-After", b"%d" % RETRY_UNAVAILABLE)
    return Response(ResponseHead(503, Headers((*described, retry))), body)


def seconds_to_wait(decision: Decision) -> int | None:
    """Return Retry-After in seconds, rounded up; None if waiting does not help."""
    return None if decision.retry_after is None else _whole_seconds(decision.retry_after)


def completing(denial: Headers, names: Collection[str]) -> Fields:
    """Return the fields of a denial that are missing in the application's response to it.

    ``names`` are the names of that response's fields, in lower case. Its own fields are not
    changed. If it has any of the limits' fields, none of these is added.
    """
    present = {"content-type", "content-length", *names}
    if not LIMIT_FIELDS.isdisjoint(names):
        present |= LIMIT_FIELDS
    return denial.without(*present).raw


DeniedResponse = tuple[int, Mapping[str, str], str | bytes] | None
"""A status, header fields and a body (text is sent as UTF-8); None for the default response."""
OnDenied = Callable[[HTTPRequest, Decision], DeniedResponse | Awaitable[DeniedResponse]]
_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # this and the next are compiled at the first use
_ENDS_LINES = r"[\r\n\x00]"
_FRAMING = frozenset({"content-length", "transfer-encoding"})
"""Fields that depend on the body, and are set by this package."""


def custom_denial(returned: Any, own: Response, request: HTTPRequest) -> Response:
    """Return the response for a value returned by ``on_denied``, with the missing fields added.

    Raises an exception if the value is not a valid response.
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
        # A line break would end the field, and could forge another one (RFC 9110 §5.1, §5.5).
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
    """Return the fields that describe a problem's representation, and its body."""
    body = _WRITERS[media_type](problem).encode()
    kind = f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
    fields = (
        (b"Content-Type", kind.encode("ascii")),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
    )
    return fields, body


def _as_problem(problem: _Problem) -> str:
    import json  # noqa: PLC0415 - shortens the cold start

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
    from html import escape  # noqa: PLC0415 - shortens the cold start

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
"""Characters. Longer Accept fields are not cached; browsers send about 130."""


def _media_type(headers: Headers) -> str:
    accept = headers.combined("accept") or "*/*"
    if len(accept) <= _LONGEST_REMEMBERED:
        return _preferred(accept)
    return _preferred.__wrapped__(accept if len(accept) <= LONGEST_VALUE else "*/*")


@lru_cache(maxsize=64)
def _preferred(accept: str) -> str:
    """Return the media type that the client prefers (RFC 9110 §12.5.1)."""
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
