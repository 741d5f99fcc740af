"""``limits peek|explain|reset``: how limits stand, and why a request is denied."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from upstash_middleware.cli.exits import Exit, UsageError
from upstash_middleware.cli.session import Session, command
from upstash_middleware.cli.showing import Answer, duration, pairs, rows, text
from upstash_middleware.core.identify import Identifier
from upstash_middleware.core.identify.addresses import of_address, parse_address
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import Headers, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from upstash_middleware.core.ratelimit import Decision, Explanation, PolicyState, RateLimiter
    from upstash_middleware.events import Event
    from upstash_middleware.gateway import Gateway

group: typer.Typer = typer.Typer(
    help="How rate limits stand, and why a request is denied.", no_args_is_help=True
)

_Rule = Annotated[
    str, typer.Argument(help="The rule's name, as in decisions and logs; `rules check` lists them.")
]
_Who = Annotated[
    str,
    typer.Argument(
        help="An address, KIND=VALUE (user=alice, header.x-api-key=KEY), or as it stands in logs."
    ),
]

_SECRET_KINDS = frozenset({"header", "cookie", "query"})
_IPV6_PREFIX = 64


@command(group, "peek")
def peek(
    session: Session,
    rule: _Rule,
    identifier: _Who,
    *,
    cost: Annotated[int, typer.Option(help="What the request would take.", min=1)] = 1,
) -> Answer:
    """Tell how a rule's limits stand for somebody; exit code 1 if they are denied."""
    gateway, limiter = _limiter_of(session, rule)
    told = gateway.perform(limiter.look(rule, _identifier(identifier), cost))
    return _answer([told])


@command(group, "reset")
def reset(session: Session, rule: _Rule, identifier: _Who) -> Answer:
    """Give somebody the whole quota of a rule again."""
    gateway, limiter = _limiter_of(session, rule)
    gateway.perform(limiter.reset(rule, _identifier(identifier)))
    remembered = gateway.settings.remember_denials
    noticed = f"; processes that remember a denial notice within {duration(remembered)}"
    shown = text(f"{identifier} has the whole quota of {rule!r} again" + noticed * bool(remembered))
    data = {"reset": {"rule": rule, "identifier": identifier}, "noticed_within": remembered}
    return Answer(data, [shown])


@command(group, "explain")
def explain(
    session: Session,
    url: Annotated[str, typer.Argument(help="The URL asked for, or its path.")],
    *,
    method: Annotated[str, typer.Option("--method", "-X", help="The request's method.")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header field, 'Name: value'.")
    ] = None,
    peer: Annotated[
        str, typer.Option(help="The address from which the request comes.")
    ] = "127.0.0.1",
) -> Answer:
    """Tell which rules cover a request, under which keys, and what they would say to it."""
    request = request_for(url, method, header or (), peer)
    told: list[Explanation] = []
    routes = session.subject.routes or ()
    route = next((each for each in routes if each.takes(request.method, request.path)), None)
    if route is not None and route.exempt:
        shown = text(f"no rule limits this request: the handler of {route.path} is exempt", "green")
        return Answer({"limited": False, "allowed": True, "rules": [], "notes": []}, [shown])
    for gateway in session.limiting():
        told += gateway.perform(_limiter(gateway).explain(request))
    return _answer(told, _notes(session.subject.events))


def request_for(url: str, method: str, fields: list[str] | tuple[str, ...], peer: str) -> Request:
    """Return the request that the words of a command line describe. Raises UsageError."""
    parts = urlsplit(url)
    if not (url.startswith("/") or (parts.scheme in {"http", "https"} and parts.netloc)):
        raise UsageError(f"{url!r}: give a path such as '/products/7', or a whole URL")
    raw = [("host", parts.netloc)] if parts.netloc else []
    for each in fields:
        name, colon, value = each.partition(":")
        if not colon or not name.strip() or not each.isprintable():
            raise UsageError(f"--header {each!r}: write 'Name: value'")
        raw.append((name.strip(), value.strip()))
    headers = Headers((name.encode(), value.encode()) for name, value in raw)
    return Request(
        method=method.upper(),
        path=unquote(parts.path) or "/",
        headers=headers,
        query=parts.query,
        scheme=parts.scheme or "http",
        host=(headers.get("host") or "").lower(),
        peer=peer,
        sent_path=parts.path or "/",
    )


