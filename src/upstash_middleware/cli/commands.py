"""The command's tree, and how it is run; each group's commands are in a module of their own."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.main import get_command

from upstash_middleware.cli import cache, limits, pinging, rules

if TYPE_CHECKING:
    from collections.abc import Sequence

app: typer.Typer = typer.Typer(
    name="upstash-middleware",
    help="Look at rate limits and stored responses, purge and reset them, check rules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
pinging.add_to(app)
app.add_typer(limits.group, name="limits")
app.add_typer(cache.group, name="cache")
app.add_typer(rules.group, name="rules")


@app.command(
    "local",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def local(
    _arguments: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS]")] = None,
) -> None:
    """Serve Upstash's interface on this machine; `local --help` tells its options."""
    # Here for the help and the completion: `entry` has handed it over before this is loaded.


def run(words: Sequence[str], program: str, application: object) -> int:
    """Run the command and return its exit code."""
    # What goes wrong is told by the command itself; the log's lines are for servers.
    logging.getLogger("upstash_middleware").addHandler(logging.NullHandler())
    try:
        code = get_command(app).main(list(words), program, obj=application, standalone_mode=True)
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        return 1
    return int(code or 0)
