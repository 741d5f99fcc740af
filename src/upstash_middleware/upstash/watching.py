"""How a pipeline went, for whoever wants to know: how long it took, and what befell it. No I/O.

Nothing here runs where nobody watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from upstash_middleware.errors import CircuitOpen, CommandError
from upstash_middleware.values import value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from upstash_middleware.core.effects import Command, Reply


@value(frozen=True, slots=True)
class Called:
    """A pipeline that has come to its end, ``seconds`` after it was asked for."""

    commands: Sequence[Command]
    seconds: float
    error: BaseException | None
    """What was raised, or the first of the commands that failed."""


Watch = Callable[[Called], None]


class Watched:
    """Tells ``watch`` how what happens inside a ``with`` went, unless the circuit was open."""

    __slots__ = ("_began", "_commands", "_replies", "_watch")

    def __init__(self, watch: Watch, commands: Sequence[Command]) -> None:
        self._watch = watch
        self._commands = commands
        self._replies: Sequence[Reply] = ()
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def answered(self, replies: list[Reply]) -> list[Reply]:
        """See the replies and return them."""
        self._replies = replies
        return replies

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._began
        if error is None:
            error = next((one for one in self._replies if isinstance(one, CommandError)), None)
        if not isinstance(error, CircuitOpen):
            self._watch(Called(self._commands, seconds, error))
