"""``flask upstash …``: the command ``upstash-middleware`` for Flask's current application.

Flask loads this for each of its commands, so it imports only click and Flask.
"""

from __future__ import annotations

import sys

import click
from flask import current_app
from flask.cli import with_appcontext


@click.command(
    "upstash",
    add_help_option=False,
    # Without interspersed arguments, click keeps the `--` of `local -- COMMAND`.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Inspect rate limits and stored responses, purge and reset them.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@with_appcontext
def upstash(arguments: tuple[str, ...]) -> None:
    """Run the command for the current application."""
    from upstash_middleware.cli.entry import main  # noqa: PLC0415 - see the module's docstring

    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - documented by Flask
    sys.exit(main(arguments or ("--help",), program="flask upstash", application=app))
