"""The responses that this half gives itself: 429 when a quota is used up, 503, 403, 401.

Problem types are those of draft-ietf-httpapi-ratelimit-headers-10 §6, in RFC 9457's format;
plain text or HTML where the client prefers it.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from upstash_middleware.core.ratelimit.fields import limit_fields, seconds_to_wait
from upstash_middleware.messages import Headers, Response, ResponseHead

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.fields import Fields
    from upstash_middleware.messages import Request

_PROBLEMS = "https://iana.org/assignments/http-problem-types#"
RETRY_UNAVAILABLE = 5
"""Seconds after which a client that got a 503 may try again: no one knows better."""

_LONGEST_KNOWN = 256
"""Characters of an Accept field whose meaning is remembered: browsers' have some 130."""

_RANGE = re.compile(r"\s*([^\s;,]+)\s*((?:;[^,]*)?)(?:,|$)")
_WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)", re.IGNORECASE)


class _Problem(NamedTuple):
    status: int
    type: str
    title: str
    detail: str
    violated: tuple[str, ...] | None = None
    """The policies that were, as an extension member of the draft's."""


def denial(request: Request, decision: Decision, now: float) -> Response:
    """Return the response for a request that a decision stops; ``now`` in seconds since 1970."""
    match decision.settled_by:
        case "closed":
            return _unavailable(request, decision)
        case "deny list":
            return _forbidden(request)
        case "challenge":
            return _unauthorized(request, decision.challenge or "")
        case _:
            return _too_many_requests(request, decision, now)


def _too_many_requests(request: Request, decision: Decision, now: float) -> Response:
    """RFC 6585 §4, never to be stored by a cache."""
    seconds = seconds_to_wait(decision)
    waits = () if seconds is None else ((b"Retry-After", b"%d" % seconds),)
    if seconds is not None:
        detail = f"Try again in {seconds} {'second' if seconds == 1 else 'seconds'}."
    elif any(policy.never for policy in decision.policies):
        detail = "This request costs more than its quota; waiting does not help."
    else:
        detail = "Too many requests at once. Try again when others have ended."
    violated = tuple([policy.name for policy in decision.policies if not policy.allowed])
    problem = _Problem(
        429,
        _PROBLEMS + "quota-exceeded",
        "Too many requests",
        detail,
        violated,
    )
    return _response(request, problem, waits + limit_fields(decision, now))


def _unavailable(request: Request, decision: Decision) -> Response:
    """For a rule that lets nothing pass uncounted, while nothing can be counted."""
    problem = _Problem(
        503,
        _PROBLEMS + "temporary-reduced-capacity",
        "Service unavailable",
        "Requests cannot be counted at the moment.",
        (decision.rule,),
    )
    return _response(request, problem, ((b"Retry-After", b"%d" % RETRY_UNAVAILABLE),))


def _forbidden(request: Request) -> Response:
    """For who is on a deny list: no quota is at stake, and no wait would help."""
    return _response(request, _Problem(403, "about:blank", "Forbidden", "Access is denied."), ())


def _unauthorized(request: Request, challenge: str) -> Response:
    """For a rule that demands an identity (RFC 9110 §15.5.2)."""
    problem = _Problem(401, "about:blank", "Unauthorized", "Say who you are.")
    return _response(request, problem, ((b"WWW-Authenticate", challenge.encode("ascii")),))


def _response(request: Request, problem: _Problem, fields: Fields) -> Response:
    accept = request.headers.combined("accept") or "*/*"
    media_type = _preferred(accept) if len(accept) <= _LONGEST_KNOWN else _best(accept)
    described, body = _written(media_type, problem)
    headers = Headers(described + fields)
    # RFC 9110 §9.3.2: the fields are those of the GET, the body is left out.
    return Response(
        ResponseHead(problem.status, headers), b"" if request.method == "HEAD" else body
    )


@lru_cache(maxsize=256)
def _written(media_type: str, problem: _Problem) -> tuple[Fields, bytes]:
    """Return a problem in a representation, and the fields that describe that."""
    body = _WRITERS[media_type](problem)
    kind = f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
    described = (
        (b"Content-Type", kind.encode("ascii")),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
    )
    return described, body


def _as_problem(problem: _Problem) -> bytes:
    members: dict[str, object] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.violated is not None:
        members["violated-policies"] = problem.violated
    return json.dumps(members).encode()


def _as_text(problem: _Problem) -> bytes:
    return f"{problem.title}. {problem.detail}\n".encode()


def _as_html(problem: _Problem) -> bytes:
    from html import escape  # noqa: PLC0415 - a cold start shall not wait for it

    title, detail = escape(problem.title), escape(problem.detail)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<h1>{title}</h1>\n<p>{detail}</p>\n</html>\n"
    ).encode()


_WRITERS = {
    "application/problem+json": _as_problem,
    "text/html": _as_html,
    "text/plain": _as_text,
}


@lru_cache(maxsize=64)
def _preferred(accept: str) -> str:
    return _best(accept)


def _best(accept: str) -> str:
    """Return the representation that the client likes best (RFC 9110 §12.5.1)."""
    weights: dict[str, float] = {}
    for media_range, parameters in _RANGE.findall(accept):
        weight = _WEIGHT.search(parameters)
        weights[media_range.lower()] = float(weight[1]) if weight else 1.0
    best = max(_WRITERS, key=lambda media_type: _weight(media_type, weights))
    return best if _weight(best, weights) > 0 else "application/problem+json"


def _weight(media_type: str, weights: dict[str, float]) -> float:
    exact = (media_type, "application/json") if media_type.endswith("json") else (media_type,)
    named = [weights[name] for name in exact if name in weights]
    if named:
        return max(named)
    return weights.get(media_type.partition("/")[0] + "/*", weights.get("*/*", 0.0))
