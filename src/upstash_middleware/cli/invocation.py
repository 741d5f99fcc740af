"""The common parts of all commands: options, settings, routes, and exit.

``command`` makes a typer command from a function that takes an Invocation and its own arguments,
and returns an Answer. Settings and routes come from an application (by its import path), from a
mapping of settings, from a rule file, or from the environment.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer
from msgspec import structs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from upstash_middleware import routes
from upstash_middleware.cli.output import (
    EXPECTED,
    Answer,
    UsageError,
    make_console,
    print_answer,
    print_error,
)
from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.core.sessions import SessionSettings
from upstash_middleware.errors import (
    CommandError,
    ConfigurationError,
    UnexpectedAnswer,
    refusal_in,
)
from upstash_middleware.limiter import Limiter, SyncLimiter
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from upstash_middleware.core.flow import Argument, Reply
    from upstash_middleware.core.sessions import Sessions
    from upstash_middleware.events import Event
    from upstash_middleware.routes import Route

P = ParamSpec("P")

_DEADLINE = 10.0
"""Seconds for a call: a user at a terminal may be far away from the database."""
_DJANGO_SETTINGS = "DJANGO_SETTINGS_MODULE"

_APP = Annotated[
    str | None,
    typer.Option(
        help="The application, or a mapping of its settings: MODULE:NAME, as in shop.main:app.",
        envvar="UPSTASH_MIDDLEWARE_APP",
        metavar="MODULE:NAME",
    ),
]
_CONFIG = Annotated[
    str | None, typer.Option(help="A rule file in TOML, instead of --app.", metavar="FILE")
]
_PREFIX = Annotated[str | None, typer.Option(help="The prefix of the keys, if not set otherwise.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Subject:
    """The settings and routes that were found."""

    name: str
    runtimes: tuple[Runtime, ...]
    """One runtime for each middleware, outermost first; not used for requests."""
    routes: tuple[Route, ...] | None = None
    """None without an application."""
    is_django: bool = False
    app: object = None
    events: list[Event] = field(default_factory=list)
    """The events that the runtimes have emitted."""

    def is_about(self, app: object) -> bool:
        """Whether a limiter's application is or may be this one; Flask's current one may be."""
        if self.app is None or _is_a(app, "werkzeug"):
            return True
        inside = any(layer is app for layer in _layers(self.app))
        return inside or any(layer is self.app for layer in _layers(app))


@dataclass
class Invocation:
    """One run of a command, with the subjects that its options select."""

    closing: ExitStack
    """Closes the runtimes at the end."""
    application: object = None
    """The application of ``flask`` or ``manage.py``."""
    app: str | None = None
    config: str | None = None
    prefix: str | None = None
    billed: int = 0
    """The number of commands that were sent."""

    @functools.cached_property
    def subject(self) -> Subject:
        """The settings and routes that the options select.  Raises ConfigurationError."""
        subject = find(self)
        for runtime in subject.runtimes:
            self.closing.callback(runtime.close)
        return subject

    def limiting(self) -> tuple[Runtime, ...]:
        """The runtimes with rate limits. Raises ConfigurationError; UsageError if there is none."""
        found = tuple(
            runtime
            for runtime in self.subject.runtimes
            if Features.RATE_LIMIT in runtime.features and runtime.has_limits
        )
        if not found:
            raise UsageError(
                f"{self.subject.name} sets no rate limits; name the application with "
                "--app MODULE:NAME or its rules with --config FILE"
            )
        return with_credentials(found)

    def caching(self) -> tuple[Runtime, ...]:
        """The runtimes with a cache; without an application, one for the environment.

        Raises ConfigurationError; UsageError if the application has no cache.
        """
        subject = self.subject
        bare = subject.routes is None and not any(each.features for each in subject.runtimes)
        found = tuple(each for each in subject.runtimes if bare or Features.CACHE in each.features)
        if not found:
            raise UsageError(
                f"{subject.name} has no cache: add UpstashMiddleware or CacheMiddleware"
            )
        return with_credentials(found)

    def keeping_sessions(self) -> tuple[Runtime, Sessions]:
        """The part that keeps sessions, and its runtime; without an application, with defaults.

        Raises ConfigurationError; UsageError if the application keeps no sessions.
        """
        subject = self.subject
        for runtime in subject.runtimes:
            if runtime.sessions is not None:
                with_credentials([runtime])
                return runtime, runtime.sessions
        if subject.routes is not None or any(each.features for each in subject.runtimes):
            raise UsageError(
                f"{subject.name} keeps no sessions on Upstash; name the application that does with "
                "--app MODULE:NAME"
            )
        (runtime, *_) = with_credentials(subject.runtimes)
        return runtime, runtime.create_sessions(SessionSettings())

    def any_runtime(self) -> Runtime:
        """A runtime for commands that need only the database.  Raises ConfigurationError."""
        return with_credentials(self.subject.runtimes)[0]

    def read(self, runtime: Runtime, *commands: tuple[Argument, ...]) -> list[Reply]:
        """Send commands that may be retried. Raises UpstashError.

        An error of a single command is no exception: one of many keys may have another type.
        """
        self.billed += len(commands)
        repeatable = [Command(words, reads_only=True) for words in commands]
        replies = send_commands(runtime, *repeatable) if commands else []
        for reply in replies:
            if isinstance(reply, CommandError) and (len(replies) == 1 or refusal_in(str(reply))):
                raise reply
        return replies

    def count_keys(self, runtime: Runtime) -> int:
        """The number of all keys; each SCAN command reads ``SCAN_COUNT`` of them.

        Raises UpstashError.
        """
        (total,) = self.read(runtime, ("DBSIZE",))
        if not isinstance(total, int):
            raise UnexpectedAnswer("DBSIZE did not return a number")
        return total

    def scan(self, runtime: Runtime, start: str, containing: str = "") -> Iterator[list[str]]:
        """Yield the keys that begin with ``start`` and then contain another text, each once.

        Raises UpstashError.
        """
        pattern = _escape(start) + (f"*{_escape(containing)}*" if containing else "*")
        cursor, known = "0", set[str]()
        while True:
            words = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            match self.read(runtime, words):
                case [[bytes(following), list(found)]]:
                    keys = [
                        key.decode("utf-8", "replace") for key in found if isinstance(key, bytes)
                    ]
                    yield [key for key in dict.fromkeys(keys) if key not in known]
                    known.update(keys)
                    cursor = following.decode()
                case _:
                    raise UnexpectedAnswer("SCAN did not return a cursor and keys")
            if cursor == "0":
                return

    def read_each(
        self, runtime: Runtime, start: str, name: str, *words: str, total: int, containing: str = ""
    ) -> Iterator[list[tuple[str, Reply, float | None]]]:
        """Send a command for each key that `scan` finds, and show the progress out of ``total``.

        Yields the key, the reply, and the seconds until the key expires, None for never. Raises
        UpstashError.
        """
        columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = make_console(stderr=True)
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task("", total=total)
            for keys in self.scan(runtime, start, containing):
                commands = [each for key in keys for each in ((name, key, *words), ("PTTL", key))]
                replies = iter(self.read(runtime, *commands))
                yield [
                    (key, reply, seconds_left(left))
                    for key, reply, left in zip(keys, replies, replies, strict=False)
                    if left != _GONE
                ]
                progress.advance(task, SCAN_COUNT)


def send_commands(runtime: Runtime, *commands: Command) -> list[Reply]:
    """Send Redis commands in one pipeline.  Raises UpstashError."""

    async def flow() -> list[Reply]:
        return await Pipeline(commands)

    return runtime.perform(flow())


SCAN_COUNT = 500
_SPECIAL = re.compile(r"([\\*?\[\]])")
_GONE = -2
"""What PTTL returns for a key that does not exist."""


def seconds_left(milliseconds: Reply) -> float | None:
    """The seconds in a reply to PTTL; None for a key without an expiry."""
    is_known = isinstance(milliseconds, int) and milliseconds >= 0
    return milliseconds / 1000 if is_known else None  # type: ignore[operator] # an int


def _escape(text: str) -> str:
    """Return a SCAN pattern that matches exactly this text."""
    return _SPECIAL.sub(r"\\\1", text)


def with_credentials(runtimes: Sequence[Runtime]) -> tuple[Runtime, ...]:
    """Return runtimes whose credentials are known. Raises MissingCredentials."""
    for runtime in runtimes:
        runtime.check_credentials()
    return tuple(runtimes)


def command(
    group: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Invocation, P], Answer]], Callable[..., None]]:
    """Return a decorator that adds a function as a command with the common options."""

    def add(function: Callable[Concatenate[Invocation, P], Answer]) -> Callable[..., None]:
        def run(
            ctx: typer.Context,
            *,
            app: _APP = None,
            config: _CONFIG = None,
            prefix: _PREFIX = None,
            as_json: _JSON = False,
            **values: Any,
        ) -> None:
            try:
                with ExitStack() as closing:
                    invocation = Invocation(closing, ctx.obj, app, config, prefix)
                    answer = function(invocation, **values)  # type: ignore[call-arg]  # P, by its names
            except EXPECTED as error:
                code = print_error(error, ctx.command_path, as_json=as_json)
                raise typer.Exit(code) from error
            print_answer(answer, as_json=as_json)
            raise typer.Exit(answer.code)

        # typer reads this signature: the function's own parameters, then the common options.
        context, *common, _ = inspect.signature(run, eval_str=True).parameters.values()
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [context, *(each.replace(kind=each.KEYWORD_ONLY) for each in own), *common]
        read: Any = run
        read.__signature__ = inspect.Signature(parameters)
        read.__annotations__ = {each.name: each.annotation for each in parameters}
        read.__doc__ = function.__doc__
        return group.command(name)(run)

    return add


# The settings and routes.


def find(invocation: Invocation) -> Subject:
    """Find the settings and routes.  Raises ConfigurationError."""
    if invocation.app and invocation.config:
        raise ConfigurationError("give --app or --config, not both: each brings its own settings")
    if invocation.config:
        runtime = Runtime.of({"config": invocation.config}, Features.BOTH)
        subject = Subject(invocation.config, (runtime,))
    elif invocation.app:
        subject = _inspect(_import(invocation.app), invocation.app)
    elif invocation.application is not None:
        subject = _inspect(invocation.application, "the application")
    elif os.environ.get(_DJANGO_SETTINGS):
        subject = _find_django()
    else:
        runtime = Runtime(settings_from({}, os.environ), Features(0))
        subject = Subject("the environment", (runtime,))
    runtimes = tuple(adapted(each, invocation.prefix, subject.events) for each in subject.runtimes)
    return replace(subject, runtimes=runtimes)


def adapted(runtime: Runtime, prefix: str | None, events: list[Event]) -> Runtime:
    """Return the runtime with the command line's deadline, prefix and observer."""
    settings = structs.replace(
        runtime.settings,
        enabled=True,
        deadline=_DEADLINE,
        cache_deadline=_DEADLINE,
        breaker=False,
        observers=(events.append,),
        prefix=prefix or runtime.settings.prefix,
    )
    # All adapters can revalidate stale responses in the background.
    result = Runtime(
        settings,
        runtime.features,
        refreshes=True,
        selects=runtime.selects,
        kept_cookies=runtime.kept_cookies,
    )
    if runtime.sessions is not None:  # the framework may have created it in its own way
        sessions = result.sessions = copy(runtime.sessions)
        sessions.store = structs.replace(
            sessions.store, prefix=settings.prefix, deadline=settings.deadline
        )
    return result


