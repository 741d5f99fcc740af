"""``manage.py upstash …``: the command ``upstash-middleware`` for this project."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from upstash_middleware.cli.entry import main

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Command(BaseCommand):
    """Passes its arguments to ``upstash-middleware``, and has the same exit codes."""

    help = "Inspect rate limits and stored responses, purge and reset them, check rules."
    requires_system_checks: tuple[()] = ()  # `rules check` must run with wrong settings

    def add_arguments(self, parser: CommandParser) -> None:
        """Accept any arguments."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run_from_argv(self, argv: list[str]) -> None:
        """Run from the command line, and exit with the command's code."""
        program = f"{Path(argv[0]).name} upstash"
        sys.exit(main(argv[2:] or ["--help"], program=program, application=settings))

    def handle(self, *_: Any, **options: Any) -> None:
        """Run for ``call_command("upstash", "cache", "purge", "/tea")``.

        Raises CommandError if the exit code would not be 0.
        """
        code = main(options["arguments"], program="manage.py upstash", application=settings)
        if code:
            raise CommandError("manage.py upstash has failed", returncode=code)
