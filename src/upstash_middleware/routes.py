"""An application's routes as plain values, from Starlette, FastAPI, Flask or Django.

A route is a path template with methods. Templates are parsed only as far as necessary to find the
rules that match them.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import msgspec

from upstash_middleware.decorators import (
    is_exempt,
    is_exempt_class,
    is_in_exempt_group,
    limits_before,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from upstash_middleware.core.patterns import PathPattern
    from upstash_middleware.core.ratelimit import RateLimitRule

_SAMPLES = {
    "int": "1",
    "float": "1.5",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "path": "x/y",
}
_EXPRESSIONS = {"int": r"\d+", "float": r"[\d.]+", "path": ".+"}
# {name}, {name:converter} in Starlette; <name>, <converter:name> in Flask and Django.
_PARAMETER = re.compile(
    r"\{(?P<curly>\w+)(?::(?P<after>\w+))?\}|<(?:(?P<before>\w+)(?:\([^)]*\))?:)?(?P<angle>\w+)>"
)
_RULE_VALUES = ("x", "1", _SAMPLES["uuid"])


class Route(msgspec.Struct, frozen=True):
    """A route of an application."""

    path: str
    """The path template in the framework's notation, including the prefix of its mount."""
    methods: tuple[str, ...] = ()
    """Empty for all methods."""
    exempt: bool = False
    """Whether the handler is exempt from limits."""
    limits: tuple[RateLimitRule, ...] = ()
    """The limits of the handler, outermost first."""

    @property
    def sample(self) -> str:
        """An example of a path that this route serves."""
        return _PARAMETER.sub(lambda found: _SAMPLES.get(_converter(found), "x"), self.path)

    def takes(self, method: str, path: str) -> bool:
        """Whether a request for this path would be routed here."""
        return (not self.methods or method in self.methods) and re.fullmatch(
            _expression(self.path), path
        ) is not None

    def serves(self, pattern: PathPattern) -> bool:
        """Whether a request that a rule's pattern matches could be routed here."""
        if pattern.covers(self.sample):
            return True
        expression = re.compile(_expression(self.path))
        return any(expression.fullmatch(path) for path in _samples_of(pattern))


def never_served(
    pattern: PathPattern, routes: Sequence[Route], *, resolves: Callable[[str], bool] | None = None
) -> str | None:
    """Return the problem of a rule's path that no route serves; None if one serves it.

    ``resolves`` checks paths that are not among the routes, such as Django's resolver.
    """
    if any(route.serves(pattern) for route in routes):
        return None
    if resolves is not None and any(resolves(path) for path in _samples_of(pattern)):
        return None
    known = [_PARAMETER.sub(_placeholder, route.path) for route in routes]
    shapes = {_shape(path) for path in known}
    segments = pattern.text.split("/")
    below = ("/" + "/".join(segments[index:]) for index in range(2, len(segments)))
    hint = ""
    if right := next((path for path in below if _shape(path) in shapes), None):
        hint = f"; did you mean {right!r}? A rule's path is written without root_path"
    elif close := difflib.get_close_matches(pattern.text, known, n=1):
        hint = f"; did you mean {close[0]!r}?"
    return f"no route of the application has this path{hint}"


def _shape(pattern: str) -> str:
    """Return a pattern without its placeholder names."""
    return re.sub(r"\{\w+", "{", pattern).rstrip("/")


def django_resolves(path: str) -> bool:
    """Whether the project's URL configuration finds a view for a path."""
    from django.urls import Resolver404, get_resolver  # noqa: PLC0415 - only if it is installed

    try:
        get_resolver().resolve(path)
    except Resolver404:
        return False
    return True


def _placeholder(parameter: re.Match[str]) -> str:
    """Return a route's parameter as a rule's placeholder."""
    name = parameter["curly"] or parameter["angle"]
    return f"{{{name}:path}}" if _converter(parameter) == "path" else f"{{{name}}}"


def _converter(parameter: re.Match[str]) -> str:
    return parameter["after"] or parameter["before"] or ""


def _expression(template: str) -> str:
    parts, end = [], 0
    for found in _PARAMETER.finditer(template):
        parts.append(re.escape(template[end : found.start()]))
        parts.append(_EXPRESSIONS.get(_converter(found), "[^/]+"))
        end = found.end()
    return "".join([*parts, re.escape(template[end:]), "/?"])


def _samples_of(pattern: PathPattern) -> Iterator[str]:
    for value in _RULE_VALUES:
        yield re.sub(r"\{\w+(:path)?\}", value, pattern.text).rstrip("/") or "/"


