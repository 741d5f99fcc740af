"""``limits``: lists limits, shows their state, explains denials, resets and changes limits."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer
from msgspec.structs import asdict, replace

from upstash_middleware.cli.invocation import Invocation, adapted, command, with_credentials
from upstash_middleware.cli.output import Answer, Exit, UsageError, duration, pairs, rows, text
from upstash_middleware.core.identify import (
    Identifier,
    address_identifier,
    identifier_of,
    joined,
    kinds_of,
    parse_address,
)
from upstash_middleware.core.ratelimit.rules import lease_of
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.limiter import limits_in_code
from upstash_middleware.messages import Headers, HTTPRequest
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.wsgi import EnvironBody

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from upstash_middleware.core.ratelimit import Explanation, Lease, RateLimiter, RateLimitRule

group: typer.Typer = typer.Typer(
    help="The state of rate limits, and why a request is denied.", no_args_is_help=True
)

_Rule = Annotated[
    str,
    typer.Argument(help="The limit's name, as in decisions and logs; `limits list` lists them."),
]
_IdentifierArgument = Annotated[
    str,
    typer.Argument(
        help="An address, KIND=VALUE (user=alice, header.x-api-key=KEY), several of them joined "
        "by & for combine(…), or as in logs."
    ),
]

RootPath = Annotated[
    str,
    typer.Option(
        help="The URL prefix under which the application is mounted: SCRIPT_NAME, root_path."
    ),
]

_IPV6_PREFIX = 64
_CHANGED_LIMIT_SUFFIX = ":dynamic:global"
"""The suffix of the key with a limit that was changed at run time."""
_MAX_IDENTIFIERS_PER_CALL = 100


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit: a rule of the middleware, of a decorated handler, or of a limiter in code."""

    rule: RateLimitRule
    where: str
    runtime: Runtime
    limiter: RateLimiter


@command(group, "list")
def list_(invocation: Invocation) -> Answer:
    """List the limits: rules, limits of handlers, limiters in code, and changed limits."""
    found = _limits(invocation)
    if any(each.rule.dynamic for each in found):
        with_credentials([each.runtime for each in found])
    data, table = [], []
    for each in found:
        rule, lease = each.rule, lease_of(each.rule, each.runtime.settings.lease)
        changed = (
            each.runtime.perform(each.limiter.changed_limit(rule.name)) if rule.dynamic else None
        )
        data.append(
            {
                "name": rule.name,
                "limits": _as_text(rule),
                "where": each.where,
                "on_error": rule.on_error,
                "lease": None if lease is None else asdict(lease),
                "dynamic": rule.dynamic,
                "changed_to": changed,
            }
        )
        shown = _lease_as_text(lease)
        table.append((rule.name, _as_text(rule), each.where, rule.on_error, shown, changed))
    columns = ("name", "limits", "where", "on_error", "lease", "changed to")
    if table:
        return Answer({"limits": data}, [rows(columns, table)])
    none = "there are no limits"
    if invocation.subject.routes is None:
        none += "; name the application with --app MODULE:NAME, or its rules with --config FILE"
    return Answer({"limits": data}, [text(none, "yellow")])


@command(group, "peek")
def peek(
    invocation: Invocation,
    rule: _Rule,
    identifier: _IdentifierArgument,
    *,
    cost: Annotated[int, typer.Option(help="The units of the request.", min=1)] = 1,
) -> Answer:
    """Show the state of a limit for an identifier; exit code 1 if it is denied."""
    limit = _find(invocation, rule)
    who = _parse_identifier(identifier, limit)
    return _explanations_answer([limit.runtime.perform(limit.limiter.look(rule, who, cost))])


