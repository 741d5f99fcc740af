"""The response 429 in an OpenAPI document, with its fields and body.

The limited operations are determined from the application's routes and the middleware's rules.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from upstash_middleware.routes import starlette_routes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.ratelimit import RateLimitRule
    from upstash_middleware.routes import Route
    from upstash_middleware.settings import Settings

_NAME = "TooManyRequests"
_METHODS = ("get", "put", "post", "delete", "head", "patch", "trace")
_CONVERTER = re.compile(r":\w+\}")

_INTEGER = {"type": "integer", "minimum": 0}
_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Retry-After": ("Seconds after which the same request passes.", _INTEGER),
    "RateLimit-Policy": ('The limits: `"NAME";q=QUOTA;w=SECONDS`.', {"type": "string"}),
    "RateLimit": ('The state of the limits: `"NAME";r=REMAINING;t=SECONDS`.', {"type": "string"}),
    "X-RateLimit-Limit": ("The quota of the tightest limit.", _INTEGER),
    "X-RateLimit-Remaining": ("The remaining quota of that limit.", _INTEGER),
    "X-RateLimit-Reset": (
        "When the whole quota is available again, in seconds since 1970.",
        _INTEGER,
    ),
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


def document(
    schema: dict[str, Any], app: Any, settings: Sequence[Settings], *, own_body: bool
) -> None:
    """Add the response 429 to the limited operations of an application's OpenAPI document.

    A 429 that an operation declares itself is kept. ``own_body`` means that a denial has this
    package's body and not one of the application. If no operation is limited, nothing is changed.
    """
    limited = False
    for route in starlette_routes(app):
        operations = schema.get("paths", {}).get(_CONVERTER.sub("}", route.path), {})
        for method in _METHODS:
            if method not in operations or method.upper() not in route.methods or route.exempt:
                continue
            if route.limits or any(_limits(each, route, method.upper()) for each in settings):
                responses = operations[method].setdefault("responses", {})
                responses.setdefault("429", {"$ref": f"#/components/responses/{_NAME}"})
                limited = True
    if limited:
        _define(schema.setdefault("components", {}), own_body)


def _limits(settings: Settings, route: Route, method: str) -> bool:
    """Whether a request with this method to a route may be denied."""
    if not settings.enabled:
        return False
    for rule in settings.rate_limits:
        if rule.methods and method not in rule.methods:
            continue
        if rule.pattern is None or route.serves(rule.pattern):
            if _denies(rule):
                return True
            if rule.when is None and not rule.shadow and settings.match == "first":
                return False
    return settings.default_limit is not None and _denies(settings.default_limit)


def _denies(rule: RateLimitRule) -> bool:
    return rule.parsed is not None and not rule.shadow


def _define(components: dict[str, Any], own_body: bool) -> None:
    headers = components.setdefault("headers", {})
    for name, (description, of_type) in _FIELDS.items():
        headers.setdefault(name, {"description": description, "schema": dict(of_type)})
    response: dict[str, Any] = {
        "description": "Too many requests",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _FIELDS},
    }
    if own_body:
        components.setdefault("schemas", {}).setdefault(_NAME, _PROBLEM)
        body = {"schema": {"$ref": f"#/components/schemas/{_NAME}"}}
        response["content"] = {"application/problem+json": body}
    components.setdefault("responses", {}).setdefault(_NAME, response)