# The settings and routes of an application.


def _inspect(app: object, name: str) -> Subject:
    if isinstance(app, Mapping):
        return Subject(name, (Runtime.of(app, Features.BOTH, source=name),))
    if _is_a(app, "django"):
        return _find_django()
    layers = list(_layers(app))
    runtimes = [
        runtime
        for layer in layers
        if isinstance(runtime := getattr(layer, "runtime", None), Runtime)
    ]
    known: tuple[Route, ...] | None = None
    mounted: list[Route] = []
    for place, layer in enumerate(layers):
        if _is_a(layer, "flask", "Flask"):
            known = (*routes.flask_routes(layer), *mounted)
            runtimes += [each for each in _runtimes_of_sessions(layer) if each not in runtimes]
        elif _is_a(layer, "werkzeug", "DispatcherMiddleware"):
            if any(hasattr(outside, "runtime") for outside in layers[:place]):
                mounted += _mounted_routes(layer)
                known = (*(known or ()), *mounted)
        elif _is_a(layer, "starlette", "Starlette"):
            app_: Any = layer
            runtimes += [
                entry.cls(app_, *entry.args, **entry.kwargs).runtime
                for entry in app_.user_middleware
                if hasattr(entry.cls, "features")
            ]
            known = routes.starlette_routes(layer)
    if not runtimes and (
        any(route.limits for route in known or ()) or isinstance(app, Limiter | SyncLimiter)
    ):
        runtimes = [Runtime(settings_from({}, os.environ), Features(0))]
    if not runtimes:
        raise ConfigurationError(
            f"{name}: {type(app).__name__} {app!r} has no middleware of this package; add "
            "UpstashMiddleware to it, or give a mapping of settings or --config FILE.toml"
        )
    return Subject(name, tuple(runtimes), known, app=app)


