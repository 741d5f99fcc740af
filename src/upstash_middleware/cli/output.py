"""The output and exit codes of commands: JSON for programs, text for people.

Text from the database or the network is never interpreted as markup, and terminal control
characters are escaped. The table of exit codes in docs/command-line.md is generated from `Exit`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from upstash_middleware.errors import (
    CommandError,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    MissingCredentials,
    NotConnected,
    PurgeNotPassedOn,
    Refusal,
    Refused,
    UpstashError,
    refusal_in,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH_WITHOUT_TERMINAL = 200


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    """Success; or the answer is yes: allowed, a hit, no mistake found."""
    NO = 1
    """The answer is no: denied, a miss, mistakes found."""
    USAGE = 2
    """The command line is wrong."""
    CONFIGURATION = 3
    """The application, a setting or the credentials are missing or wrong."""
    UNREACHABLE = 4
    """Upstash could not be reached, or its response was unexpected."""
    REFUSED = 5
    """Upstash rejected the call: the token, its permission, the quota."""
    NOT_PASSED_ON = 6
    """A purge was carried out on Redis, but the application's ``on_purge`` failed."""


class UsageError(Exception):
    """The command line is wrong; the message names a correct one."""


EXPECTED = (UsageError, ConfigurationError, PurgeNotPassedOn, UpstashError)
"""Errors that are explained; all others are bugs and show a traceback."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command, for programs and for people."""

    data: Mapping[str, Any]
    shown: Sequence[RenderableType]
    code: Exit = Exit.DONE


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Print an answer to standard output."""
    if as_json:
        _print_json(answer.data)
        return
    console = make_console()
    with console.capture() as captured:
        console.print(Group(*answer.shown), soft_wrap=True)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_error(error: Exception, program: str, *, as_json: bool) -> Exit:
    """Print an expected error: as JSON to standard output, or as text to standard error."""
    code, kind, hint = _explain(error)
    if as_json:
        _print_json({"error": {"kind": kind, "message": str(error), "hint": hint or None}})
        return code
    console = make_console(stderr=True)
    console.print(Text(f"{program}: ", style="bold red") + text(error), soft_wrap=True)
    if hint:
        console.print(text(hint, "dim"), soft_wrap=True)
    return code


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


_REMEDIES = {
    Refusal.TOKEN: "copy the REST token again from the database's page in the Upstash console",
    Refusal.PERMISSION: "the token is read-only; purging, resetting and scanning need the "
    "database's standard token",
    Refusal.QUOTA: "the plan's requests are used up; raise the plan or the budget in the console",
    Refusal.FULL: "the database is full; raise its size in the console",
    Refusal.SIZE: "this is larger than the plan allows",
}
_HINTS: dict[type[Exception], str] = {
    NotConnected: "is UPSTASH_REDIS_REST_URL right, and this machine online? "
    "`upstash-middleware local` serves a database on this machine",
    ConnectionLost: "the command may or may not have been executed",
    DeadlineExceeded: "the command may or may not have been executed; `upstash-middleware ping` "
    "shows how long calls take from here",
}


def _explain(error: Exception) -> tuple[Exit, str, str]:  # noqa: PLR0911 - one for each kind
    """The exit code of an error, its kind in JSON, and a hint."""
    match error:
        case UsageError():
            return Exit.USAGE, "usage", ""
        case MissingCredentials():
            hint = "`upstash-middleware local` serves a database on this machine and prints both"
            return Exit.CONFIGURATION, "credentials", hint
        case ConfigurationError():
            return Exit.CONFIGURATION, "configuration", ""
        case PurgeNotPassedOn():
            return Exit.NOT_PASSED_ON, "on_purge", "purge again, or purge the CDN in another way"
        case Refused():
            return Exit.REFUSED, "refused", _REMEDIES[error.kind]
        case CommandError() if refusal := refusal_in(str(error)):
            return Exit.REFUSED, "refused", _REMEDIES[refusal]
        case _:
            return Exit.UNREACHABLE, "upstash", _HINTS.get(type(error), "")


# Parts of the output.


def text(value: object, style: str = "") -> Text:
    """Text without markup and without terminal control characters."""
    shown = str(value)
    if not shown.isprintable():
        shown = "".join(
            character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
            for character in shown
        )
    return Text(shown, style=style)


def pairs(values: Mapping[str, object]) -> Table:
    """Names and values, one pair per line; pairs without a value are omitted."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value not in (None, "", ()):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
            table.add_row(name, text(shown))
    return table


def rows(columns: Sequence[str], cells: Sequence[Sequence[object]]) -> Table:
    """A table; None is an empty cell."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*(text("" if cell is None else cell) for cell in row))
    return table


def duration(seconds: float) -> str:
    """Seconds for people: ``8.5 s``, ``2 min``, ``3 h``, ``5 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(count: int) -> str:
    """Bytes for people: ``812 B``, ``4.2 KiB``."""
    if count < 1024:
        return f"{count} B"
    unit, length = next(
        (unit, length)
        for unit, length in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30))
        if count < length * 1000 or unit == "GiB"
    )
    return f"{count / length:.3g} {unit}"


def make_console(*, stderr: bool = False) -> Console:
    """A console without markup that does not wrap lines in a pipe."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console
