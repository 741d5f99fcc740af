"""The base class of the stores for responses and for values: reads, calls, epochs and locks."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from upstash_middleware.core.flow import Command, Pipeline, Script, script
from upstash_middleware.errors import CommandError, UnexpectedAnswer, UpstashError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Argument, Reply

FAILED: Final = "!"
"""A lock's value after a failed revalidation: another one would probably fail too."""
UNSHARED: Final = "-"
"""A lock's value after a response that cannot be shared, so that other requests do not wait."""
MAX_CALL_BYTES: Final = 9_900_000
"""The maximum size of a command. Upstash refuses requests of more than 10 MB in total."""
SLACK: Final = 3600.0
"""Seconds for which epochs are kept after the entries that they invalidate have expired. Covers
late store commands, and clocks that run at different speeds."""


class Lock(Struct, frozen=True):
    """A lock as read by a lookup.

    The lock is a token with an expiry, so that a crashed holder delays others only for a limited
    time. The entry that the holder stores contains the token. A lookup that reads both knows that
    the lock is no longer needed, so no command is needed to release it.
    """

    key: str
    value: str = ""
    """The token of the holder, ``UNSHARED``, ``FAILED``, or empty."""
    done: bool = False
    """Whether the holder has stored its response or value."""

    @property
    def held(self) -> bool:
        """Whether another process is rendering a response or loading a value."""
        return bool(self.value) and not (self.done or self.unshared or self.failed)

    @property
    def unshared(self) -> bool:
        """Whether the response cannot be shared, so that other requests do not wait."""
        return self.value == UNSHARED

    @property
    def failed(self) -> bool:
        """Whether a revalidation failed recently."""
        return self.value == FAILED


class RedisStore:
    """The base class of both stores. Methods that call Upstash can raise UpstashError."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def clock(self) -> Clock: ...
        @property
        def randomness(self) -> Callable[[int], bytes]: ...
        @property
        def deadline(self) -> float:
            """The deadline of one call in seconds."""

        @property
        def max_keep(self) -> float:
            """The maximum lifetime of an entry in seconds, counted from the read of its epochs."""

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, with one command."""
        command = Command(("MGET", *keys), reads_only=True)
        (reply,) = await Pipeline((command,), deadline=self.deadline, yields=True)
        return values_of(reply, len(keys))

    async def call(self, *commands: Command) -> list[Reply]:
        """Send commands in one pipeline; raise the error of the first that failed."""
        replies = await Pipeline(commands, deadline=self.deadline, yields=True)
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
        return replies

    def time_to_live(
        self, seconds: float, wall: float, monotonic: float, longest: float | None = None
    ) -> int:
        """Return a TTL in milliseconds that ends before any epoch set since these clock readings.

        ``longest`` is the maximum lifetime of the entries if it is not ``max_keep``.
        """
        # Both clocks are compared, because one may stop while a process is frozen.
        elapsed = max(self.clock.wall() - wall, self.clock.monotonic() - monotonic, 0.0)
        longest = self.max_keep if longest is None else longest
        return int(min(seconds, longest - elapsed) * 1000)

    # --- Epochs ---------------------------------------------------------------------------------

    async def replace_epochs(
        self, epochs: Sequence[str], any_tag: str | None, *, soft: bool, then: Sequence[str] = ()
    ) -> list[bytes | None]:
        """Replace epochs with new ones; if ``any_tag`` is given, replace that one first.

        ``soft`` replaces only their soft parts. Returns the values of the keys ``then``, which are
        read afterwards. After an error, the replacement may be incomplete.
        """
        commands = [] if any_tag is None else [self.set_epoch(any_tag, self.unique_text())]
        if soft and epochs:
            commands.append(
                script_call("soften", epochs, self.unique_text(), self.epoch_lifetime())
            )
        else:
            commands += [self.set_epoch(epoch, f"{self.unique_text()}:") for epoch in epochs]
        if then:
            commands.append(Command(("MGET", *then), reads_only=True))
        if not commands:
            return []
        replies = await self.call(*commands)
        for command, reply in zip(commands, replies, strict=True):
            if command.args[0] == "SET" and reply not in (b"OK", "OK"):
                raise UnexpectedAnswer(f"the reply to a purge was {reply!r:.40}, not OK")
        return values_of(replies[-1], len(then)) if then else []

    def set_epoch(self, epoch: str, value: str) -> Command:
        """Return the command that sets an epoch."""
        # Not safe to retry: a repeated SET could restore an epoch that a later purge has replaced,
        # and make the entries that recorded it valid again.
        return Command(("SET", epoch, value, "PX", self.epoch_lifetime()))

    def epoch_lifetime(self) -> int:
        """Return the TTL of an epoch in milliseconds."""
        return int((self.max_keep + SLACK) * 1000)

    def unique_text(self) -> str:
        """Return unique random text."""
        return urlsafe_b64encode(self.randomness(12)).decode()

    # --- Locks: only one process renders a response or loads a value ----------------------------

    async def acquire(self, lock: Lock, seconds: float) -> str | None:
        """Acquire a lock that is not held. Return its token; None if another process was first."""
        token, milliseconds = self.unique_text(), int(seconds * 1000)
        if lock.value:
            command = script_call("lock", [lock.key], lock.value, token, milliseconds)
        else:
            command = Command(("SET", lock.key, token, "NX", "PX", milliseconds))
        try:
            (taken,) = await self.call(command)
        except (Exception, GeneratorExit):
            raise
        except BaseException:  # interrupted: the lock may have been acquired
            with suppress(UpstashError):  # the lock expires
                await self.release(lock.key, token)
            raise
        return token if taken else None

    async def release(self, key: str, token: str, mark: str = "", seconds: float = 0.0) -> None:
        """Release a lock after nothing was stored; leave ``mark`` in its place for some seconds."""
        await self.call(script_call("lock", [key], token, mark, int(seconds * 1000)))


def values_of(reply: Reply, count: int) -> list[bytes | None]:
    """Return the values of ``count`` keys from the reply to an MGET."""
    if isinstance(reply, CommandError):
        raise reply
    if not isinstance(reply, list) or len(reply) != count:
        raise UnexpectedAnswer(f"MGET of {count} keys did not return {count} values")
    return [value if isinstance(value, bytes) else None for value in reply]


def cache_script(name: str) -> Script:
    """Return one of the cache scripts in ``lua/``."""
    return script(__package__, f"lua/{name}")


def read_scripts(*names: str) -> None:
    """Read the scripts' files in advance, so that no request blocks an event loop to read them."""
    for name in names:
        cache_script(name)


def script_call(name: str, keys: Sequence[str], *arguments: Argument) -> Command:
    """Return the command that calls a script."""
    chosen = cache_script(name)
    return Command(("EVALSHA", chosen.sha, len(keys), *keys, *arguments), script=chosen)
