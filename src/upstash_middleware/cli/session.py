"""What every command has: the options that all of them take, and one way to end.

``command`` makes a typer command of a function that takes a Session and its own arguments and
returns an Answer. Errors become words and an exit code here and nowhere else.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from upstash_middleware.cli.application import Asked, Subject, find
from upstash_middleware.cli.exits import EXPECTED, UsageError, failure_of
from upstash_middleware.cli.showing import Answer, show, show_failure
from upstash_middleware.gateway import Halves

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.gateway import Gateway

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
_PREFIX = Annotated[
    str | None, typer.Option(help="What the keys begin with, if no setting says it.")
]
_JSON = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
_OPTIONS = {"app": _APP, "config": _CONFIG, "prefix": _PREFIX, "as_json": _JSON}


@dataclass(frozen=True)
class Session:
    """One call of a command."""

    asked: Asked
    as_json: bool
    closing: ExitStack
    """Closes at the end what the command has opened."""

    @functools.cached_property
    def subject(self) -> Subject:
        """The settings, and the routes, that this is about. Raises ConfigurationError."""
        subject = find(self.asked)
        for gateway in subject.gateways:
            self.closing.callback(gateway.close)
        return subject

    def limiting(self) -> tuple[Gateway, ...]:
        """Return what limits. Raises ConfigurationError; UsageError if nothing does."""
        subject = self.subject
        found = tuple(
            gateway
            for gateway in subject.gateways
            if Halves.RATE_LIMIT in gateway.halves
            and (gateway.settings.rate_limits or gateway.settings.default_limit)
        )
        if not found:
            raise UsageError(
                f"{subject.name} sets no rate limits; name the application with --app MODULE:NAME "
                "or its rules with --config FILE"
            )
        return _with_credentials(found)

    def caching(self) -> tuple[Gateway, ...]:
        """Return what caches; the settings of the environment if no application is named.

        Raises ConfigurationError; UsageError if there is an application without a cache.
        """
        subject = self.subject
        bare = subject.routes is None and not any(gateway.halves for gateway in subject.gateways)
        found = tuple(
            gateway for gateway in subject.gateways if bare or Halves.CACHE in gateway.halves
        )
        if not found:
            raise UsageError(
                f"{subject.name} has no cache: add UpstashMiddleware or CacheMiddleware"
            )
        return _with_credentials(found)

    def gateway(self) -> Gateway:
        """Return any gateway, for what concerns the database alone. Raises ConfigurationError."""
        return _with_credentials(self.subject.gateways)[0]


def _with_credentials(gateways: tuple[Gateway, ...]) -> tuple[Gateway, ...]:
    """Return them if they can ask Upstash. Raises MissingCredentials."""
    for gateway in gateways:
        gateway.check_credentials()
    return gateways


def command(
    group: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], Answer]], Callable[..., None]]:
    """Return a decorator that adds a function as a command with the options of all."""

    def add(function: Callable[Concatenate[Session, P], Answer]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> None:
            given = {option: values.pop(option) for option in _OPTIONS}
            as_json = given.pop("as_json")
            asked = Asked(**given, application=ctx.obj)
            try:
                with ExitStack() as closing:
                    session = Session(asked, as_json, closing)
                    answer = function(session, **values)  # type: ignore[call-arg]  # P, by its names
            except EXPECTED as error:
                failure = failure_of(error)
                show_failure(failure, ctx.command_path, as_json=as_json)
                raise typer.Exit(failure.code) from error
            show(answer, as_json=as_json)
            raise typer.Exit(answer.code)

        _take_signature(run, function)
        return group.command(name)(run)

    return add


def _take_signature(run: Any, function: Callable[..., Answer]) -> None:
    """Give a command its function's parameters and those that all have, for typer to read."""
    own = inspect.signature(function, eval_str=True)
    _, *parameters = own.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(
            name, keyword, default=False if name == "as_json" else None, annotation=annotation
        )
        for name, annotation in _OPTIONS.items()
    ]
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    own_named = [parameter.replace(kind=keyword) for parameter in parameters]
    run.__signature__ = inspect.Signature([context, *own_named, *options])
    run.__annotations__ = {each.name: each.annotation for each in [context, *own_named, *options]}
    del run.__wrapped__
