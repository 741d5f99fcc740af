"""What can be said about rules without a request: what is never reached, and what is left out."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from upstash_middleware.gateway import Halves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upstash_middleware.core.cache import CacheRule
    from upstash_middleware.core.patterns import PathPattern
    from upstash_middleware.core.ratelimit import RateLimitRule
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.routes import Route
    from upstash_middleware.settings import Settings

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at."""

    level: Level
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Covered:
    """A route, and the rules that are about it."""

    route: Route
    limits: tuple[str, ...]
    """Names of rules in order; all but the last apply only if their ``when`` says so."""
    caches: tuple[str, ...]
    named: bool
    """Whether any rule names it: the default limit is for what none does."""


def findings(gateways: Sequence[Gateway], routes: Sequence[Route] | None) -> Iterator[Finding]:
    """Yield what is doubtful about the settings of an application's middlewares."""
    for half, what in (
        (Halves.RATE_LIMIT, "count each request"),
        (Halves.CACHE, "store each page"),
    ):
        if sum(half in gateway.halves for gateway in gateways) > 1:
            yield Finding("error", "middleware", f"two middlewares {what}; keep one of them")
    for gateway in gateways:
        settings = gateway.settings
        if Halves.RATE_LIMIT in gateway.halves:
            yield from _about_limits(settings, routes)
        if Halves.CACHE in gateway.halves:
            yield from _about_caching(settings, routes)


def coverage(gateways: Sequence[Gateway], routes: Sequence[Route]) -> list[Covered]:
    """Return which rules are about each route."""
    limiting = [gateway.settings for gateway in gateways if Halves.RATE_LIMIT in gateway.halves]
    caching = [gateway.settings for gateway in gateways if Halves.CACHE in gateway.halves]
    return [_covered(route, limiting, caching) for route in routes]


def _covered(route: Route, limiting: list[Settings], caching: list[Settings]) -> Covered:
    found = [_limits_on(route, settings) for settings in limiting]
    limits = [name for names, _ in found for name in names]
    named = route.exempt or bool(route.limits) or any(by_name for _, by_name in found)
    caches = tuple(
        f"cache[{index}]"
        for settings in caching
        for index, rule in enumerate(settings.cache)
        if _meets(rule.methods, route.methods) and route.serves(rule.pattern)
    )[:1]
    shown = ("exempt",) if route.exempt else tuple(limits)
    return Covered(route, shown, caches, named or bool(caches))


def _limits_on(route: Route, settings: Settings) -> tuple[list[str], bool]:
    names = []
    for rule in settings.rate_limits:
        if not _is_about(rule, route):
            continue
        names.append(rule.name if rule.parsed is not None else f"{rule.name} (unlimited)")
        whole = rule.when is None and _holds(rule.methods, route.methods) and not rule.shadow
        if whole and settings.match == "first":
            return names, True
    default = [settings.default_limit.name] if settings.default_limit is not None else []
    return names + default, bool(names)


def _is_about(rule: RateLimitRule, route: Route) -> bool:
    pattern = rule.pattern
    return _meets(rule.methods, route.methods) and (pattern is None or route.serves(pattern))


def _meets(of_rule: Sequence[str] | object, of_route: Sequence[str]) -> bool:
    methods = tuple(of_rule) if isinstance(of_rule, tuple | list) else ()
    return not methods or not of_route or not set(methods).isdisjoint(of_route)


def _holds(of_rule: object, of_route: Sequence[str]) -> bool:
    """Whether a rule's methods are all of a route's."""
    methods = set(of_rule) if isinstance(of_rule, tuple | list) else set()
    if "GET" in methods:
        methods.add("HEAD")
    return not methods or (bool(of_route) and methods.issuperset(of_route))


def _about_limits(settings: Settings, routes: Sequence[Route] | None) -> Iterator[Finding]:
    rules = settings.rate_limits
    for index, rule in enumerate(rules):
        where = f"rate_limits[{index}] {rule.name!r}"
        earlier = [one for one in rules[:index] if settings.match == "first" and _hides(one, rule)]
        if earlier:
            what = f"never reached: {earlier[0].name!r} stands before it and covers all of it"
            yield Finding("warning", where, what)
        elif routes is not None and rule.path and not any(_is_about(rule, one) for one in routes):
            yield Finding("warning", where, _no_route(rule.path, routes))
    if settings.default_limit is None:
        unlimited = [one.path for one in routes or () if _is_unlimited(one, settings)]
        names = f" ({', '.join(unlimited[:5])}{' …' * (len(unlimited) > 5)})" if unlimited else ""
        yield Finding(
            "warning",
            "default_limit",
            f"None, so requests that no rule names pass unlimited{names}, those that end in 404 "
            "included",
        )


def _is_unlimited(route: Route, settings: Settings) -> bool:
    return not (route.exempt or route.limits or _limits_on(route, settings)[0])


def _about_caching(settings: Settings, routes: Sequence[Route] | None) -> Iterator[Finding]:
    for index, rule in enumerate(settings.cache):
        where = f"cache[{index}] {rule.path!r}"
        earlier = [one for one in settings.cache[:index] if _hides_page(one, rule)]
        if earlier:
            what = f"never reached: {earlier[0].path!r} stands before it and covers all of it"
            yield Finding("warning", where, what)
            continue
        if routes is None:
            continue
        serving = [route for route in routes if route.serves(rule.pattern)]
        if not serving:
            yield Finding("warning", where, _no_route(rule.path, routes))
        elif not any(_meets(rule.methods, route.methods) for route in serving):
            has = "+".join(serving[0].methods)
            yield Finding(
                "warning", where, f"stores {'+'.join(rule.methods)}, but the route has {has} only"
            )


def _hides(earlier: RateLimitRule, later: RateLimitRule) -> bool:
    if earlier.when is not None or earlier.shadow or not _holds(earlier.methods, _tuple(later)):
        return False
    if earlier.pattern is None:
        return True
    return later.pattern is not None and _wider(earlier.pattern, later.pattern)


def _tuple(rule: RateLimitRule) -> tuple[str, ...]:
    return tuple(rule.methods)


def _hides_page(earlier: CacheRule, later: CacheRule) -> bool:
    held = set(later.methods) <= set(earlier.methods)
    return held and _wider(earlier.pattern, later.pattern)


def _wider(one: PathPattern, other: PathPattern) -> bool:
    """Whether a pattern matches all that another does."""
    several = re.sub(r"\{\w+:path\}", "x/y/z", other.text)
    return one.match(re.sub(r"\{\w+\}", "x", several)) is not None and (
        ":path}" not in other.text or ":path}" in one.text
    )


def _no_route(path: str, routes: Sequence[Route]) -> str:
    close = difflib.get_close_matches(path, [route.path for route in routes], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"no route of the application has this path{hint}"
