"""An application's routes as plain values, from Starlette, FastAPI, Flask or Django.

A route here is a template and its methods. Templates are read only as far as it takes to tell
which rule's pattern is about them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from upstash_middleware.decorated import dependencies, limits_before
from upstash_middleware.handlers import is_exempt
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from upstash_middleware.core.patterns import PathPattern

_SAMPLES = {
    "int": "1",
    "float": "1.5",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "path": "x/y",
}
_EXPRESSIONS = {"int": r"\d+", "float": r"[\d.]+", "path": ".+"}
# {name}, {name:converter} as Starlette has it; <name>, <converter:name> as Flask and Django do.
_PARAMETER = re.compile(
    r"\{(?P<curly>\w+)(?::(?P<after>\w+))?\}|<(?:(?P<before>\w+)(?:\([^)]*\))?:)?(?P<angle>\w+)>"
)
_RULE_VALUES = ("x", "1", _SAMPLES["uuid"])


@dataclass(frozen=True, slots=True)
class Route:
    """A route of an application's."""

    path: str
    """Its template, as the framework writes it, with what it is mounted under."""
    methods: tuple[str, ...] = ()
    """Empty for all."""
    exempt: bool = False
    """Whether its handler is marked as exempt from limits."""
    limits: tuple[str, ...] = ()
    """Names of the limits that stand in front of its handler."""

    @property
    def sample(self) -> str:
        """A path that this route would serve."""
        return _PARAMETER.sub(lambda found: _SAMPLES.get(_converter(found), "x"), self.path)

    def takes(self, method: str, path: str) -> bool:
        """Whether a request for this path would come here."""
        return (not self.methods or method in self.methods) and re.fullmatch(
            _expression(self.path), path
        ) is not None

    def serves(self, pattern: PathPattern) -> bool:
        """Whether some request that a rule's pattern is about would come here."""
        if pattern.match(self.sample) is not None:
            return True
        expression = re.compile(_expression(self.path))
        return any(expression.fullmatch(path) for path in _samples_of(pattern))


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


def of_starlette(app: Any) -> tuple[Route, ...]:
    """Return the routes of a Starlette or FastAPI application, those of its mounts included."""
    return tuple(_of_routes(app, ""))


def _of_routes(app: Any, prefix: str) -> Iterator[Route]:
    for route in _contexts(getattr(app, "routes", None) or ()):
        path = getattr(route, "path", None) or ""
        inside = getattr(route, "routes", None)
        if inside:
            mounted = getattr(route, "app", route)
            yield from _of_routes(
                mounted if getattr(mounted, "routes", None) else route, prefix + path
            )
        elif hasattr(route, "methods") and hasattr(route, "endpoint"):
            methods = tuple(sorted(route.methods or ()))
            before = dependencies(getattr(route, "dependant", None))
            limits = limits_before(route.endpoint, before)
            yield Route(prefix + path, methods, is_exempt(route.endpoint), limits)
        elif inside is not None:  # a mount of something that tells no routes: all below it
            yield Route(f"{prefix}{path}/{{path:path}}")


def _contexts(routes: Sequence[Any]) -> Iterable[Any]:
    """Return routes with those of FastAPI's included routers in their place."""
    try:
        from fastapi.routing import iter_route_contexts  # noqa: PLC0415 - only where it is there
    except ImportError:
        return routes
    return iter_route_contexts(routes)


def of_flask(app: Any) -> tuple[Route, ...]:
    """Return the routes of a Flask application, in the order in which they were added."""
    return tuple(
        Route(
            rule.rule,
            tuple(sorted(set(rule.methods or ()) - {"OPTIONS"})),
            is_exempt(view := app.view_functions.get(rule.endpoint))
            or is_exempt(getattr(view, "view_class", None)),
            limits_before(view, _before_request(app, rule.endpoint)),
        )
        for rule in app.url_map.iter_rules()
    )


def _before_request(app: Any, endpoint: str) -> Iterator[Any]:
    """Yield what Flask calls before a view, for all of them and for its blueprints."""
    names: list[str | None] = [None]
    parts = endpoint.split(".")[:-1]
    names += [".".join(parts[: end + 1]) for end in range(len(parts))]
    for name in names:
        yield from app.before_request_funcs.get(name, ())


def of_django() -> tuple[Route, ...]:
    """Return the routes of the Django project whose settings are in force."""
    from django.urls import get_resolver  # noqa: PLC0415 - only where it is there

    return tuple(_of_patterns(get_resolver().url_patterns, "/"))


def _of_patterns(patterns: Iterable[Any], prefix: str) -> Iterator[Route]:
    from django.contrib.admindocs.views import simplify_regex  # noqa: PLC0415 - likewise

    for each in patterns:
        text = str(each.pattern)
        if hasattr(each.pattern, "_regex"):  # re_path
            text = simplify_regex(text).removeprefix("/")
        if hasattr(each, "url_patterns"):
            yield from _of_patterns(each.url_patterns, prefix + text)
        else:
            view = each.callback
            exempt = is_exempt(view) or is_exempt(getattr(view, "view_class", None))
            # Of a view of Django REST framework's, limits are named after the class.
            named = getattr(view, "cls", view)
            limits = limits_before(named, (view, *_throttles(view)))
            yield Route(prefix + text, exempt=exempt, limits=limits)


def _throttles(view: Any) -> Iterator[Any]:
    """Yield the limits of the throttle classes that Django REST framework asks before a view."""
    classes = getattr(getattr(view, "cls", None), "throttle_classes", ())
    for each in getattr(view, "initkwargs", {}).get("throttle_classes", classes):
        yield getattr(each, "limit", None)
