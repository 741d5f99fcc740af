"""docs/reference/: the public names by topic, with parameters and errors, from the code.

A module's public names are those of its ``__all__``; of one without, the classes and functions that
it defines. Each is on one page: that of its topic, or of its module.
"""

from __future__ import annotations

import enum
import inspect
import re
from importlib import import_module
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from documentation.docstrings import (
    Parameter,
    described,
    file_of,
    is_async,
    parameters_of,
    plain,
    returned_by,
)
from documentation.site import table
from upstash_middleware.core.ratelimit.algorithms import Limit
from upstash_middleware.settings import WithSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES: Final = {
    "upstash_middleware": "What all frameworks share.",
    "upstash_middleware.starlette": "For Starlette, and FastAPI's applications.",
    "upstash_middleware.fastapi": "For FastAPI: limits and caching are dependencies.",
    "upstash_middleware.flask": "For Flask.",
    "upstash_middleware.django": "For Django, sync and async.",
    "upstash_middleware.django.cache": "For Django's setting `CACHES`.",
    "upstash_middleware.django.sessions": "Django's `SESSION_ENGINE`.",
    "upstash_middleware.django.rest_framework": "For Django REST framework.",
    "upstash_middleware.asgi": "For any ASGI application.",
    "upstash_middleware.wsgi": "For any WSGI application.",
    "upstash_middleware.events": "What observers are called with.",
    "upstash_middleware.prometheus": "Events as Prometheus metrics.",
    "upstash_middleware.opentelemetry": "Events as OpenTelemetry metrics and spans.",
    "upstash_middleware.local": "Upstash on your own machine.",
}
PAGES: Final = {
    "middleware": ("Middleware", "The classes that wrap an application."),
    "rules": ("Rules and algorithms", "What requests are limited and cached, and how."),
    "identifiers": ("Identifiers and requests", "Whose quota a request uses, and its decision."),
    "decorators": ("Decorators", "Limits and caching for single handlers."),
    "limiter": ("Limiter", "Limits that the application's code calls."),
    "cache": ("Cache and purge", "Purging and warming stored responses."),
    "sessions": ("Sessions", "Sessions on Upstash."),
    "data": ("Data", "A cache for the application's own values."),
    "redis": ("Redis", "Redis commands over Upstash's HTTP interface."),
    "errors": ("Errors", "The exceptions, which `upstash_middleware.errors` draws as a tree."),
    "events": ("Events and metrics", "What observers are called with, and where it is exported."),
    "testing": ("Testing and the local Upstash", "Upstash on your own machine."),
}
"""By the name of the file, its title and its first sentence."""
_TOPICS: Final = {
    "middleware": "UpstashMiddleware RateLimitMiddleware CacheMiddleware document_limits CONFIG "
    "EXTENSION",
    "rules": "RateLimitRule CacheRule FixedWindow SlidingWindow GCRA SlidingLog TokenBucket "
    "Concurrency UNLIMITED Lease",
    "identifiers": "client_ip combine cookie first_of form hashed header json_field jwt_claim "
    "query Identifier user HTTPRequest Headers Decision PolicyState",
    "decorators": "limit cached cache_page never_cached exempt throttle Throttle denied "
    "rate_limited RateLimitedRequest",
    "limiter": "Limiter SyncLimiter as_upstash_limiter",
    "cache": "Purge CacheHandle purge apurge warm awarm Warmed caching_backend UpstashCache",
    "sessions": "SessionMiddleware SessionSettings Session session Sessions SessionStore",
    "data": "Data SyncData data async_data",
    "redis": "Redis AsyncRedis redis aredis",
}
_TYPES: Final = (
    ("`Duration`", 'seconds, a `timedelta`, or text such as `"500ms"` and `"5 minutes"`'),
    (
        "`AnyLimits`",
        (
            "a limit (text, an algorithm, or a limiter of `upstash_ratelimit`), or several; "
            "or a function of the request, sync or async, that returns these"
        ),
    ),
    ("`Limits`", "text, an algorithm, or several of these"),
    ("`AnyExtractor`", "an extractor, or a function of the request, sync or async"),
    ("`AnyLease`", "a duration, a `Lease`, a mapping of its fields, or False"),
    ("`OnError`", '`"open"`, `"closed"` or `"local"`'),
    ("`Cost`", "units, or a function of the request, sync or async, that returns them"),
    ("`Settle`", "a function of request and response, sync or async, that returns units"),
    ("`Predicate`", "a function of the request, sync or async, that returns True or False"),
    ("`Caller`", "text, an integer, a UUID, an `Identifier`, a `Decision` or a request"),
    ("`OnDenied`", "a function of request and `Decision`: status, header fields and body"),
    ("`Observer`", "a function of one event"),
)
_PROXIES: Final = frozenset({"LocalProxy", "LazyProxy"})
_OF_PROXIES: Final = {
    "session": "upstash_middleware.Session",
    "data": "upstash_middleware.SyncData",
    "async_data": "upstash_middleware.Data",
    "redis": "upstash_middleware.Redis",
    "aredis": "upstash_middleware.AsyncRedis",
}
_INTERNAL: Final = frozenset(
    {
        "answer",
        "check_route",
        "cookie_field",
        "covers",
        "get_backend_timeout",
        "over",
        "with_client",
    }
    | {"runtime_for", "tags_for", "ttl_for"}
)
"""Methods that this package calls itself."""
_WITH_OWN_ARGUMENTS: Final = frozenset({"from_env"})
"""Methods of another package's interface that have other arguments here."""
_CREATED: Final = frozenset({"CacheHandle", "Session", "UpstashCache", "caching_backend"})
"""Whose parameters no application gives: this package or another one calls them."""
_FULLY_SHOWN: Final = "upstash_middleware.starlette.UpstashMiddleware"
"""Of the classes with all settings, the one whose signature shows them."""
_WIDEST: Final = 88
_GENERATED: Final = "`make docs-tables` writes this page from the code."


