"""``limits peek|explain|reset``: the state of limits, and why a request is denied."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer
from msgspec.structs import asdict

from upstash_middleware.cli.output import Answer, Exit, UsageError, duration, pairs, rows, text
from upstash_middleware.cli.session import Session, command
from upstash_middleware.core.identify import Identifier, of_address, parse_address
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import Headers, HTTPRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from upstash_middleware.core.ratelimit import Explanation, RateLimiter
    from upstash_middleware.runtime import Runtime

group: typer.Typer = typer.Typer(
    help="The state of rate limits, and why a request is denied.", no_args_is_help=True
)

_Rule = Annotated[
    str, typer.Argument(help="The rule's name, as in decisions and logs; `rules check` lists them.")
]
_Who = Annotated[
    str,
    typer.Argument(
        help="An address, KIND=VALUE (user=alice, header.x-api-key=KEY), or as in logs."
    ),
]

RootPath = Annotated[
    str,
    typer.Option(
        help="The prefix of the URL under which the application is mounted: SCRIPT_NAME, root_path."
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
    """Show the state of a rule's limits for an identifier; exit code 1 if it is denied."""
    runtime, limiter = _find_rule(session, rule)
    return _answer([runtime.perform(limiter.look(rule, _parse_identifier(identifier), cost))])


@command(group, "reset")
def reset(session: Session, rule: _Rule, identifier: _Who) -> Answer:
    """Give an identifier the whole quota of a rule again."""
    runtime, limiter = _find_rule(session, rule)
    runtime.perform(limiter.reset(rule, _parse_identifier(identifier)))
    remembered = runtime.settings.remember_denials
    shown = f"{identifier} has the whole quota of {rule!r} again"
    if remembered:
        shown += f"; processes that remember a denial notice within {duration(remembered)}"
    data = {"reset": {"rule": rule, "identifier": identifier}, "noticed_within": remembered}
    return Answer(data, [text(shown)])


@command(group, "explain")
def explain(  # noqa: PLR0913 - each is an option of the command
    session: Session,
    url: Annotated[str, typer.Argument(help="The request's URL, or its path.")],
    *,
    method: Annotated[str, typer.Option("--method", "-X", help="The request's method.")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header field, 'Name: value'.")
    ] = None,
    peer: Annotated[
        str, typer.Option(help="The address from which the request comes.")
    ] = "127.0.0.1",
    root_path: RootPath = "",
) -> Answer:
    """Show which rules cover a request, under which keys, and whether they would allow it."""
    request = make_request(url, method, header or (), peer, root_path)
    subject = session.subject
    routes = subject.routes or ()
    route = next((each for each in routes if each.takes(request.method, request.path)), None)
    if route is not None and route.exempt:
        shown = text(f"no rule limits this request: the handler of {route.path} is exempt", "green")
        return Answer({"limited": False, "allowed": True, "rules": [], "notes": []}, [shown])
    explanations: list[Explanation] = []
    for runtime in session.limiting():
        explanations += runtime.perform(_limiter(runtime).explain(request))
    # Functions of the application may have raised: the request has no framework's object.
    notes = [
        f"{event.where} raised {type(event.error).__name__}: {event.error}"
        for event in subject.events
        if isinstance(event, UserCodeFailed)
    ]
    return _answer(explanations, notes)


def make_request(
    url: str, method: str, fields: Sequence[str], peer: str, root_path: str = ""
) -> HTTPRequest:
    """The request that a command line describes.  Raises UsageError."""
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
    path, prefix = unquote(parts.path) or "/", root_path.rstrip("/")
    if not path.startswith(f"{prefix}/"):
        raise UsageError(f"--root-path {root_path!r}: {url!r} does not begin with it")
    return HTTPRequest(
        method=method.upper(),
        path=path.removeprefix(prefix),
        headers=headers,
        query=parts.query,
        scheme=parts.scheme or "http",
        host=(headers.get("host") or "").lower(),
        peer=peer,
        sent_path=parts.path or "/",
        root_path=prefix,
    )


def _limiter(runtime: Runtime) -> RateLimiter:
    return runtime.limiter(runtime.settings.rate_limits, runtime.settings.default_limit)


def _find_rule(session: Session, rule: str) -> tuple[Runtime, RateLimiter]:
    known: list[str] = []
    for runtime in session.limiting():
        settings = runtime.settings
        rules = [*settings.rate_limits, *filter(None, [settings.default_limit])]
        names = [each.name for each in rules if isinstance(each.parsed, tuple)]
        if rule in names:
            return runtime, _limiter(runtime)
        known += names
    raise UsageError(
        f"no rule with limits of this package is called {rule!r}; there are: "
        + (", ".join(map(repr, known)) or "none")
    )


def _parse_identifier(given: str) -> str | Identifier:
    """An identifier; as in logs, hashed or escaped, it is used unchanged."""
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


def _answer(explanations: Sequence[Explanation], notes: Sequence[str] = ()) -> Answer:
    enforced = [each for each in explanations if not each.shadow]
    denied = any(not each.decision.allowed for each in enforced)
    shown: list[RenderableType] = [text(f"note: {note}", "yellow") for note in notes]
    rules = []
    for each in explanations:
        decision = each.decision
        rules.append(
            {
                "rule": each.rule,
                "setting": each.setting,
                "identifier": each.identifier,
                "cost": each.cost,
                "shadow": each.shadow,
                "allowed": decision.allowed,
                "limit": decision.limit,
                "remaining": decision.remaining,
                "reset": decision.reset,
                "retry_after": decision.retry_after,
                "limits": [asdict(policy) for policy in decision.policies],
                "keys": list(each.keys),
            }
        )
        shown += _show(each)
    if not explanations:
        shown.append(text("no rule limits this request", "yellow"))
    data = {"limited": bool(enforced), "allowed": not denied, "rules": rules, "notes": list(notes)}
    return Answer(data, shown, Exit.NO if denied else Exit.DONE)


def _show(one: Explanation) -> list[RenderableType]:
    decision = one.decision
    rule = one.rule + (" (a shadow rule: it only reports)" if one.shadow else "")
    if decision.allowed:
        verdict = text(f"allowed by {rule}", "bold green")
    elif decision.retry_after is None:
        verdict = text(f"denied by {rule}: no wait is known after which it passes", "bold red")
    else:
        wait = duration(decision.retry_after)
        verdict = text(f"denied by {rule}: passes in {wait}", "bold red")
    about = {
        "set in": one.setting,
        "identifier": one.identifier,
        "cost": one.cost if one.cost != 1 else None,
        "keys": one.keys,
    }
    policies = [
        (
            policy.name,
            policy.limit,
            None if policy.window is None else duration(policy.window),
            policy.remaining,
            duration(max(0.0, policy.reset - time.time())),
            "never"
            if policy.never
            else None
            if policy.retry_after is None
            else duration(policy.retry_after),
        )
        for policy in decision.policies
    ]
    columns = ("limit", "quota", "window", "remaining", "resets in", "passes in")
    return [verdict, pairs(about), rows(columns, policies)]