def starlette_routes(app: Any) -> tuple[Route, ...]:
    """Return the routes of a Starlette or FastAPI application, including those of mounts."""
    return tuple(_convert_routes(app, ""))


def _convert_routes(app: Any, prefix: str) -> Iterator[Route]:
    for route in _contexts(getattr(app, "routes", None) or ()):
        path = getattr(route, "path", None) or ""
        inside = getattr(route, "routes", None)
        if inside:
            mounted = getattr(route, "app", route)
            yield from _convert_routes(
                mounted if getattr(mounted, "routes", None) else route, prefix + path
            )
        elif getattr(route, "endpoint", None) is not None:
            # A WebSocket handshake counts as a GET.
            methods = tuple(sorted(getattr(route, "methods", ("GET",)) or ()))
            before = _dependencies(getattr(route, "dependant", None))
            limits = limits_before(route.endpoint, before)
            exempt = is_exempt(route.endpoint) or is_in_exempt_group(route.endpoint)
            yield Route(prefix + path, methods, exempt, limits)
        elif inside is not None:  # a mount without routes: all paths below it
            yield Route(f"{prefix}{path}/{{path:path}}")


def _dependencies(dependant: Any) -> Iterator[Any]:
    """Yield the functions that a FastAPI route depends on, directly or indirectly."""
    for each in getattr(dependant, "dependencies", ()):
        yield each.call
        yield from _dependencies(each)


def _contexts(routes: Sequence[Any]) -> Iterable[Any]:
    """Return routes, with included FastAPI routers replaced by their routes."""
    try:
        from fastapi.routing import iter_route_contexts  # noqa: PLC0415 - only if it is installed
    except ImportError:
        return routes
    return iter_route_contexts(routes)


def flask_routes(app: Any, prefix: str = "") -> tuple[Route, ...]:
    """Return the routes of a Flask application in the order of their definition."""
    return tuple(
        Route(
            prefix + rule.rule,
            tuple(sorted(set(rule.methods or ()) - {"OPTIONS"})),
            _is_exempt_in_flask(app, rule.endpoint),
            limits_before(
                app.view_functions.get(rule.endpoint), _before_request(app, rule.endpoint)
            ),
        )
        for rule in app.url_map.iter_rules()
    )


def _is_exempt_in_flask(app: Any, endpoint: str) -> bool:
    view = app.view_functions.get(endpoint)
    marked = (view, getattr(view, "view_class", None), *map(app.blueprints.get, _names(endpoint)))
    return any(map(is_exempt, marked))


def _before_request(app: Any, endpoint: str) -> Iterator[Any]:
    """Yield the application's and blueprints' functions that Flask calls before a view."""
    for name in (None, *_names(endpoint)):
        yield from app.before_request_funcs.get(name, ())


def _names(endpoint: str) -> list[str]:
    """Return the names of the blueprints that contain an endpoint, outermost first."""
    parts = endpoint.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def django_routes() -> tuple[Route, ...]:
    """Return the routes of the current Django project."""
    from django.urls import get_resolver  # noqa: PLC0415 - only if it is installed

    return tuple(_convert_patterns(get_resolver().url_patterns, "/"))


def _convert_patterns(patterns: Iterable[Any], prefix: str) -> Iterator[Route]:
    from django.contrib.admindocs.views import simplify_regex  # noqa: PLC0415 - as above
    from django.urls import LocalePrefixPattern  # noqa: PLC0415 - as above

    for each in patterns:
        text = str(each.pattern)
        if hasattr(each.pattern, "_regex"):  # re_path
            text = simplify_regex(text).removeprefix("/")
        if isinstance(each.pattern, LocalePrefixPattern):
            if not each.pattern.prefix_default_language:
                yield from _convert_patterns(each.url_patterns, prefix)
            text = "<language>/"
        if hasattr(each, "url_patterns"):
            yield from _convert_patterns(each.url_patterns, prefix + text)
        else:
            view = each.callback
            owner = getattr(view, "view_class", None) or getattr(view, "cls", None)
            exempt = is_exempt(view) or is_exempt_class(owner, "")
            # The limits of a Django REST framework view are named after the class.
            named = getattr(view, "cls", view)
            limits = limits_before(named, (view, *_throttles(view)))
            yield Route(prefix + text, exempt=exempt, limits=limits)


def _throttles(view: Any) -> Iterator[Any]:
    """Yield the limits of the throttle classes of a Django REST framework view."""
    classes = getattr(getattr(view, "cls", None), "throttle_classes", ())
    for each in getattr(view, "initkwargs", {}).get("throttle_classes", classes):
        yield getattr(each, "limit", None)
