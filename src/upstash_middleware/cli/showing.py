"""How answers look: JSON for programs, text and tables for people; no command is known here.

Text from the database or the network is never taken for markup, and what a terminal would obey
is shown as an escape.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from upstash_middleware.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH_OF_A_PIPE = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say: the same to programs and to people."""

    data: Mapping[str, Any]
    """As JSON."""
    shown: Sequence[RenderableType] = field(default_factory=tuple)
    code: Exit = Exit.DONE


def show(answer: Answer, *, as_json: bool) -> None:
    """Print an answer to standard output."""
    if as_json:
        sys.stdout.write(json.dumps(answer.data, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        console = _console()
        with console.capture() as captured:
            console.print(Group(*answer.shown), soft_wrap=True)
        lines = captured.get().splitlines()
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))


def show_failure(failure: Failure, program: str, *, as_json: bool) -> None:
    """Tell of an error: to programs on standard output, to people on standard error."""
    if as_json:
        told = {"kind": failure.kind, "message": failure.message, "hint": failure.hint or None}
        sys.stdout.write(json.dumps({"error": told}, indent=2, ensure_ascii=False) + "\n")
        return
    console = _console(stderr=True)
    console.print(Text(f"{program}: ", style="bold red") + text(failure.message), soft_wrap=True)
    if failure.hint:
        console.print(text(failure.hint, "dim"), soft_wrap=True)


def text(value: object, style: str = "") -> Text:
    """Return text that is nothing but text."""
    return Text(plain(str(value)), style=style)


def plain(value: str) -> str:
    """Return text in which nothing commands a terminal."""
    if value.isprintable():
        return value
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in value
    )


def pairs(values: Mapping[str, object]) -> Table:
    """Return names and values, one pair a line; those without a value left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value not in (None, "", ()):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
            table.add_row(name, text(shown))
    return table


def rows(columns: Sequence[str], cells: Sequence[Sequence[object]]) -> Table:
    """Return a table; a None is an empty cell."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*(text("" if cell is None else cell) for cell in row))
    return table


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``8.5 s``, ``2 min``, ``3 h``, ``5 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(count: int) -> str:
    """Return bytes as people say them: ``812 B``, ``4.2 KiB``."""
    if count < 1024:
        return f"{count} B"
    for unit, length in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)):
        if count < length * 1000 or unit == "GiB":
            return f"{count / length:.3g} {unit}"
    return f"{count} B"


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_PIPE  # so that a pipe gets whole lines
    return console


def progress_console() -> Console:
    """Return where progress is shown: on standard error, so that a pipe gets the answer only."""
    return _console(stderr=True)