def _runtimes_of_sessions(app: Any) -> list[Runtime]:
    """The runtime that keeps a Flask application's sessions, if any."""
    from upstash_middleware.flask_sessions import UpstashSessionInterface  # noqa: PLC0415

    interface = app.session_interface
    ready = interface.ready(app) if isinstance(interface, UpstashSessionInterface) else None
    return [] if ready is None else [ready.runtime]


def _layers(app: object) -> Iterator[object]:
    """Yield an application and the applications that it wraps, outermost first, each once."""
    seen: set[int] = set()
    layer: Any = app
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        inside = (
            getattr(layer, name, None) for name in ("wsgi_app", "app", "__wrapped__", "__self__")
        )
        layer = next((each for each in inside if each is not None), None)


def _mounted_routes(dispatcher: Any) -> Iterator[Route]:
    """Yield the routes of Werkzeug's mounts, with the paths that outer middleware sees."""
    for prefix, app in dispatcher.mounts.items():
        inner = next((each for each in _layers(app) if _is_a(each, "flask", "Flask")), None)
        if inner is not None:
            yield from routes.flask_routes(inner, prefix)
        else:
            yield routes.Route(f"{prefix}/<path:path>")


def _is_a(value: object, package: str, name: str = "") -> bool:
    """Whether a value's class or a base class is from a package, which may be missing."""
    return any(
        base.__module__.partition(".")[0] == package and (not name or base.__name__ == name)
        for base in type(value).__mro__
    )


