"""What overlapping requests of one session do, and what is left of it if they are saved in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from threading import Barrier


class Plan(NamedTuple):
    """What one of the overlapping requests does."""

    sets: dict[str, int]
    deletes: list[str]
    ending: str
    """``regenerate`` or ``clear`` before it sets and deletes, or nothing."""
    pauses: tuple[int, int]
    """How often it lets other requests run, before and after it."""
    loaded: Barrier | None = None
    """Where it waits until all have loaded the session, if they do."""


class Done(NamedTuple):
    """What it has done, as the application and the browser saw it."""

    plan: Plan
    was_new: bool
    deleted: list[str]
    cookie: str | None
    """The cookie that it was given; empty if it was deleted, None if it was left alone."""


Model = dict[str, dict[str, int]]
"""The entries of all sessions, by cookie."""


def after(before: Model, sent: str, order: tuple[Done, ...]) -> Model:
    """Return all sessions as they should be if the requests were saved in this order."""
    sessions = {name: dict(entries) for name, entries in before.items()}
    for plan, was_new, deleted, cookie in order:
        if plan.ending == "clear":
            sessions.pop(sent, None)
        own = None if was_new or plan.ending == "clear" else sessions.get(sent)
        if plan.ending == "regenerate" and cookie and own is not None:
            sessions[cookie] = sessions.pop(sent)
        elif cookie:  # created
            sessions[cookie] = own = {}
        if own is not None:
            own.update(plan.sets)
            for name in deleted:
                own.pop(name, None)
    return sessions
