"""``sessions list|show|end``: lists sessions, shows their entries, and ends them.

A session is identified by its key, which is a hash, so the key cannot be used to log in. Reading is
billed for each key: SCAN reads the whole database, and each session takes two commands.
"""

from __future__ import annotations

import heapq
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import DecodeError, json

from upstash_middleware.cli.invocation import SCAN_COUNT, Invocation, command, seconds_left
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from upstash_middleware.core.flow import Reply
    from upstash_middleware.core.sessions import Session, SessionStore, StoredSession
    from upstash_middleware.runtime import Runtime

group: typer.Typer = typer.Typer(
    help="List sessions, show their entries, and end them.", no_args_is_help=True
)

_MAX_KEYS_UNCONFIRMED = 10_000
"""The largest number of keys that is scanned without confirmation."""
_SHORT_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_Key = Annotated[str, typer.Argument(help="The session's key, as `sessions list` shows it.")]
_Keys = Annotated[
    list[str] | None, typer.Argument(help="Keys of sessions, as `sessions list` shows them.")
]


@command(group, "list")
def list_(
    invocation: Invocation,
    *,
    user: Annotated[str, typer.Option(help="Only sessions bound to the user with this id.")] = "",
    older: Annotated[
        str, typer.Option(help="Only sessions of at least this age: '30 days', 12h.")
    ] = "",
    limit: Annotated[int, typer.Option(help="The most sessions to list.", min=1)] = 1000,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, even if there are many keys to read.")
    ] = False,
) -> Answer:
    """List sessions, oldest first. Scans the whole database."""
    age = seconds_in(older) if older else 0.0
    if age is None:
        raise UsageError(f"--older {older!r}: write an age such as '30 days' or 12h")
    runtime, sessions = invocation.keeping_sessions()
    store = sessions.store
    users = frozenset(store.user_hashes(user)) if user else None
    total = invocation.count_keys(runtime)
    if total > _MAX_KEYS_UNCONFIRMED and not yes:
        _confirm(total)
    oldest: list[dict[str, Any]] = []
    count = over = unreadable = 0
    now = store.clock.wall()
    for read in invocation.read_each(runtime, store.key_start, "HGET", ".", total=total):
        heads = [(store.describe(key, [b".", head]), left) for key, head, left in read]
        unreadable += sum(described is None for described, _ in heads)
        fitting = {
            described[0].key: (described[0], left)
            for described, left in heads
            if described is not None
            and (users is None or described[0].user in users)
            and now - described[0].created >= age
        }
        valid = _keep_valid(invocation, runtime, store, [stored for stored, _ in fitting.values()])
        count += len(valid)
        over += len(fitting) - len(valid)
        found = [_as_data(*fitting[each.key]) for each in valid]
        oldest = heapq.nsmallest(
            limit, oldest + found, key=lambda each: (each["created"], each["key"])
        )
    now = store.clock.wall()
    table = rows(
        ("key", "created", "last used", "expires in", "user"),
        [
            (
                each["key"],
                _ago_text(now - each["created"]),
                _ago_text(now - each["used"]),
                _expiry_text(each["expires_in"]),
                each["user"],
            )
            for each in oldest
        ],
    )
    about = f" of user {user!r}" if user else ""
    about += f", {duration(age)} old or older," if age else ""
    shown = {1: f"1 session{about} is"}.get(count, f"{count or 'no'} sessions{about} are")
    cut = f", the first {limit} listed" if count > limit else ""
    billed = invocation.billed
    notes = [f"{shown} stored under {store.prefix}{cut}; {billed} commands were billed"]
    if over:
        notes.append(f"{over} more are over, and are deleted when they expire")
    if unreadable:
        notes.append(f"{unreadable} more cannot be read: sealed with other keys, or damaged")
    data = {
        "prefix": store.prefix,
        "count": count,
        "over": over,
        "unreadable": unreadable,
        "sessions": oldest,
        "billed_commands": billed,
    }
    return Answer(data, [*[table] * bool(oldest), *(text(note, "dim") for note in notes)])


