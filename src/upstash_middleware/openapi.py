"""What an OpenAPI document tells of limits: 429, its fields and its body; values only.

Nothing here imports a framework. Which operations are limited is read from the application's
routes and from its middleware's rules.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from upstash_middleware.routes import Route, of_starlette

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from upstash_middleware.core.ratelimit import RateLimitRule
    from upstash_middleware.settings import Settings

_NAME = "TooManyRequests"
_METHODS = ("get", "put", "post", "delete", "head", "patch", "trace")
_CONVERTER = re.compile(r":\w+\}")

_INTEGER = {"type": "integer", "minimum": 0}
_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Retry-After": ("Seconds after which the same request passes.", _INTEGER),
    "RateLimit-Policy": ('The limits: `"NAME";q=QUOTA;w=SECONDS`.', {"type": "string"}),
    "RateLimit": ('How they stand: `"NAME";r=REMAINING;t=SECONDS`.', {"type": "string"}),
    "X-RateLimit-Limit": ("The quota of the tightest limit.", _INTEGER),
    "X-RateLimit-Remaining": ("What is left of it.", _INTEGER),
    "X-RateLimit-Reset": ("When it is whole again, in seconds since 1970.", _INTEGER),
}
_PROBLEM = {
    "title": _NAME,
    "description": "A problem (RFC 9457) of the type quota-exceeded.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "violated-policies"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "const": 429},
        "detail": {"type": "string"},
        "violated-policies": {"type": "array", "items": {"type": "string"}},
    },
}


def document(schema: dict[str, Any], app: Any, settings: Iterable[Settings], own: bool) -> None:
    """Add the answer 429 to the limited operations of a Starlette-like application's document.

    What an operation says of 429 itself stays. ``own`` says that a denial has this package's
    body, and not one that the application makes. Changes the document, nothing if no operation is
    limited.
    """
    known = list(settings)
    limited = False
    for route in of_starlette(app):
        operations = schema.get("paths", {}).get(_CONVERTER.sub("}", route.path), {})
        for method in _limited(route, operations, known):
            responses = operations[method].setdefault("responses", {})
            responses.setdefault("429", {"$ref": f"#/components/responses/{_NAME}"})
            limited = True
    if limited:
        _define(schema.setdefault("components", {}), own)


def _limited(
    route: Route, operations: dict[str, Any], settings: Iterable[Settings]
) -> Iterator[str]:
    for method in _METHODS:
        if method not in operations or method.upper() not in route.methods or route.exempt:
            continue
        if route.limits or any(_limits(each, route, method.upper()) for each in settings):
            yield method


def _limits(settings: Settings, route: Route, method: str) -> bool:
    """Whether some request of this method for a route may be denied."""
    if not settings.enabled:
        return False
    for rule in settings.rate_limits:
        if _is_about(rule, route, method):
            if _denies(rule):
                return True
            if rule.when is None and not rule.shadow and settings.match == "first":
                return False
    return settings.default_limit is not None and _denies(settings.default_limit)


def _is_about(rule: RateLimitRule, route: Route, method: str) -> bool:
    return (not rule.methods or method in rule.methods) and (
        rule.pattern is None or route.serves(rule.pattern)
    )


def _denies(rule: RateLimitRule) -> bool:
    return rule.parsed is not None and not rule.shadow


def _define(components: dict[str, Any], own: bool) -> None:
    headers = components.setdefault("headers", {})
    for name, (description, of_type) in _FIELDS.items():
        headers.setdefault(name, {"description": description, "schema": dict(of_type)})
    response: dict[str, Any] = {
        "description": "Too many requests",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _FIELDS},
    }
    if own:
        components.setdefault("schemas", {}).setdefault(_NAME, _PROBLEM)
        body = {"schema": {"$ref": f"#/components/schemas/{_NAME}"}}
        response["content"] = {"application/problem+json": body}
    components.setdefault("responses", {}).setdefault(_NAME, response)
