"""The tree of commands, with one module for each group."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.main import get_command

from upstash_middleware.cli import cache, limits, rules, sessions
from upstash_middleware.cli.invocation import command
from upstash_middleware.cli.ping import ping

if TYPE_CHECKING:
    from collections.abc import Sequence

app: typer.Typer = typer.Typer(
    name="upstash-middleware",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
command(app, "ping")(ping)
app.add_typer(limits.group, name="limits")
app.add_typer(cache.group, name="cache")
app.add_typer(sessions.group, name="sessions")
app.add_typer(rules.group, name="rules")


@app.command(
    "local",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def local(
    _arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS] [-- COMMAND ...]")
    ] = None,
) -> None:
    """Serve Upstash on this machine, for a command or until Ctrl-C; see `local --help`."""
    # Only for help and completion: `entry` runs this command without typer.


@app.callback()
def options(
    *, _version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Inspect rate limits, stored responses and sessions; reset, purge, end them; check rules."""
    # Only for help and completion: `entry` handles this option without typer.


def run(words: Sequence[str], program: str, application: object) -> int:
    """Run the command and return its exit code."""
    # Commands explain errors themselves; log records are for servers.
    logging.getLogger("upstash_middleware").addHandler(logging.NullHandler())
    try:
        code = get_command(app).main(list(words), program, obj=application, standalone_mode=True)
    except SystemExit as error:
        code = error.code
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        return 1
    return int(code or 0)