@command(group, "top")
def top(
    invocation: Invocation,
    rule: _Rule,
    *,
    count: Annotated[int, typer.Option(help="The number to show.", min=1)] = 10,
) -> Answer:
    """Show the identifiers that have used most of a limit. Scans the whole database."""
    limit = _find(invocation, rule)
    start = limit.limiter.place(rule)
    known: dict[str, None] = {}
    for keys in invocation.scan(limit.runtime, start):
        for key in keys:
            identifier, colon, _ = key.removeprefix(start).rpartition(":")
            if colon and not key.endswith(_CHANGED_LIMIT_SUFFIX):
                known[identifier] = None
    identifiers, billed = list(known), invocation.billed
    used: list[tuple[int, Explanation]] = []
    for begin in range(0, len(identifiers), _MAX_IDENTIFIERS_PER_CALL):
        billed += 2
        some = identifiers[begin : begin + _MAX_IDENTIFIERS_PER_CALL]
        for each in limit.runtime.perform(limit.limiter.look_at(rule, some)):
            least = min(each.decision.policies, key=lambda one: one.remaining / (one.limit or 1))
            if least.remaining < least.limit or not each.decision.allowed:
                used.append((least.limit - least.remaining, each))
    used.sort(key=lambda pair: (pair[1].decision.allowed, -pair[0], pair[1].identifier))
    shown, table = [], []
    for units, each in used[:count]:
        decision = each.decision
        shown.append(
            {
                "identifier": each.identifier,
                "used": units,
                "remaining": decision.remaining,
                "allowed": decision.allowed,
                "retry_after": decision.retry_after,
            }
        )
        table.append((each.identifier, units, decision.remaining, _wait(decision.retry_after)))
    who = "1 identifier has" if len(used) == 1 else f"{len(used)} identifiers have"
    summary = text(f"{who} used {rule!r}; {billed} commands were billed", "dim")
    data = {"rule": rule, "count": len(used), "top": shown, "billed_commands": billed}
    columns = ("identifier", "used", "remaining", "passes in")
    return Answer(data, [*[rows(columns, table)] * bool(table), summary])


@command(group, "reset")
def reset(invocation: Invocation, rule: _Rule, identifier: _IdentifierArgument) -> Answer:
    """Restore an identifier's full quota of a limit."""
    limit = _find(invocation, rule)
    who = _parse_identifier(identifier, limit)
    limit.runtime.perform(limit.limiter.reset(rule, who))
    remembered = limit.runtime.settings.remember_denials
    shown = (
        f"{identifier} has the whole quota of {rule!r} again{_denial_memory_note(limit.runtime)}"
    )
    data = {"reset": {"rule": rule, "identifier": identifier}, "noticed_within": remembered}
    return Answer(data, [text(shown)])


@command(group, "set")
def set_(
    invocation: Invocation,
    rule: _Rule,
    limit: Annotated[
        str,
        typer.Argument(help="Units per window, at least 0; 'default' for the limit in the code."),
    ],
) -> Answer:
    """Change a limit with dynamic=True for all processes, until the next change."""
    found = _find(invocation, rule)
    if limit != "default" and not (limit.isascii() and limit.isdecimal()):
        raise UsageError(f"{limit!r}: write a whole number from 0, or 'default'")
    units = None if limit == "default" else int(limit)
    try:
        found.runtime.perform(found.limiter.set_limit(rule, units))
    except ValueError as error:
        raise UsageError(str(error)) from error
    what = "its original limit again" if units is None else f"a limit of {units}"
    shown = f"{rule!r} has {what}{_denial_memory_note(found.runtime)}"
    remembered = found.runtime.settings.remember_denials
    return Answer({"rule": rule, "limit": units, "noticed_within": remembered}, [text(shown)])


def _denial_memory_note(runtime: Runtime) -> str:
    remembered = runtime.settings.remember_denials
    if not remembered:
        return ""
    return f"; processes that remember a denial notice within {duration(remembered)}"


