"""What all commands share: their options, the runtimes that they use, and how they end.

``command`` makes a typer command of a function that takes a Session and its own arguments and
returns an Answer.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from upstash_middleware.cli.application import Subject, Target, find
from upstash_middleware.cli.output import EXPECTED, Answer, UsageError, print_answer, print_error
from upstash_middleware.core.flow import Pipeline
from upstash_middleware.runtime import Features

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.flow import Command, Reply
    from upstash_middleware.runtime import Runtime

P = ParamSpec("P")

_APP = Annotated[
    str | None,
    typer.Option(
        help="The application, or a mapping of its settings: MODULE:NAME, as in shop.main:app.",
        envvar="UPSTASH_MIDDLEWARE_APP",
        metavar="MODULE:NAME",
    ),
]
_CONFIG = Annotated[
    str | None, typer.Option(help="A rule file in TOML, in place of --app.", metavar="FILE")
]
_PREFIX = Annotated[str | None, typer.Option(help="The prefix of the keys, if no setting says it.")]
_JSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
_OPTIONS = {"app": _APP, "config": _CONFIG, "prefix": _PREFIX, "as_json": _JSON}


@dataclass(frozen=True)
class Session:
    """One run of a command."""

    target: Target
    closing: ExitStack
    """Closes the runtimes at the end."""

    @functools.cached_property
    def subject(self) -> Subject:
        """The settings, and the routes, of the target.  Raises ConfigurationError."""
        subject = find(self.target)
        for runtime in subject.runtimes:
            self.closing.callback(runtime.close)
        return subject

    def limiting(self) -> tuple[Runtime, ...]:
        """The runtimes with rate limits.  Raises ConfigurationError; UsageError if none has."""
        found = tuple(
            runtime
            for runtime in self.subject.runtimes
            if Features.RATE_LIMIT in runtime.features
            and (runtime.settings.rate_limits or runtime.settings.default_limit)
        )
        if not found:
            raise UsageError(
                f"{self.subject.name} sets no rate limits; name the application with "
                "--app MODULE:NAME or its rules with --config FILE"
            )
        return _with_credentials(found)

    def caching(self) -> tuple[Runtime, ...]:
        """The runtimes with a cache; that of the environment if no application is named.

        Raises ConfigurationError; UsageError if the application has no cache.
        """
        subject = self.subject
        bare = subject.routes is None and not any(each.features for each in subject.runtimes)
        found = tuple(each for each in subject.runtimes if bare or Features.CACHE in each.features)
        if not found:
            raise UsageError(
                f"{subject.name} has no cache: add UpstashMiddleware or CacheMiddleware"
            )
        return _with_credentials(found)

    def any_runtime(self) -> Runtime:
        """A runtime for what concerns the database alone.  Raises ConfigurationError."""
        return _with_credentials(self.subject.runtimes)[0]


def _with_credentials(runtimes: tuple[Runtime, ...]) -> tuple[Runtime, ...]:
    for runtime in runtimes:
        runtime.check_credentials()
    return runtimes


def run_commands(runtime: Runtime, *commands: Command) -> list[Reply]:
    """Send Redis commands in one pipeline.  Raises UpstashError."""

    async def flow() -> list[Reply]:
        return await Pipeline(commands)

    return runtime.perform(flow())


def command(
    group: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], Answer]], Callable[..., None]]:
    """Return a decorator that adds a function as a command with the options of all."""

    def add(function: Callable[Concatenate[Session, P], Answer]) -> Callable[..., None]:
        def run(ctx: typer.Context, **values: Any) -> None:
            as_json = values.pop("as_json")
            given = {option: values.pop(option) for option in _OPTIONS if option != "as_json"}
            try:
                with ExitStack() as closing:
                    session = Session(Target(**given, application=ctx.obj), closing)
                    answer = function(session, **values)  # type: ignore[call-arg]  # P, by its names
            except EXPECTED as error:
                code = print_error(error, ctx.command_path, as_json=as_json)
                raise typer.Exit(code) from error
            print_answer(answer, as_json=as_json)
            raise typer.Exit(answer.code)

        run.__doc__ = function.__doc__
        _set_signature(run, function)
        return group.command(name)(run)

    return add


def _set_signature(run: Any, function: Callable[..., Answer]) -> None:
    """Give a command its function's parameters and the common options, for typer to read."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for parameter in own),
        *(
            inspect.Parameter(
                name, keyword, default=False if name == "as_json" else None, annotation=annotation
            )
            for name, annotation in _OPTIONS.items()
        ),
    ]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
