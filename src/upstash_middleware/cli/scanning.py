"""Reading what a prefix holds, key by key: it takes long, so it shows how far it is.

SCAN goes through the whole database whatever the pattern, and is billed by the call; each key
that is looked at is billed too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from upstash_middleware.cli.showing import progress_console
from upstash_middleware.core.cache.keys import Names
from upstash_middleware.core.effects import Command, Pipeline
from upstash_middleware.errors import CommandError, UnexpectedAnswer
from upstash_middleware.refusals import refusal_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upstash_middleware.core.effects import Reply
    from upstash_middleware.gateway import Gateway

_AT_ONCE = 500
_VARIANT = re.compile(r"#[0-9a-f]{32}$")
_SPECIAL = re.compile(r"([\\*?\[\]])")


@dataclass(frozen=True, slots=True)
class Kept:
    """A key of the cache's, as far as it is known without reading what is there."""

    key: str
    url: str
    """Origin, path and query."""
    is_variant: bool
    """Whether it is for some values of header fields or cookies only."""
    size: int
    """Bytes, as stored."""
    expires_in: float | None
    """Seconds until Redis drops it; None if never, which this package sets nowhere."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What was found, and what finding it was billed as."""

    kept: tuple[Kept, ...]
    commands: int


def scan(gateway: Gateway, containing: str = "") -> Scanned:
    """Return the cache's entries whose URL contains a text. Raises UpstashError."""
    start = Names(gateway.settings.prefix).resource("", "")
    pattern = _escaped(start) + (f"*{_escaped(containing)}*" if containing else "*")
    (total,) = _ask(gateway, Command(("DBSIZE",), reads_only=True))
    kept: dict[str, Kept] = {}
    commands = 1
    columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = progress_console()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total if isinstance(total, int) else None)
        for keys in _pages(gateway, pattern):
            new = [key for key in keys if key not in kept]  # SCAN may answer a key twice
            kept |= {one.key: one for one in _looked_at(gateway, new, start)}
            commands += 1 + 2 * len(new)
            progress.advance(task, _AT_ONCE)
    return Scanned(tuple(kept.values()), commands)


def _pages(gateway: Gateway, pattern: str) -> Iterator[list[str]]:
    cursor: str = "0"
    while True:
        (reply,) = _ask(
            gateway,
            Command(("SCAN", cursor, "MATCH", pattern, "COUNT", _AT_ONCE), reads_only=True),
        )
        match reply:
            case [bytes(following), list(keys)]:
                yield [key.decode("utf-8", "replace") for key in keys if isinstance(key, bytes)]
                cursor = following.decode()
            case _:
                raise UnexpectedAnswer("SCAN did not answer a cursor and keys")
        if cursor == "0":
            return


def _looked_at(gateway: Gateway, keys: Sequence[str], start: str) -> Iterator[Kept]:
    if not keys:
        return
    commands = [
        Command((name, key), reads_only=True) for key in keys for name in ("STRLEN", "PTTL")
    ]
    replies = iter(_ask(gateway, *commands))
    for key, length, left in zip(keys, replies, replies, strict=False):
        if isinstance(length, int) and isinstance(left, int) and left != -2:  # gone meanwhile
            yield Kept(
                key,
                _VARIANT.sub("", key.removeprefix(start)),
                _VARIANT.search(key) is not None,
                length,
                left / 1000 if left >= 0 else None,
            )


def _ask(gateway: Gateway, *commands: Command) -> list[Reply]:
    async def flow() -> list[Reply]:
        return await Pipeline(commands)

    replies = gateway.perform(flow())
    for reply in replies:
        # Of many keys one may be another's, of another type: it is no entry, and no reason to end.
        if isinstance(reply, CommandError) and (len(replies) == 1 or refusal_in(str(reply))):
            raise reply
    return replies


def _escaped(text: str) -> str:
    """Return text as a pattern of SCAN's that matches it alone."""
    return _SPECIAL.sub(r"\\\1", text)
