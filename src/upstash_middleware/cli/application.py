"""What a command is about: settings, and where there is an application, its routes.

They come from an application by its import path, from a mapping of settings, from a rule file,
or from the environment alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from upstash_middleware import routes
from upstash_middleware.cli.importing import imported, look_here
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.events import Event, Observer
    from upstash_middleware.routes import Route

_FOR_PEOPLE = 10.0
"""Seconds for a call: who waits at a terminal may be far away from the database."""
_DJANGO_SETTINGS = "DJANGO_SETTINGS_MODULE"


@dataclass(frozen=True, slots=True)
class Subject:
    """What was found."""

    name: str
    """How it is called in answers."""
    gateways: tuple[Gateway, ...]
    """One for each middleware, the outermost first; never used for requests."""
    routes: tuple[Route, ...] | None = None
    """None where no application tells them."""
    is_django: bool = False
    events: list[Event] = field(default_factory=list)
    """What the gateways tell while they are asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Where the command line says to look."""

    app: str | None = None
    config: str | None = None
    prefix: str | None = None
    application: object = None
    """What ``flask`` or ``manage.py`` stand for."""


def find(asked: Asked) -> Subject:
    """Find it. Raises ConfigurationError."""
    if asked.app and asked.config:
        raise ConfigurationError("give --app or --config, not both: each brings its own settings")
    subject = _found(asked)
    gateways = tuple(
        _for_people(gateway, asked.prefix, subject.events.append) for gateway in subject.gateways
    )
    return replace(subject, gateways=gateways)


def _found(asked: Asked) -> Subject:
    if asked.config:
        return Subject(asked.config, (Gateway.of({"config": asked.config}, Halves.BOTH),))
    if asked.app:
        return _recognised(imported(asked.app), asked.app)
    if asked.application is not None:
        return _recognised(asked.application, "the application")
    if os.environ.get(_DJANGO_SETTINGS):
        return _of_django()
    return Subject("the environment", (Gateway(settings_from({}, os.environ), Halves(0)),))


def _for_people(gateway: Gateway, prefix: str | None, observe: Observer) -> Gateway:
    settings = replace(
        gateway.settings,
        enabled=True,
        deadline=_FOR_PEOPLE,
        cache_deadline=_FOR_PEOPLE,
        breaker=False,
        observers=(observe,),
        prefix=prefix or gateway.settings.prefix,
    )
    # Whether stale use refreshes is the adapter's to say, and all of them can.
    return Gateway(settings, gateway.halves, refreshes=True)


def _of_mapping(mapping: Mapping[str, Any], source: str) -> Subject:
    return Subject(source, (Gateway.of(mapping, Halves.BOTH, source=source),))


def _recognised(app: object, name: str) -> Subject:
    if isinstance(app, Mapping):
        return _of_mapping(app, name)
    if _is_of(app, "django"):
        return _of_django()
    layers = list(_layers(app))
    gateways = [
        gateway
        for layer in layers
        if isinstance(gateway := getattr(layer, "gateway", None), Gateway)
    ]
    known: tuple[Route, ...] | None = None
    for layer in layers:
        if _is_of(layer, "flask", "Flask"):
            known = routes.of_flask(layer)
        elif _is_of(layer, "starlette", "Starlette"):
            gateways += _of_user_middleware(layer)
            known = routes.of_starlette(layer)
    if not gateways:
        raise ConfigurationError(
            f"{name}: no middleware of this package stands on {type(app).__name__} {app!r}; add "
            "UpstashMiddleware to it, or give a mapping of settings or --config FILE.toml"
        )
    return Subject(name, tuple(gateways), known)


def _layers(app: object) -> Iterator[object]:
    """Yield an application and what it wraps, outermost first, each once."""
    seen: set[int] = set()
    layer: Any = app
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        layer = next(
            (
                inside
                for name in ("wsgi_app", "app", "__wrapped__", "__self__")
                if (inside := getattr(layer, name, None)) is not None
            ),
            None,
        )


def _of_user_middleware(app: Any) -> Iterator[Gateway]:
    for entry in app.user_middleware:
        if hasattr(entry.cls, "halves"):
            yield entry.cls(app, *entry.args, **entry.kwargs).gateway


def _is_of(value: object, package: str, name: str = "") -> bool:
    """Whether a value's class, or a base of it, is of a package; which need not be installed."""
    return any(
        base.__module__.partition(".")[0] == package and (not name or base.__name__ == name)
        for base in type(value).__mro__
    )


def _of_django() -> Subject:
    import django  # noqa: PLC0415 - only where it is there
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415
    from django.utils.module_loading import import_string  # noqa: PLC0415

    try:
        from django.conf import settings  # noqa: PLC0415

        look_here()
        django.setup()
        from upstash_middleware.django.configuration import SETTING, mapping_set  # noqa: PLC0415
        from upstash_middleware.django.middleware import Middleware  # noqa: PLC0415

        halves = Halves(0)
        for path in settings.MIDDLEWARE:
            with suppress(ImportError):
                middleware = import_string(path)
                if isinstance(middleware, type) and issubclass(middleware, Middleware):
                    halves |= middleware.halves
        gateway = Gateway.of(mapping_set(), halves, source=SETTING)
        name = os.environ.get(_DJANGO_SETTINGS, "the Django project")
        return Subject(name, (gateway,), routes.of_django(), is_django=True)
    except (ImproperlyConfigured, ImportError) as error:
        raise ConfigurationError(
            f"{_DJANGO_SETTINGS}={os.environ.get(_DJANGO_SETTINGS, '')}: the project's settings "
            f"cannot be used: {error}"
        ) from error
