"""``sessions list|show|end``: which sessions there are, what is in them, and ending them.

A session is named by its key, which is a hash: nobody can use the session with it. Reading is
billed by the key: SCAN goes through the whole database, and each session takes two commands.
"""

from __future__ import annotations

import heapq
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import DecodeError, Struct, json

from upstash_middleware.cli.invocation import (
    SCAN_COUNT,
    Invocation,
    command,
    count_keys,
    run_commands,
    scan_in_view,
)
from upstash_middleware.cli.output import (
    Answer,
    Exit,
    UsageError,
    duration,
    pairs,
    rows,
    size,
    text,
)
from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.flow import Command
from upstash_middleware.errors import CommandError, refusal_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from upstash_middleware.core.flow import Reply
    from upstash_middleware.core.sessions import Session, SessionStore, StoredSession
    from upstash_middleware.runtime import Runtime

group: typer.Typer = typer.Typer(
    help="Which sessions there are, what is in them, and ending them.", no_args_is_help=True
)

_KEYS_UNCONFIRMED = 10_000
"""The largest database that is read without asking."""
_GONE = -2
"""What PTTL returns for a key that does not exist."""
_SHORT_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_Key = Annotated[str, typer.Argument(help="The session's key, as `sessions list` shows it.")]
_Keys = Annotated[
    list[str] | None, typer.Argument(help="Keys of sessions, as `sessions list` shows them.")
]


@command(group, "list")
def list_(
    invocation: Invocation,
    *,
    user: Annotated[str, typer.Option(help="Only those bound to the user with this id.")] = "",
    older: Annotated[
        str, typer.Option(help="Only those created this long ago or longer: '30 days', 12h.")
    ] = "",
    limit: Annotated[int, typer.Option(help="How many to list at most.", min=1)] = 1000,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, however many keys there are to read.")
    ] = False,
) -> Answer:
    """List sessions, the oldest first. Scans the whole database."""
    age = seconds_in(older) if older else 0.0
    if age is None:
        raise UsageError(f"--older {older!r}: write an age such as '30 days' or 12h")
    runtime, sessions = invocation.keeping_sessions()
    store = sessions.store
    users = frozenset(store.user_hashes(user)) if user else None
    total = count_keys(runtime)
    if total > _KEYS_UNCONFIRMED and not yes:
        _confirm(total)
    found = _search(runtime, store, users=users, age=age, limit=limit, total=total)
    now = store.clock.wall()
    table = rows(
        ("key", "created", "last used", "expires in", "user"),
        [
            (
                each.key,
                _ago(now - each.stored.created),
                _ago(now - each.stored.touched),
                _left(each.expires_in),
                each.stored.user,
            )
            for each in found.oldest
        ],
    )
    about = f" of user {user!r}" if user else ""
    about += f", {duration(age)} old or older," if age else ""
    shown = {1: f"1 session{about} is"}.get(
        found.count, f"{found.count or 'no'} sessions{about} are"
    )
    cut = f", the first {limit} listed" if found.count > limit else ""
    notes = [f"{shown} stored under {store.prefix}{cut}; {found.commands} commands were billed"]
    if found.over:
        notes.append(f"{found.over} more are over, and are deleted when they expire")
    if found.unreadable:
        notes.append(f"{found.unreadable} more cannot be read: sealed with other keys, or damaged")
    data = {
        "prefix": store.prefix,
        "count": found.count,
        "over": found.over,
        "unreadable": found.unreadable,
        "sessions": [each.data() for each in found.oldest],
        "billed_commands": found.commands,
    }
    return Answer(data, [*[table] * bool(found.oldest), *(text(note, "dim") for note in notes)])


