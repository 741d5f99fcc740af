"""``rules check``: reports mistakes in rules, and routes without a rule."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from upstash_middleware.cli.invocation import Invocation, command
from upstash_middleware.cli.output import Answer, Exit, UsageError, rows, text
from upstash_middleware.routes import django_resolves, never_served
from upstash_middleware.runtime import Features

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from upstash_middleware.cli.invocation import Subject
    from upstash_middleware.core.patterns import PathPattern
    from upstash_middleware.core.ratelimit import RateLimitRule
    from upstash_middleware.routes import Route
    from upstash_middleware.settings import Settings

group: typer.Typer = typer.Typer(help="Check the rules.", no_args_is_help=True)

_STYLES = {"error": "bold red", "warning": "yellow"}
_CACHED_METHODS = ("GET", "HEAD")


@group.callback()
def _group() -> None:
    """Check the rules."""


@command(group, "check")
def check(
    invocation: Invocation,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for warnings and unnamed routes too.")
    ] = False,
) -> Answer:
    """Check the settings, and list the application's routes without a rule."""
    subject = invocation.subject
    if not any(runtime.features for runtime in subject.runtimes):
        raise UsageError(
            f"{subject.name} sets no rules; name the application with --app MODULE:NAME or its "
            "rules with --config FILE"
        )
    findings = list(_findings(subject))
    limiting = [each.settings for each in subject.runtimes if Features.RATE_LIMIT in each.features]
    caching = [each.settings for each in subject.runtimes if Features.CACHE in each.features]
    routes = [_cover(route, limiting, caching) for route in subject.routes or ()]
    unnamed = [about["path"] for about, _ in routes if not about["named"]]
    shown: list[RenderableType] = [
        text(f"{each.level}: {each.where}: {each.what}", _STYLES[each.level]) for each in findings
    ]
    if not findings:
        shown.append(text(f"{subject.name}: nothing wrong with its rules", "green"))
    if subject.routes is None:
        shown.append(text("routes are listed for an application, by --app MODULE:NAME", "dim"))
    else:
        table = [
            (
                " ".join(about["methods"]) or "any",
                about["path"],
                limits or "none",
                about["cache"],
                None if about["named"] else "no rule names it",
            )
            for about, limits in routes
        ]
        shown += [text(""), rows(("methods", "route", "limit", "cache", ""), table)]
    data = {
        "subject": subject.name,
        "findings": [asdict(each) for each in findings],
        "routes": None if subject.routes is None else [about for about, _ in routes],
        "unnamed": None if subject.routes is None else unnamed,
    }
    wrong = [each for each in findings if strict or each.level == "error"]
    code = Exit.NO if wrong or (strict and unnamed) else Exit.DONE
    return Answer(data, shown, code)


# The rules that cover a route.


def _cover(
    route: Route, limiting: list[Settings], caching: list[Settings]
) -> tuple[dict[str, Any], str]:
    """A route with the rules that cover it, and a text with the limits that apply together."""
    found = [_covering_rule_names(route, settings) for settings in limiting]
    cache = next(
        (
            f"cache[{index}]"
            for settings in caching
            for index, rule in enumerate(settings.cache)
            if _have_common_method(_CACHED_METHODS, route) and route.serves(rule.pattern)
        ),
        None,
    )
    limits = [name for names, default in found for name in (*names, *default)]
    words = [
        " or ".join([f" {'and' if settings.match == 'all' else 'or'} ".join(names), *default])
        if names
        else "".join(default)
        for settings, (names, default) in zip(limiting, found, strict=True)
    ]
    words += [each.name for each in route.limits]
    about = {
        "path": route.path,
        "methods": list(route.methods),
        "limits": ["exempt"] if route.exempt else limits,
        "handler_limits": [each.name for each in route.limits],
        "cache": cache,
        # The default limit is for routes without a rule.
        "named": bool(route.exempt or route.limits or cache or any(names for names, _ in found)),
    }
    return about, "exempt" if route.exempt else " and ".join(filter(None, words))


def _covering_rule_names(route: Route, settings: Settings) -> tuple[list[str], list[str]]:
    """The names of the rules that may cover a route, and of the default limit if it may."""
    names = []
    default = [settings.default_limit.name] if settings.default_limit is not None else []
    for rule in settings.rate_limits:
        if not _have_common_method(rule.methods, route):
            continue
        if rule.pattern is not None and not route.serves(rule.pattern):
            continue
        names.append(rule.name if rule.parsed is not None else f"{rule.name} (unlimited)")
        if rule.when is None and _covers_methods(rule.methods, route.methods) and not rule.shadow:
            default = []
            if settings.match == "first":
                break
    return names, default


def _have_common_method(methods: Iterable[str], route: Route) -> bool:
    own = set(methods)
    return not own or not route.methods or not own.isdisjoint(route.methods)