@command(group, "explain")
def explain(  # noqa: PLR0913 - each is an option of the command
    invocation: Invocation,
    url: Annotated[str, typer.Argument(help="The request's URL, or its path.")],
    *,
    method: Annotated[
        str, typer.Option("--method", "-X", help="The method; GET, or POST with --data.")
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header field, 'Name: value'.")
    ] = None,
    data: Annotated[
        str, typer.Option("--data", "-d", help="The body: 'username=ada', or JSON with its type.")
    ] = "",
    peer: Annotated[
        str, typer.Option(help="The address from which the request comes.")
    ] = "127.0.0.1",
    root_path: RootPath = "",
) -> Answer:
    """Show the rules that cover a request, their keys, and whether they would allow it."""
    if data:
        typed = any(each.lower().startswith("content-type:") for each in header or ())
        form = "Content-Type: application/x-www-form-urlencoded"
        header = [*(header or ()), *[form] * (not typed)]
    request = make_request(
        url, method or ("POST" if data else "GET"), header or (), peer, root_path
    )
    environ = {"wsgi.input": BytesIO(data.encode()), "CONTENT_LENGTH": str(len(data.encode()))}
    request = replace(request, body=EnvironBody(environ))
    subject = invocation.subject
    routes = subject.routes or ()
    route = next((each for each in routes if each.takes(request.method, request.path)), None)
    if route is not None and route.exempt:
        shown = text(f"no rule limits this request: the handler of {route.path} is exempt", "green")
        return Answer({"limited": False, "allowed": True, "rules": [], "notes": []}, [shown])
    explanations: list[Explanation] = []
    for runtime in invocation.limiting():
        explanations += runtime.perform(_limiter(runtime).explain(request))
    # Functions of the application may raise, because there is no framework's request.
    notes = [
        f"{event.where} raised {type(event.error).__name__}: {event.error}"
        for event in subject.events
        if isinstance(event, UserCodeFailed)
    ]
    if route is not None and route.limits:
        names = ", ".join(repr(each.name) for each in route.limits)
        notes.append(
            f"the handler of {route.path} also has the limits {names}, which are not included: "
            "they decide inside the application"
        )
    return _explanations_answer(explanations, notes)


