"""Adapters between the limits of this package and the limiters of ``upstash_ratelimit``.

A limiter's ``limit_async(redis, identifier, rate)`` is called with a recorder in place of a client,
so that its commands join this package's pipeline. The SDK is imported
at the first use.
"""

from __future__ import annotations

import time
from functools import cache, lru_cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.flow import Command, Pipeline, Script
from upstash_middleware.core.ratelimit.algorithms import Concurrency, Limit
from upstash_middleware.core.ratelimit.charges import (
    Charge,
    Verdict,
    charge_command,
    limit_script,
    read_verdicts,
)
from upstash_middleware.core.ratelimit.decision import PolicyState
from upstash_middleware.errors import CommandError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_ratelimit.limiter import Limiter, Response

    from upstash_middleware.core.flow import Argument, Reply
    from upstash_middleware.core.ratelimit.rules import SdkLimiter


async def sdk_policy(  # noqa: PLR0913, PLR0917
    limiter: SdkLimiter, name: str, key: str, cost: int, now: float, deadline: float
) -> PolicyState:
    """Return the decision of an SDK limiter about a key and a cost. A flow.

    Retry-after is computed from the limiter's reset. ``now`` is in seconds since 1970, ``deadline``
    in seconds. Raises UpstashError, and the exceptions of the limiter.
    """
    from upstash_redis.errors import UpstashError as SdkError  # noqa: PLC0415 - slow to import

    try:
        answer = await limiter.limit_async(_recorder_class()(deadline), key, cost)
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


@cache
def _recorder_class() -> type[Any]:
    from upstash_redis.commands import AsyncCommands  # noqa: PLC0415 - slow to import
    from upstash_redis.errors import UpstashError as SdkError  # noqa: PLC0415
    from upstash_redis.format import cast_response  # noqa: PLC0415

    class Recorder(AsyncCommands):
        """Builds commands as the SDK's client does, and awaits them as effects."""

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


def as_upstash_limiter(limit: Limit, *, wall: Callable[[], float] = time.time) -> Limiter:
    """Return a limit as a limiter of ``upstash_ratelimit``.

    Use it as ``Ratelimit(redis=Redis.from_env(), limiter=as_upstash_limiter(SlidingWindow(10,
    per=10)))``. After a denial, ``reset`` is the time at which the same request would be allowed.

    Args:
        limit: The limit, such as ``SlidingWindow(10, per=10)``.
        wall: Returns the time in seconds since 1970.

    Raises:
        ConfigurationError: The limit is a Concurrency.
    """
    from upstash_ratelimit.limiter import Limiter, Response  # noqa: PLC0415 - slow to import

    if isinstance(limit, Concurrency):
        raise ConfigurationError(f"{limit}: upstash_ratelimit cannot release a slot")

    class OwnLimiter(Limiter):
        def limit(self, redis: Any, identifier: str, rate: int = 1) -> Response:
            call = _Call(limit, identifier, rate, wall)
            return response(call, redis.execute(call.command()))

        async def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Response:
            call = _Call(limit, identifier, rate, wall)
            return response(call, await redis.execute(call.command()))

        def get_remaining(self, redis: Any, identifier: str) -> int:
            call = _Call(limit, identifier, 1, wall)
            return call.verdict(redis.execute(call.command(peek=True))).remaining

        async def get_remaining_async(self, redis: Any, identifier: str) -> int:
            call = _Call(limit, identifier, 1, wall)
            return call.verdict(await redis.execute(call.command(peek=True))).remaining

        def get_reset(self, redis: Any, identifier: str) -> float:
            call = _Call(limit, identifier, 1, wall)
            return call.reset(call.verdict(redis.execute(call.command(peek=True))))

        async def get_reset_async(self, redis: Any, identifier: str) -> float:
            call = _Call(limit, identifier, 1, wall)
            return call.reset(call.verdict(await redis.execute(call.command(peek=True))))

    def response(call: _Call, reply: Any) -> Response:
        verdict = call.verdict(reply)
        return Response(
            allowed=verdict.allowed,
            limit=limit.quota,
            remaining=verdict.remaining,
            reset=call.reset(verdict),
        )

    return OwnLimiter()


class _Call:
    """A request of an identifier, as a command for the SDK's client."""

    def __init__(self, limit: Limit, identifier: str, rate: int, wall: Callable[[], float]) -> None:
        self._charge = Charge(identifier, limit, rate)
        self._now_ms = round(wall() * 1000)

    def command(self, *, peek: bool = False) -> list[Any]:
        """Return the command with the text of the script instead of its digest."""
        command = charge_command([self._charge], self._now_ms, peek=peek)
        return ["EVAL", limit_script().text, *command.args[2:]]

    def verdict(self, reply: Any) -> Verdict:
        """Parse the reply. Raises UnexpectedAnswer."""
        (verdict,) = read_verdicts(reply, 1)
        return verdict

    def reset(self, verdict: Verdict) -> float:
        """Return the time at which the same request is allowed, or the quota is whole again."""
        return (self._now_ms + (verdict.retry_ms or verdict.reset_ms)) / 1000