def _covers_methods(methods: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a rule's methods include all others; an empty list means all methods."""
    own, needed = set(methods), set(others)
    if "GET" in own:
        own.add("HEAD")
    return not own or (bool(needed) and own >= needed)


# Mistakes in the rules.


@dataclass(frozen=True, slots=True)
class _Finding:
    """A mistake or a doubt."""

    level: Literal["error", "warning"]
    where: str
    what: str


def _findings(subject: Subject) -> Iterator[_Finding]:
    for feature, what in (
        (Features.RATE_LIMIT, "count each request"),
        (Features.CACHE, "store each page"),
    ):
        if sum(feature in runtime.features for runtime in subject.runtimes) > 1:
            yield _Finding("error", "middleware", f"two middlewares {what}; keep one of them")
    for runtime in subject.runtimes:
        if Features.RATE_LIMIT in runtime.features:
            yield from _check_limits(runtime.settings, subject)
        if Features.CACHE in runtime.features:
            yield from _check_caching(runtime.settings, subject)
    if subject.is_django:
        from django.core.checks import ERROR  # noqa: PLC0415 - only where it is installed

        from upstash_middleware.django.checks import check_middleware  # noqa: PLC0415 - likewise

        for message in check_middleware():
            level: Literal["error", "warning"] = "error" if message.level >= ERROR else "warning"
            yield _Finding(level, message.id or "", str(message.msg))


def _check_limits(settings: Settings, subject: Subject) -> Iterator[_Finding]:
    rules = settings.rate_limits
    for index, rule in enumerate(rules):
        earlier = [
            each
            for each in rules[:index]
            if settings.match == "first" and _makes_unreachable(each, rule)
        ]
        what = None
        if earlier:
            what = f"never reached: {earlier[0].name!r} comes before it and covers all of it"
        elif rule.pattern is not None:
            what = _why_unserved(rule.pattern, rule.methods, "covers", subject)
        if what:
            path = rule.path or ""  # names have no colons, and users look for the path
            name = rule.name.replace(path.replace(":path}", "}"), path) if path else rule.name
            yield _Finding("warning", f"rate_limits[{index}] {name!r}", what)
    whole = next((rule for rule in rules if _covers_everything(rule)), None)
    if settings.default_limit is not None and whole is not None:
        yield _Finding(
            "warning",
            "default_limit",
            f"never applies: the rule {whole.name!r} names every request, and default_limit is for "
            "those that no rule names; give that rule both limits, or leave one of them out",
        )
    if settings.default_limit is None and whole is None:
        unlimited = [
            each.path
            for each in subject.routes or ()
            if not (each.exempt or each.limits or any(_covering_rule_names(each, settings)))
        ]
        names = f" ({', '.join(unlimited[:5])}{' …' * (len(unlimited) > 5)})" if unlimited else ""
        yield _Finding(
            "warning",
            "default_limit",
            f"None, so requests that no rule names pass unlimited{names}, including those that "
            "end in 404",
        )


def _check_caching(settings: Settings, subject: Subject) -> Iterator[_Finding]:
    for index, rule in enumerate(settings.cache):
        earlier = [each for each in settings.cache[:index] if _is_wider(each.pattern, rule.pattern)]
        what = _why_unserved(rule.pattern, _CACHED_METHODS, "stores", subject)
        if earlier:
            what = f"never reached: {earlier[0].path!r} comes before it and covers all of it"
        if what:
            yield _Finding("warning", f"cache[{index}] {rule.path!r}", what)


def _why_unserved(
    pattern: PathPattern, methods: Iterable[str], verb: str, subject: Subject
) -> str | None:
    """The reason why no route serves the paths of a rule."""
    if subject.routes is None:
        return None
    resolves = django_resolves if subject.is_django else None
    if wrong := never_served(pattern, subject.routes, resolves=resolves):
        return wrong
    serving = [route for route in subject.routes if route.serves(pattern)]
    if serving and not any(_have_common_method(methods, route) for route in serving):
        return f"{verb} {'+'.join(methods)}, but the route has {'+'.join(serving[0].methods)} only"
    return None


def _covers_everything(rule: RateLimitRule) -> bool:
    is_restricted = rule.methods or rule.hosts or rule.when is not None or rule.shadow
    return rule.pattern is None and not is_restricted


def _makes_unreachable(earlier: RateLimitRule, later: RateLimitRule) -> bool:
    if earlier.when is not None or earlier.shadow or earlier.hosts not in {(), later.hosts}:
        return False
    if not _covers_methods(earlier.methods, later.methods):
        return False
    if earlier.pattern is None:
        return True
    return later.pattern is not None and _is_wider(earlier.pattern, later.pattern)


def _is_wider(one: PathPattern, other: PathPattern) -> bool:
    """Whether a pattern matches every path that another does."""
    several = re.sub(r"\{\w+:path\}", "x/y/z", other.text)
    return one.match(re.sub(r"\{\w+\}", "x", several)) is not None and (
        ":path}" not in other.text or ":path}" in one.text
    )