def _confirm(total: int) -> None:
    """Ask whether to read a large database. Raises UsageError if nobody can be asked."""
    most = 1 + 2 * (total // SCAN_COUNT + 1) + 2 * total
    about = f"the database has {total} keys: listing takes up to {most} commands, which are billed"
    try:
        agreed = typer.confirm(f"{about}. Go on?", err=True)
    except typer.Abort:
        raise UsageError(f"{about}; add --yes to go on") from None
    if not agreed:
        raise typer.Exit(Exit.NO)


@command(group, "show")
def show(
    invocation: Invocation,
    key: _Key,
    *,
    values: Annotated[
        bool, typer.Option("--values", help="Show the values too, which may be secrets.")
    ] = False,
) -> Answer:
    """Show a session and its entries; exit code 1 if there is none."""
    runtime, sessions = invocation.keeping_sessions()
    store = sessions.store
    name = _whole_key(store, key)
    fields, left = _read(
        runtime,
        Command(("HGETALL", name), reads_only=True),
        Command(("PTTL", name), reads_only=True),
    )
    described = store.describe(name, fields) if isinstance(fields, list) else None
    if described is None:
        why = "it cannot be read: sealed with another key, or damaged" if fields else "it is gone"
        shown = text(f"no session: {why}", "yellow")
        return Answer({"key": name, "found": False, "why": why}, [shown], Exit.NO)
    stored, entries = described
    each = _Found(name, _seconds(left), stored)
    is_valid = bool(_valid(runtime, store, [each])[0])
    now = store.clock.wall()
    decoded = sessions.session(stored, entries)
    shown_entries = [
        _entry(decoded, name, data, values=values) for name, data in sorted(entries.items())
    ]
    about = {
        "key": name,
        "created": _ago(now - stored.created),
        "last used": _ago(now - stored.touched),
        "expires in": _left(each.expires_in),
        "user": stored.user or "not bound to a user",
        "size": size(sum(len(name) + len(data) for name, data in entries.items())),
    }
    columns = ("entry", "type", "size", *["value"] * values)
    table = rows(columns, [entry.cells(values=values) for entry in shown_entries])
    data = {
        "found": True,
        "valid": is_valid,
        **each.data(),
        "entries": [entry.data(values=values) for entry in shown_entries],
    }
    verdict = text("it is over: its user's sessions were ended", "yellow")
    parts: list[RenderableType] = [
        *[verdict] * (not is_valid),
        pairs(about),
        *[table] * bool(shown_entries),
    ]
    return Answer(data, parts)


@command(group, "end")
def end(
    invocation: Invocation,
    keys: _Keys = None,
    *,
    user: Annotated[
        str, typer.Option(help="All sessions that are bound to the user with this id.")
    ] = "",
) -> Answer:
    """End sessions, at once and for all processes."""
    if bool(keys) == bool(user):
        raise UsageError("name what to end: keys of sessions, or --user ID")
    runtime, sessions = invocation.keeping_sessions()
    store = sessions.store
    if user:
        (ended,) = _read(runtime, store.revoke_all(user))
        shown = text(f"the sessions of user {user!r} are ended", "green")
        if not ended:
            shown = text(f"no session is bound to user {user!r}", "yellow")
        return Answer({"user": user, "ended": bool(ended), "billed_commands": 1}, [shown])
    names = list(dict.fromkeys(_whole_key(store, key) for key in keys or ()))
    replies = _read(runtime, *(Command(("DEL", name), reads_only=True) for name in names))
    was_there = [name for name, reply in zip(names, replies, strict=True) if reply == 1]
    count = f"{len(was_there)} session{'s' * (len(was_there) != 1)} ended"
    gone = len(names) - len(was_there)
    count += f"; {gone} gone already" if gone else ""
    data = {"ended": was_there, "gone": gone, "billed_commands": len(names)}
    return Answer(data, [text(count, "green")])


def _whole_key(store: SessionStore, given: str) -> str:
    """The key on Redis of a session. Raises UsageError for what is not a key of a session."""
    short = given.removeprefix(store.key_start)
    if not _SHORT_KEY.fullmatch(short):
        # What was given is not repeated: it may be a cookie's value.
        raise UsageError(
            f"this is not the key of a session under {store.prefix}: give one as `sessions list` "
            "shows it, with 43 characters, not the cookie's value"
        )
    return store.key_start + short


class _Found(Struct, frozen=True):
    """A session without its entries."""

    key: str
    expires_in: float | None
    """Seconds; None if never, which this package does not set."""
    stored: StoredSession

    def data(self) -> dict[str, Any]:
        """The session for programs."""
        return {
            "key": self.key,
            "created": self.stored.created,
            "used": self.stored.touched,
            "expires_in": self.expires_in,
            "user": self.stored.user or None,
        }


class _Listing(Struct):
    """The result of a scan."""

    oldest: list[_Found] = []
    count: int = 0
    over: int = 0
    """How many more have been ended with all of their user's, and have not expired yet."""
    unreadable: int = 0
    commands: int = 1


def _search(  # noqa: PLR0913
    runtime: Runtime,
    store: SessionStore,
    *,
    users: frozenset[str] | None,
    age: float,
    limit: int,
    total: int,
) -> _Listing:
    """Return the oldest sessions of these users and at least this age. Raises UpstashError."""
    listing, now = _Listing(), store.clock.wall()
    for keys in scan_in_view(runtime, store.key_start, total=total):
        read, unreadable = _read_heads(runtime, store, keys)
        fitting = [
            each
            for each in read
            if (users is None or each.stored.user in users) and now - each.stored.created >= age
        ]
        valid, asked = _valid(runtime, store, fitting)
        listing.oldest = heapq.nsmallest(
            limit, [*listing.oldest, *valid], key=lambda each: (each.stored.created, each.key)
        )
        listing.count += len(valid)
        listing.over += len(fitting) - len(valid)
        listing.unreadable += unreadable
        listing.commands += 1 + 2 * len(keys) + asked
    return listing


def _read_heads(
    runtime: Runtime, store: SessionStore, keys: Sequence[str]
) -> tuple[list[_Found], int]:
    """Return sessions, and how many keys have something else. Raises UpstashError."""
    found: list[_Found] = []
    unreadable = 0
    if not keys:
        return found, unreadable
    commands = [
        Command(words, reads_only=True)
        for key in keys
        for words in (("HGET", key, "."), ("PTTL", key))
    ]
    replies = iter(_read(runtime, *commands))
    for key, head, left in zip(keys, replies, replies, strict=False):
        if left == _GONE:
            continue
        described = store.describe(key, [b".", head])
        if described is None:
            unreadable += 1
        else:
            found.append(_Found(key, _seconds(left), described[0]))
    return found, unreadable


def _valid(
    runtime: Runtime, store: SessionStore, found: Sequence[_Found]
) -> tuple[list[_Found], int]:
    """Return those that can be used, and how many commands were billed. Raises UpstashError."""
    users = [user for user in dict.fromkeys(each.stored.user for each in found) if user]
    epochs: dict[str, Reply] = {}
    if users:
        words = ("MGET", *map(store.epoch_key, users))
        (replies,) = _read(runtime, Command(words, reads_only=True))
        epochs = dict(zip(users, replies, strict=True)) if isinstance(replies, list) else {}
    valid = [each for each in found if store.is_valid(each.stored, epochs.get(each.stored.user))]
    return valid, int(bool(users))


def _read(runtime: Runtime, *commands: Command) -> list[Reply]:
    replies = run_commands(runtime, *commands)
    for reply in replies:
        # One of many keys may have another type: it is not a session, and not a reason to stop.
        if isinstance(reply, CommandError) and (len(replies) == 1 or refusal_in(str(reply))):
            raise reply
    return replies


class _Entry(Struct, frozen=True):
    """An entry of a session."""

    name: str
    type: str
    size: int
    value: str
    """As Python shows it."""
    stored: Any
    """What is stored, if that is JSON."""

    def cells(self, *, values: bool) -> tuple[object, ...]:
        """The entry as a row of a table."""
        return (self.name, self.type, size(self.size), *[self.value] * values)

    def data(self, *, values: bool) -> dict[str, Any]:
        """The entry for programs."""
        shown = {"name": self.name, "type": self.type, "size": self.size}
        return shown | {"value": self.stored} if values else shown


def _entry(decoded: Session, name: str, data: bytes, *, values: bool) -> _Entry:
    try:
        value = decoded[name]
    except KeyError:
        return _Entry(name, "unreadable", len(data), "", None)
    stored: Any = repr(value)
    with suppress(DecodeError, RecursionError):
        stored = json.decode(data)
    return _Entry(name, type(value).__name__, len(data), repr(value) if values else "", stored)


def _seconds(milliseconds: Reply) -> float | None:
    is_known = isinstance(milliseconds, int) and milliseconds >= 0
    return milliseconds / 1000 if is_known else None  # type: ignore[operator] # an int


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"


def _left(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)