def _find_django() -> Subject:
    import django  # noqa: PLC0415 - may not be installed
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415
    from django.utils.module_loading import import_string  # noqa: PLC0415

    try:
        from django.conf import settings  # noqa: PLC0415

        _add_working_directory()
        django.setup()
        from upstash_middleware.django.conf import Configured, is_upstash_engine  # noqa: PLC0415
        from upstash_middleware.django.middleware import Middleware  # noqa: PLC0415

        features = Features(0)
        for path in settings.MIDDLEWARE:
            with suppress(ImportError):
                middleware = import_string(path)
                if isinstance(middleware, type) and issubclass(middleware, Middleware):
                    features |= middleware.features
        runtime = Configured(features).runtime()
        if is_upstash_engine(settings.SESSION_ENGINE):
            from upstash_middleware.django.sessions import sessions_of  # noqa: PLC0415

            sessions_of(runtime)
        name = os.environ.get(_DJANGO_SETTINGS, "the Django project")
        return Subject(name, (runtime,), routes.django_routes(), is_django=True)
    except (ImproperlyConfigured, ImportError) as error:
        raise ConfigurationError(
            f"{_DJANGO_SETTINGS}={os.environ.get(_DJANGO_SETTINGS, '')}: the project's settings "
            f"cannot be used: {error}"
        ) from error


# An import path.


def _import(path: str) -> Any:
    """Return the object at ``MODULE:ATTRIBUTE``; for ``MODULE``, its ``app``.

    ``shop:create_app()`` is called.  Raises ConfigurationError.
    """
    name, _, attribute = path.partition(":")
    if not name or name.endswith(".py") or "/" in name:
        raise ConfigurationError(
            f"--app {path!r}: give a module and the application's name in it, such as "
            "'shop.main:app'"
        )
    found: Any = _import_module(path, name)
    likely = _likely_name(found)
    if not attribute:
        attribute = next((each for each in ("app", "application") if hasattr(found, each)), "")
        if not attribute:
            raise ConfigurationError(
                f"--app {path!r}: {name} has neither 'app' nor 'application'; add the name, "
                f"as in '{name}:{likely}'"
            )
    for part in attribute.removesuffix("()").split("."):
        if not hasattr(found, part):
            raise ConfigurationError(
                f"--app {path!r}: {name} has no {attribute.removesuffix('()')!r}; did you mean "
                f"'{name}:{likely}'?"
            )
        found = getattr(found, part)
    if not attribute.endswith("()"):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigurationError(
            f"--app {path!r}: the factory raised {type(error).__name__}: {error}"
        ) from error


def _import_module(path: str, name: str) -> Any:
    _add_working_directory()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigurationError(
                f"--app {path!r}: there is no module {missing!r} in {Path.cwd()} or on the "
                "Python path; run this where you start the server, or set PYTHONPATH"
            ) from None
        raise ConfigurationError(
            f"--app {path!r}: importing {name} failed: it needs {missing!r}, which is not "
            "installed here"
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"--app {path!r}: importing {name} raised {type(error).__name__}: {error}"
        ) from error


def _add_working_directory() -> None:
    """Add the working directory to the module search path, as servers do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _likely_name(module: Any) -> str:
    """The name in a module that is probably the application's."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    likely = [name for name, value in public.items() if callable(value) and "app" in name.lower()]
    # A factory is a function of the module, and must be called.
    factories = [
        f"{name}()"
        for name in likely
        if getattr(public[name], "__module__", "") == module.__name__ and "_" in name
    ]
    return next(iter([*factories, *likely]), "app")
