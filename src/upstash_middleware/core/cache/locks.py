"""Locks on Redis, by which processes agree on who renders a response; flows.

A lock is a token that expires by itself, so a holder that dies is waited for no longer than that.
The entry stored under it carries the token: whoever reads both sees that the lock is done with,
and no command is spent on releasing it. A response that may not be stored leaves a mark instead.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.scripts import script_call
from upstash_middleware.core.effects import Command
from upstash_middleware.errors import UpstashError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.cache.store import Store

_MARK = "-"
_MARK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock as a lookup has seen it."""

    key: str
    value: str = ""
    """The token of its holder, a mark, or nothing."""
    done: bool = False
    """Whether what was rendered under it has been stored."""

    @property
    def held(self) -> bool:
        """Whether another process is rendering."""
        return bool(self.value) and not self.done and not self.marked

    @property
    def marked(self) -> bool:
        """Whether what is there may not be stored, so that nobody needs to wait."""
        return self.value == _MARK


def lock_key(key: str) -> str:
    """Return the key of the lock of an entry."""
    return f"{key}#lock"


async def acquire(store: Store, lock: Lock, seconds: float) -> str | None:
    """Take a lock that is not held; return its token, None if somebody else was first.

    Raises UpstashError.
    """
    token, milliseconds = urlsafe_b64encode(store.randomness(12)).decode(), int(seconds * 1000)
    if lock.value:
        command = script_call("lock", [lock.key], lock.value, token, milliseconds)
    else:
        command = Command(("SET", lock.key, token, "NX", "PX", milliseconds))
    try:
        (taken,) = await store.call(command)
    except (Exception, GeneratorExit):
        raise
    except BaseException:  # interrupted: it may have been taken all the same
        with suppress(UpstashError):  # then it expires
            await release(store, lock.key, token)
        raise
    return token if taken else None


async def release(store: Store, key: str, token: str) -> None:
    """Give a lock back under which nothing was rendered. Raises UpstashError."""
    await store.call(script_call("lock", [key], token, "", 0))


async def mark(store: Store, key: str, token: str) -> None:
    """Say in a lock's place that what was rendered may not be stored. Raises UpstashError."""
    await store.call(script_call("lock", [key], token, _MARK, int(_MARK_SECONDS * 1000)))
