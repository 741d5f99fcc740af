"""What the stores of responses and of values do alike: reads and calls, epochs, and locks."""

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
"""A lock's value after a revalidation that failed: another one would fail too."""
UNSHARED: Final = "-"
"""A lock's value after a response that may not be stored, or streams: others need not wait."""
MAX_CALL_BYTES: Final = 9_900_000
"""Upstash refuses requests of more than 10 MB, the text around the entry included."""
SLACK: Final = 3600.0
"""Seconds by which epochs outlive the entries that they invalidate, for a store that arrives late
and clocks that run at different speeds."""


class Lock(Struct, frozen=True):
    """A lock as a lookup has read it.

    It is a token that expires, so a holder that crashed delays others only until then. The entry
    stored under it contains the token: reading both shows that the lock is no longer needed, so
    no command is spent on releasing it.
    """

    key: str
    value: str = ""
    """The token of its holder, ``UNSHARED``, ``FAILED``, or nothing."""
    done: bool = False
    """Whether the response or value made under it has been stored."""

    @property
    def held(self) -> bool:
        """Whether another process is rendering, or loading a value."""
        return bool(self.value) and not (self.done or self.unshared or self.failed)

    @property
    def unshared(self) -> bool:
        """Whether the response cannot be shared, so that others need not wait."""
        return self.value == UNSHARED

    @property
    def failed(self) -> bool:
        """Whether a revalidation has just failed."""
        return self.value == FAILED


class RedisStore:
    """The base of both stores. Methods that call Upstash raise UpstashError."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def clock(self) -> Clock: ...
        @property
        def randomness(self) -> Callable[[int], bytes]: ...
        @property
        def deadline(self) -> float:
            """Seconds for one call."""

        @property
        def max_keep(self) -> float:
            """The longest lifetime of an entry in seconds, from when its epochs were read."""

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, in one command."""
        command = Command(("MGET", *keys), reads_only=True)
        (reply,) = await Pipeline((command,), deadline=self.deadline, yields=True)
        return values_of(reply, len(keys))

    async def call(self, *commands: Command) -> list[Reply]:
        """Send commands in one pipeline; raise the error of any that failed."""
        replies = await Pipeline(commands, deadline=self.deadline, yields=True)
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
        return replies

    def time_to_live(
        self, seconds: float, wall: float, monotonic: float, longest: float | None = None
    ) -> int:
        """Return milliseconds that end before any epoch that was set since these clock readings.

        ``longest`` is the longest lifetime of what the epochs are for, if not ``max_keep``.
        """
        # While a process is frozen, one of its clocks may stop.
        elapsed = max(self.clock.wall() - wall, self.clock.monotonic() - monotonic, 0.0)
        longest = self.max_keep if longest is None else longest
        return int(min(seconds, longest - elapsed) * 1000)

    # --- Epochs ---------------------------------------------------------------------------------

    async def replace_epochs(
        self, epochs: Sequence[str], any_tag: str | None, *, soft: bool, then: Sequence[str] = ()
    ) -> list[bytes | None]:
        """Replace epochs with new ones; first the epoch of any tag, if its key is given.

        ``soft`` replaces their soft parts only. Returns the values of the keys ``then``, as they
        are after that. On an error it is not certain that all of it was done.
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
        # and with it the entries that recorded it.
        return Command(("SET", epoch, value, "PX", self.epoch_lifetime()))

    def epoch_lifetime(self) -> int:
        """Return for how many milliseconds an epoch is kept."""
        return int((self.max_keep + SLACK) * 1000)

    def unique_text(self) -> str:
        """Return random text that was never used before."""
        return urlsafe_b64encode(self.randomness(12)).decode()

    # --- Locks, by which processes agree on which one renders a response or loads a value -------

    async def acquire(self, lock: Lock, seconds: float) -> str | None:
        """Acquire a lock that is not held; return its token, None if another process was first."""
        token, milliseconds = self.unique_text(), int(seconds * 1000)
        if lock.value:
            command = script_call("lock", [lock.key], lock.value, token, milliseconds)
        else:
            command = Command(("SET", lock.key, token, "NX", "PX", milliseconds))
        try:
            (taken,) = await self.call(command)
        except (Exception, GeneratorExit):
            raise
        except BaseException:  # interrupted: it may have been acquired nevertheless
            with suppress(UpstashError):  # then it expires
                await self.release(lock.key, token)
            raise
        return token if taken else None

    async def release(self, key: str, token: str, mark: str = "", seconds: float = 0.0) -> None:
        """Release a lock under which nothing was stored; leave a mark for so many seconds."""
        await self.call(script_call("lock", [key], token, mark, int(seconds * 1000)))


def values_of(reply: Reply, count: int) -> list[bytes | None]:
    """Return the values of ``count`` keys from the reply to an MGET."""
    if isinstance(reply, CommandError):
        raise reply
    if not isinstance(reply, list) or len(reply) != count:
        raise UnexpectedAnswer(f"MGET of {count} keys did not return {count} values")
    return [value if isinstance(value, bytes) else None for value in reply]


def cache_script(name: str) -> Script:
    """Return one of the scripts, which are in ``lua/`` beside this file."""
    return script(__package__, f"lua/{name}")


def read_scripts(*names: str) -> None:
    """Read the scripts' files, so that no request has to, perhaps on an event loop."""
    for name in names:
        cache_script(name)


def script_call(name: str, keys: Sequence[str], *arguments: Argument) -> Command:
    """Return the call of a script."""
    chosen = cache_script(name)
    return Command(("EVALSHA", chosen.sha, len(keys), *keys, *arguments), script=chosen)
