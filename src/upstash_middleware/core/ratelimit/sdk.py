"""Limiters of ``upstash_ratelimit``, a user's own among them, driven inside a flow.

Their public ``limit_async(redis, identifier, rate)`` is given a recorder in the client's place,
so that its commands join this package's pipeline. Neither SDK is imported before one is used.
"""

from __future__ import annotations

from functools import cache, lru_cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.effects import Command, Pipeline, Script
from upstash_middleware.core.ratelimit.decision import PolicyState
from upstash_middleware.errors import CommandError

if TYPE_CHECKING:
    from upstash_middleware.core.effects import Argument, Reply
    from upstash_middleware.core.ratelimit.rules import SdkLimiter


async def sdk_policy(
    limiter: SdkLimiter, name: str, charged: tuple[str, int], now: float, deadline: float
) -> PolicyState:
    """Ask such a limiter about a key and a cost. A flow.

    What it says of reset is taken at its word, and so is the wait that follows from it. ``now``
    is in seconds since 1970, ``deadline`` in seconds. Raises UpstashError, and whatever the
    limiter raises.
    """
    from upstash_redis.errors import UpstashError as SdkError  # noqa: PLC0415 - slow to import

    try:
        answer = await limiter.limit_async(_recorder(deadline), *charged)
    except SdkError as error:
        raise error.__cause__ or CommandError(str(error)) from error
    allowed = bool(answer.allowed)
    return PolicyState(
        name=name,
        limit=int(answer.limit),
        window=None,
        remaining=max(0, int(answer.remaining)),
        reset=float(answer.reset),
        allowed=allowed,
        retry_after=None if allowed else max(0.001, float(answer.reset) - now),
    )


def _recorder(deadline: float) -> Any:
    return _recorder_class()(deadline)


@cache
def _recorder_class() -> type[Any]:
    from upstash_redis.commands import AsyncCommands  # noqa: PLC0415 - slow to import
    from upstash_redis.errors import UpstashError as SdkError  # noqa: PLC0415
    from upstash_redis.format import cast_response  # noqa: PLC0415

    class Recorder(AsyncCommands):
        """Builds every command as the SDK's client does, and awaits it as an effect."""

        def __init__(self, deadline: float) -> None:
            self._deadline = deadline

        async def execute(self, command: list[Any]) -> Any:
            (reply,) = await Pipeline((_command(command),), self._deadline)
            if isinstance(reply, CommandError):
                raise SdkError(str(reply)) from reply
            return cast_response(command, _as_sdk_gives(reply), self)

    return Recorder


def _command(words: list[Any]) -> Command:
    arguments = tuple(_argument(word) for word in words)
    if str(words[0]).upper() != "EVAL":
        return Command(arguments)
    script = _script(str(words[1]))
    return Command(("EVALSHA", script.sha, *arguments[2:]), script=script)


@lru_cache(maxsize=64)
def _script(text: str) -> Script:
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _argument(word: Any) -> Argument:
    if isinstance(word, bool):
        return str(word).lower()
    return word if isinstance(word, (str, bytes, int)) else str(word)


def _as_sdk_gives(reply: Reply) -> Any:
    match reply:
        case bytes():
            return reply.decode("utf-8", "replace")
        case list():
            return [_as_sdk_gives(part) for part in reply]
        case _:
            return reply