def _confirm(total: int) -> None:
    """Ask whether to read a large database. Raises UsageError without a terminal."""
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
        bool, typer.Option("--values", help="Also show the values, which may be secrets.")
    ] = False,
) -> Answer:
    """Show a session and its entries; exit code 1 if there is none."""
    runtime, sessions = invocation.keeping_sessions()
    store = sessions.store
    name = _whole_key(store, key)
    fields, left = invocation.read(runtime, ("HGETALL", name), ("PTTL", name))
    described = store.describe(name, fields) if isinstance(fields, list) else None
    if described is None:
        why = "it cannot be read: sealed with another key, or damaged" if fields else "it is gone"
        shown = text(f"no session: {why}", "yellow")
        return Answer({"key": name, "found": False, "why": why}, [shown], Exit.NO)
    stored, entries = described
    session = _as_data(stored, seconds_left(left))
    is_valid = bool(_keep_valid(invocation, runtime, store, [stored]))
    now = store.clock.wall()
    decoded = sessions.session(stored, entries)
    shown_entries, table = [], []
    for entry, data in sorted(entries.items()):
        kind, value, as_json = _decode(decoded, entry, data)
        shown_entries.append(
            {"name": entry, "type": kind, "size": len(data)}
            | ({"value": as_json} if values else {})
        )
        table.append((entry, kind, size(len(data)), *[value] * values))
    about = {
        "key": name,
        "created": _ago_text(now - stored.created),
        "last used": _ago_text(now - stored.touched),
        "expires in": _expiry_text(session["expires_in"]),
        "user": stored.user or "not bound to a user",
        "size": size(sum(len(name) + len(data) for name, data in entries.items())),
    }
    columns = ("entry", "type", "size", *["value"] * values)
    parts: list[RenderableType] = [
        *[text("it is over: its user's sessions were ended", "yellow")] * (not is_valid),
        pairs(about),
        *[rows(columns, table)] * bool(table),
    ]
    return Answer({"found": True, "valid": is_valid, **session, "entries": shown_entries}, parts)


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
        (ended,) = invocation.read(runtime, store.revoke_all(user).args)
        shown = text(f"the sessions of user {user!r} are ended", "green")
        if not ended:
            shown = text(f"no session is bound to user {user!r}", "yellow")
        return Answer({"user": user, "ended": bool(ended), "billed_commands": 1}, [shown])
    names = list(dict.fromkeys(_whole_key(store, key) for key in keys or ()))
    replies = invocation.read(runtime, *(("DEL", name) for name in names))
    was_there = [name for name, reply in zip(names, replies, strict=True) if reply == 1]
    count = f"{len(was_there)} session{'s' * (len(was_there) != 1)} ended"
    gone = len(names) - len(was_there)
    count += f"; {gone} gone already" if gone else ""
    data = {"ended": was_there, "gone": gone, "billed_commands": len(names)}
    return Answer(data, [text(count, "green")])


def _whole_key(store: SessionStore, given: str) -> str:
    """A session's key on Redis. Raises UsageError if it is not a session's key."""
    short = given.removeprefix(store.key_start)
    if not _SHORT_KEY.fullmatch(short):
        # The text is not repeated, because it may be a cookie's value.
        raise UsageError(
            f"this is not the key of a session under {store.prefix}: give one as `sessions list` "
            "shows it, with 43 characters, not the cookie's value"
        )
    return store.key_start + short


def _as_data(stored: StoredSession, expires_in: float | None) -> dict[str, Any]:
    """A session in JSON."""
    return {
        "key": stored.key,
        "created": stored.created,
        "used": stored.touched,
        "expires_in": expires_in,
        "user": stored.user or None,
    }


def _keep_valid(
    invocation: Invocation, runtime: Runtime, store: SessionStore, found: Sequence[StoredSession]
) -> list[StoredSession]:
    """The sessions that are still valid. Raises UpstashError."""
    users = [user for user in dict.fromkeys(each.user for each in found) if user]
    epochs: dict[str, Reply] = {}
    if users:
        (replies,) = invocation.read(runtime, ("MGET", *map(store.epoch_key, users)))
        epochs = dict(zip(users, replies, strict=True)) if isinstance(replies, list) else {}
    return [each for each in found if store.is_valid(each, epochs.get(each.user))]


def _decode(decoded: Session, name: str, data: bytes) -> tuple[str, str, Any]:
    """The type of an entry, its value as Python's repr, and the stored value if it is JSON."""
    try:
        value = decoded[name]
    except KeyError:
        return "unreadable", "", None
    shown = repr(value)
    with suppress(DecodeError, RecursionError):
        return type(value).__name__, shown, json.decode(data)
    return type(value).__name__, shown, shown


def _ago_text(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"


def _expiry_text(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)