def page_of(module: str, name: str) -> str:
    """Return the page that has a public name."""
    value = getattr(import_module(module), name)
    if isinstance(value, type) and issubclass(value, Exception):
        return "errors"
    for page, names in _TOPICS.items():
        if name in names.split():
            return page
    last = module.rpartition(".")[2]
    return {"prometheus": "events", "opentelemetry": "events", "local": "testing"}.get(last, last)


def places() -> dict[str, dict[str, Any]]:
    """Return for each page its names with what they are; a name in two modules is the first's."""
    found: dict[str, dict[str, Any]] = {page: {} for page in PAGES}
    for module in MODULES:
        for name in public_names(module):
            value = getattr(import_module(module), name)
            found[page_of(module, name)][f"{module}.{name}"] = value
    return found


def reference_pages() -> dict[str, str]:
    """Return the pages of docs/reference/ that are made from the code, by their file's name."""
    made = {}
    for page, names in places().items():
        title, first = PAGES[page]
        parts = [f"# {title}\n\n{_GENERATED} {first}\n"]
        known: dict[int, str] = {}
        for path, value in _in_order(page, names):
            parts.append(f"\n## `{path}`\n\n")
            same = known.setdefault(id(value), path)
            if same != path and not isinstance(value, str):
                parts.append(f"The same as [`{same}`](#{anchor(same)}).\n")
            else:
                parts += _entry(path, value)
        made[page] = "".join(parts)
    made["names"] = _index()
    return made


def undocumented() -> Iterator[str]:
    """Yield the parameters that applications give and no docstring explains."""
    for names in places().values():
        for path, value in names.items():
            if not callable(value) or type(value).__name__ in _PROXIES:
                continue
            if isinstance(value, type) and issubclass(value, Exception | enum.Enum):
                continue
            called = {path: value}
            if isinstance(value, type):
                called |= {f"{path}.{name}": each for name, each in methods_of(value).items()}
            for name, each in called.items():
                for parameter in arguments_of(each):
                    if not parameter.meaning:
                        yield f"{name}: {parameter.name}"