def fields_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The header fields of ``Name: value`` options. Raises UsageError."""
    fields = []
    for each in texts:
        name, colon, value = each.partition(":")
        if not colon or not name.strip() or not each.isprintable():
            raise UsageError(f"--header {each!r}: write 'Name: value'")
        fields.append((name.strip(), value.strip()))
    return fields


def make_request(
    url: str, method: str, fields: Sequence[str], peer: str, root_path: str = ""
) -> HTTPRequest:
    """The request that a command line describes. Raises UsageError."""
    parts = urlsplit(url)
    if not (url.startswith("/") or (parts.scheme in {"http", "https"} and parts.netloc)):
        raise UsageError(f"{url!r}: give a path such as '/products/7', or a whole URL")
    raw = [("host", parts.netloc)] if parts.netloc else []
    raw += fields_of(fields)
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


def _limits(invocation: Invocation) -> list[_Limit]:
    """The limits of requests and of code, with their settings."""
    subject = invocation.subject
    found: dict[tuple[str, str], _Limit] = {}

    def add(rule: RateLimitRule, where: str, runtime: Runtime, limiter: RateLimiter | None) -> None:
        limiter = limiter or runtime.limiter((rule,), at_handler=True)
        found.setdefault(
            (runtime.settings.prefix, rule.name), _Limit(rule, where, runtime, limiter)
        )

    for runtime in subject.runtimes:
        if Features.RATE_LIMIT in runtime.features and runtime.has_limits:
            limiter, settings = _limiter(runtime), runtime.settings
            for index, rule in enumerate(settings.rate_limits):
                add(rule, f"rate_limits[{index}]", runtime, limiter)
            if settings.default_limit is not None:
                add(settings.default_limit, "default_limit", runtime, limiter)
    own = max(
        subject.runtimes,
        key=lambda one: (one.has_limits, Features.RATE_LIMIT in one.features),
    )
    for route in subject.routes or ():
        for rule in route.limits:
            add(rule, route.path, own, None)
    for rule, app, alone in limits_in_code():
        runtime = own
        if alone is None:
            if not isinstance(app, str) and not subject.is_about(app):
                continue
        else:
            runtime = adapted(Runtime(alone, Features(0)), invocation.prefix, subject.events)
            invocation.closing.callback(runtime.close)
        add(rule, "code", runtime, None)
    return [each for each in found.values() if each.rule.parsed is not None]


def _find(invocation: Invocation, rule: str) -> _Limit:
    known = _limits(invocation)
    for limit in known:
        if limit.rule.name == rule and rule in limit.limiter.rules:
            with_credentials([limit.runtime])
            return limit
        if limit.rule.name == rule:
            raise UsageError(
                f"the limits of {rule!r} are a function, and only a request tells which apply; "
                "for a rule of the middleware, run 'limits explain URL'"
            )
    names = [each.rule.name for each in known if each.rule.name in each.limiter.rules]
    raise UsageError(
        f"no rule with limits of this package is called {rule!r}; there are: "
        + (", ".join(map(repr, names)) or "none")
    )


def _as_text(rule: RateLimitRule) -> str:
    if isinstance(rule.limits, str):
        return rule.limits
    return "; ".join(map(str, rule.parsed)) if isinstance(rule.parsed, tuple) else "a function"


def _parse_identifier(given: str, limit: _Limit) -> str | Identifier:
    """An identifier; in the form of logs, hashed or escaped, it is used unchanged.

    Raises UsageError if the rule does not use identifiers of this kind.
    """
    extractor = limit.rule.extractor
    kinds = None if limit.where == "code" else kinds_of(extractor)
    for each in kinds or ():
        names = each.split("+")
        pattern = "&".join(f"{re.escape(name)}=(.+)" for name in names)
        if len(names) > 1 and (found := re.fullmatch(pattern, given)):
            return joined(
                [_make_identifier(limit, *one) for one in zip(names, found.groups(), strict=True)]
            )
    if (address := parse_address(given)) is not None:
        who: str | Identifier = address_identifier(address, _IPV6_PREFIX)
        kind = "ip"
    else:
        kind, equals, value = given.partition("=")
        if not equals:
            who = identifier_of(extractor, None, given)
            kind = who.kind
        elif not kind or not value:
            raise UsageError(f"{given!r}: write KIND=VALUE, such as user=alice or ip=203.0.113.7")
        else:
            is_as_in_logs = value.startswith("#") or "%" in value
            who = given if is_as_in_logs else _make_identifier(limit, kind, value)
    if kinds is not None and unquote(kind) not in kinds:
        shown = " or ".join("&".join(f"{name}=…" for name in each.split("+")) for each in kinds)
        raise UsageError(f"{given!r}: {limit.rule.name!r} identifies clients by {shown}")
    return who


def _make_identifier(limit: _Limit, kind: str, value: str) -> Identifier:
    address = parse_address(value) if kind == "ip" else None
    if address is not None:
        return address_identifier(address, _IPV6_PREFIX)
    return identifier_of(limit.rule.extractor, kind, value)


def _lease_as_text(lease: Lease | None) -> str | None:
    if lease is None:
        return None
    since = "" if lease.from_rate is None else f", from {lease.from_rate:g}/s"
    return f"{duration(lease.milliseconds / 1000)}, share {lease.share:g}{since}"


def _explanations_answer(explanations: Sequence[Explanation], notes: Sequence[str] = ()) -> Answer:
    enforced = [each for each in explanations if not each.shadow]
    denied = any(not each.decision.allowed for each in enforced)
    shown: list[RenderableType] = [text(f"note: {note}", "yellow") for note in notes]
    rules = []
    for each in explanations:
        decision, lease = each.decision, each.lease
        rules.append(
            {
                "rule": each.rule,
                "setting": each.setting,
                "identifier": each.identifier,
                "cost": each.cost,
                "lease": None if lease is None else asdict(lease),
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
    else:
        wait = _wait(decision.retry_after)
        why = f"passes in {wait}" if wait else "it is not known when it would pass"
        verdict = text(f"denied by {rule}: {why}", "bold red")
    about = {
        "set in": one.setting,
        "identifier": one.identifier,
        "cost": one.cost if one.cost != 1 else None,
        "lease": one.lease and f"{_lease_as_text(one.lease)}; reserved units count as used",
        "keys": one.keys,
    }
    policies = [
        (
            policy.name,
            policy.limit,
            _wait(policy.window),
            policy.remaining,
            duration(max(0.0, policy.reset - time.time())),
            "never" if policy.never else _wait(policy.retry_after),
        )
        for policy in decision.policies
    ]
    columns = ("limit", "quota", "window", "remaining", "resets in", "passes in")
    return [verdict, pairs(about), rows(columns, policies)]


def _wait(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)
