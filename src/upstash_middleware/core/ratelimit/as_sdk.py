"""This package's limits as limiters of ``upstash_ratelimit``, for its ``Ratelimit`` to use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.ratelimit.limits import Concurrency, Limit, quota
from upstash_middleware.core.ratelimit.script import Charge, Verdict, charge_command, read_verdicts
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_ratelimit.limiter import Limiter, Response

    from upstash_middleware.core.effects import Command


def as_upstash_limiter(limit: Limit, *, wall: Callable[[], float] = time.time) -> Limiter:
    """Return a limit as a limiter of ``upstash_ratelimit``.

    ``Ratelimit(redis=Redis.from_env(), limiter=as_upstash_limiter(SlidingWindow(10, per=10)))``
    then decides by it. Its ``reset`` is, for a denial, when the same request would pass. ``wall``
    answers the time in seconds since 1970. Raises ConfigurationError.
    """
    from upstash_ratelimit.limiter import Limiter  # noqa: PLC0415 - slow to import

    if isinstance(limit, Concurrency):
        raise ConfigurationError(f"{limit}: upstash_ratelimit has no way to give a slot back")

    class OwnLimiter(Limiter):
        def limit(self, redis: Any, identifier: str, rate: int = 1) -> Response:
            question = _Question(limit, identifier, rate, wall)
            return question.response(redis.execute(question.words()))

        async def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Response:
            question = _Question(limit, identifier, rate, wall)
            return question.response(await redis.execute(question.words()))

        def get_remaining(self, redis: Any, identifier: str) -> int:
            question = _Question(limit, identifier, 1, wall)
            return question.verdict(redis.execute(question.words(peek=True))).remaining

        async def get_remaining_async(self, redis: Any, identifier: str) -> int:
            question = _Question(limit, identifier, 1, wall)
            return question.verdict(await redis.execute(question.words(peek=True))).remaining

        def get_reset(self, redis: Any, identifier: str) -> float:
            question = _Question(limit, identifier, 1, wall)
            return question.reset(question.verdict(redis.execute(question.words(peek=True))))

        async def get_reset_async(self, redis: Any, identifier: str) -> float:
            question = _Question(limit, identifier, 1, wall)
            return question.reset(question.verdict(await redis.execute(question.words(peek=True))))

    return OwnLimiter()


class _Question:
    """One request of one identifier, in the SDK's words: a command out, its answer in."""

    def __init__(self, limit: Limit, identifier: str, rate: int, wall: Callable[[], float]) -> None:
        self._charge = Charge(identifier, limit, rate)
        self._now_ms = round(wall() * 1000)

    def words(self, *, peek: bool = False) -> list[Any]:
        """Return the command, with the script's text in the place of its digest."""
        command: Command = charge_command([self._charge], self._now_ms, peek=peek)
        text = "" if command.script is None else command.script.text
        return ["EVAL", text, *command.args[2:]]

    def verdict(self, answer: Any) -> Verdict:
        """Read the answer. Raises UnexpectedAnswer."""
        (verdict,) = read_verdicts(answer, [self._charge])
        return verdict

    def reset(self, verdict: Verdict) -> float:
        """Return when the same request would pass, or else when all is there again, in seconds."""
        return (self._now_ms + (verdict.retry_ms or verdict.reset_ms)) / 1000

    def response(self, answer: Any) -> Response:
        """Return the SDK's own answer."""
        from upstash_ratelimit.limiter import Response  # noqa: PLC0415 - slow to import

        verdict = self.verdict(answer)
        return Response(
            allowed=verdict.allowed,
            limit=quota(self._charge.limit),
            remaining=verdict.remaining,
            reset=self.reset(verdict),
        )