def anchor(heading: str) -> str:
    """Return the anchor of a heading that is code, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def public_names(module: str) -> list[str]:
    """Return what a module offers."""
    loaded = import_module(module)
    own = [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return sorted(getattr(loaded, "__all__", own), key=lambda name: (name.lower(), name))


def arguments_of(value: Any) -> list[Parameter]:
    """Return the parameters that an application gives."""
    return [] if getattr(value, "__name__", "") in _CREATED else parameters_of(value)


def methods_of(value: type[Any]) -> dict[str, Any]:
    """Return the methods of a class that users call, without those of other packages' classes."""
    found: dict[str, Any] = {}
    if issubclass(value, Limit):
        return found
    for name, member in inspect.getmembers(value):
        if name.startswith("_") and name != "__call__":
            continue
        if name == "__call__" and value.__name__ not in {"Limiter", "SyncLimiter"}:
            continue
        if (
            _is_ours(member)
            and callable(member)
            and name not in _INTERNAL
            and not is_anothers(value, name)
        ):
            found[name] = member
    return found


def is_anothers(value: type[Any], name: str) -> bool:
    """Whether a method is of an interface that another package documents."""
    return name not in _WITH_OWN_ARGUMENTS and any(
        name in vars(base)
        for base in value.__mro__
        if not base.__module__.startswith("upstash_middleware")
    )


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("upstash_middleware")


def _in_order(page: str, names: dict[str, Any]) -> list[tuple[str, Any]]:
    order = _TOPICS.get(page, "").split()

    def place(path: str) -> tuple[int, int]:
        module, _, name = path.rpartition(".")
        where = order.index(name) if name in order else len(order)
        return where, list(MODULES).index(module)

    return sorted(names.items(), key=lambda item: place(item[0]))


def _index() -> str:
    parts = [
        (
            f"# Names\n\n{_GENERATED} It lists the public names by module. "
            "What is not listed here may change in any version.\n"
        )
    ]
    for module, what in MODULES.items():
        rows = []
        for name in public_names(module):
            page = page_of(module, name)
            value = getattr(import_module(module), name)
            link = f"[`{name}`]({page}.md#{anchor(f'{module}.{name}')})"
            rows.append((link, _summary(value).replace("|", "\\|"), PAGES[page][0]))
        parts.append(f"\n## {module}\n\n{what}\n\n{table(('name', 'what', 'page'), rows)}\n")
    parts.append(
        f"\n## Types\n\nAnnotations name these types.\n\n{table(('type', 'what'), _TYPES)}\n"
    )
    return "".join(parts)


def _summary(value: Any) -> str:
    if type(value).__name__ in _PROXIES:
        return "The current application's object."
    if isinstance(value, str):
        return f"`{value!r}`"
    return _text(value).partition("\n\n")[0].replace("\n", " ")


def _text(value: Any) -> str:
    """Return the text about a class, function or decorator, without its lists."""
    try:
        return described(value).text
    except KeyError:  # of another package
        return plain(inspect.getdoc(value) or "")


def _entry(path: str, value: Any) -> Iterator[str]:
    name = path.rpartition(".")[2]
    if type(value).__name__ in _PROXIES:
        yield f"The current application's object, with the methods of `{_OF_PROXIES[name]}`.\n"
    elif isinstance(value, str):
        yield f"`{value!r}`\n"
    elif not callable(value):
        yield f"A `{type(value).__name__}`.\n\n{_text(value)}\n"
    else:
        yield from _callable(path, name, value)
        if isinstance(value, type):
            for method, member in methods_of(value).items():
                shown = f"{name}.{method}" if method != "__call__" else f"{name}()"
                yield f"\n### `{shown}`\n\n"
                yield from _callable("", method, member)
            yield from _others(value)