def _limiter(gateway: Gateway) -> RateLimiter:
    return gateway.limiter(gateway.settings.rate_limits, gateway.settings.default_limit)


def _limiter_of(session: Session, rule: str) -> tuple[Gateway, RateLimiter]:
    known: list[str] = []
    for gateway in session.limiting():
        settings = gateway.settings
        every = [*settings.rate_limits, *filter(None, [settings.default_limit])]
        names = [each.name for each in every if isinstance(each.parsed, tuple)]
        if rule in names:
            return gateway, _limiter(gateway)
        known += names
    raise UsageError(
        f"no rule with limits of this package is called {rule!r}; there are: "
        + (", ".join(map(repr, known)) or "none")
    )


def _identifier(given: str) -> str | Identifier:
    """Return whom the words mean; what stands in logs, hashed or escaped, is taken as it is."""
    address = parse_address(given)
    if address is not None:
        return of_address(address, _IPV6_PREFIX)
    kind, equals, value = given.partition("=")
    if not equals:
        return Identifier("id", given)
    if not kind or not value:
        raise UsageError(f"{given!r}: write KIND=VALUE, such as user=alice or ip=203.0.113.7")
    if value.startswith("#") or "%" in value:
        return given
    return Identifier(kind, value, secret=kind.partition(".")[0] in _SECRET_KINDS)


def _notes(events: list[Event]) -> list[str]:
    """Return what the application's own functions met, which had no request of a framework's."""
    return [
        f"{event.where} raised {type(event.error).__name__}: {event.error}"
        for event in events
        if isinstance(event, UserCodeFailed)
    ]


def _answer(told: list[Explanation], notes: Sequence[str] = ()) -> Answer:
    enforced = [one for one in told if not one.shadow]
    denied = any(not one.decision.allowed for one in enforced)
    data = {
        "limited": bool(enforced),
        "allowed": not denied,
        "rules": [_data(one) for one in told],
        "notes": list(notes),
    }
    noted = [text(f"note: {note}", "yellow") for note in notes]
    if not told:
        return Answer(data, [*noted, text("no rule limits this request", "yellow")])
    shown = [*noted, *(each for one in told for each in _shown(one))]
    return Answer(data, shown, Exit.NO if denied else Exit.DONE)


def _data(one: Explanation) -> dict[str, Any]:
    decision = one.decision
    return {
        "rule": one.rule,
        "setting": one.setting,
        "identifier": one.identifier,
        "cost": one.cost,
        "shadow": one.shadow,
        "allowed": decision.allowed,
        "limit": decision.limit,
        "remaining": decision.remaining,
        "reset": decision.reset,
        "retry_after": decision.retry_after,
        "limits": [asdict(policy) for policy in decision.policies],
        "keys": list(one.keys),
    }


def _shown(one: Explanation) -> list[RenderableType]:
    decision = one.decision
    shadow = " (a shadow rule: it only reports)" if one.shadow else ""
    return [
        _verdict(decision, one.rule + shadow),
        pairs(
            {
                "set in": one.setting,
                "identifier": one.identifier,
                "cost": one.cost if one.cost != 1 else None,
                "keys": one.keys,
            }
        ),
        rows(
            ("limit", "quota", "window", "remaining", "whole again in", "passes in"),
            [_row(policy) for policy in decision.policies],
        ),
    ]


def _verdict(decision: Decision, rule: str) -> RenderableType:
    if decision.allowed:
        return text(f"allowed by {rule}", "bold green")
    if decision.retry_after is None:
        wait = "and no wait is known to end it"
    else:
        wait = f"passes in {duration(decision.retry_after)}"
    return text(f"denied by {rule}: {wait}", "bold red")


def _row(policy: PolicyState) -> tuple[object, ...]:
    wait = policy.retry_after
    return (
        policy.name,
        policy.limit,
        None if policy.window is None else duration(policy.window),
        policy.remaining,
        duration(max(0.0, policy.reset - time.time())),
        "never" if policy.never else None if wait is None else duration(wait),
    )