def _callable(path: str, name: str, value: Any) -> Iterator[str]:
    module = path.rpartition(".")[0]
    if isinstance(value, type) and issubclass(value, Exception | enum.Enum):
        bases = ", ".join(base.__name__ for base in value.__bases__)
        yield f"```text\nclass {name}({bases})\n```\n\n{_text(value)}\n"
        if issubclass(value, enum.Enum):
            yield "\n" + ", ".join(f"`{member.value}`" for member in value) + "\n"
    else:
        every = [_of_module(module, each) for each in arguments_of(value)]
        takes_settings = isinstance(value, type) and issubclass(value, WithSettings)
        if takes_settings and path != _FULLY_SHOWN:
            every = every[:1]
            shown = _signature(name, value, every).replace(")", ", *, …)")
        else:
            shown = _signature(name, value, every)
        yield f"```text\n{shown}\n```\n\n{_text(value)}\n"
        if takes_settings:
            every = every[:1]
        rows = [
            (
                f"`{each.shown_name}`",
                f"`{each.annotation}`".replace("|", "\\|") if each.annotation else "",
                f"`{each.default}`".replace("|", "\\|") if each.default is not None else "",
                each.meaning.replace("|", "\\|"),
            )
            for each in every
        ]
        if rows:
            yield "\n" + table(("parameter", "type", "default", "meaning"), rows) + "\n"
        if takes_settings:
            yield "\nThe other parameters are [the settings](../settings.md)"
            yield (
                ".\n"
                if path == _FULLY_SHOWN
                else f", as for [`{_FULLY_SHOWN}`](#{anchor(_FULLY_SHOWN)}).\n"
            )
        if returns := described(value).returns:
            yield f"\nReturns: {returns}\n"
        if raises := described(value).raises or described(_called(value)).raises:
            yield "\nRaises:\n\n" + "".join(f"- `{error}`: {why}\n" for error, why in raises)
    if path:
        source = file_of(value).as_posix()
        yield f"\nSource: [{source}](../../src/{source})\n"


def _called(value: Any) -> Any:
    """Return the function that is called with the parameters of a class or decorator."""
    if isinstance(value, type):
        init = inspect.getattr_static(value, "__init__")
        return init if isfunction(init) and _is_ours(init) else value
    return value if inspect.isroutine(value) else type(value).__call__


def _of_module(module: str, parameter: Parameter) -> Parameter:
    """Return a parameter with the type that it has in a module's class."""
    if parameter.annotation != "A":
        return parameter
    app = "WSGIApplication" if module.endswith("wsgi") else "ASGIApp"
    return Parameter(parameter.name, app, parameter.default, parameter.meaning, parameter.kind)


def _signature(name: str, value: Any, parameters: list[Parameter]) -> str:
    given: list[str] = []
    for each in parameters:
        if each.kind == "keyword-only" and not any(text.startswith("*") for text in given):
            given.append("*")
        text = each.shown_name + (f": {each.annotation}" if each.annotation else "")
        if each.default is not None:
            text += f" = {each.default}" if each.annotation else f"={each.default}"
        given.append(text)
    returned, prefix = "", ""
    if not isinstance(value, type):
        returned = f" -> {returned_by(value)}" if returned_by(value) else ""
        prefix = "await " if is_async(value) else ""
    if isinstance(value, type) and name in _CREATED:
        return f"class {name}"
    one = f"{prefix}{name}({', '.join(given)}){returned}"
    if len(one) <= _WIDEST:
        return one
    return f"{prefix}{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){returned}"


def _others(value: type[Any]) -> Iterator[str]:
    """Yield the names of methods that are another package's interface."""
    theirs = [
        name
        for name, member in inspect.getmembers(value)
        if not name.startswith("_")
        and callable(member)
        and _is_ours(member)
        and is_anothers(value, name)
        and name not in _INTERNAL
        and not issubclass(value, Struct | Exception)
    ]
    if theirs:
        base = next(b for b in value.__mro__ if not b.__module__.startswith("upstash_middleware"))
        names = ", ".join(f"`{name}`" for name in theirs)
        yield f"\nMethods with the arguments of `{base.__module__}.{base.__name__}`: {names}.\n"
