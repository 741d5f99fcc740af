"""What tests of the rate limit stand on: a clock to move, and a real Valkey behind the flows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import valkey

from upstash_middleware.errors import CommandError, UpstashError

if TYPE_CHECKING:
    from upstash_middleware.core.flow import Command, Pipeline, Reply

FLAGS = "#!lua flags=allow-key-locking\n"
NOW = 1_790_000_000.0
"""Seconds since 1970 at which fake clocks start; a multiple of 10 and not of 60."""


@dataclass
class FakeClock:
    """Wall and monotonic clock that stand until they are moved."""

    time: float = NOW
    since_boot: float = 1000.0

    def wall(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.since_boot

    def move(self, seconds: float) -> None:
        # Whole milliseconds, so that sums of steps do not drift.
        self.time = round(self.time + seconds, 3)
        self.since_boot = round(self.since_boot + seconds, 3)


@dataclass
class ValkeyStore:
    """An executor of pipelines on a real Valkey; TIME is the fake clock's. Counts the bill."""

    client: Any
    clock: FakeClock
    pipelines: list[Pipeline] = field(default_factory=list, init=False, repr=False)
    fails_with: UpstashError | None = None

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        self.pipelines.append(pipeline)
        if self.fails_with is not None:
            raise self.fails_with
        return [self.reply(command) for command in pipeline.commands]

    def reply(self, command: Command) -> Reply:
        """Perform one command without noting it."""
        if command.args[0] == "TIME":
            seconds, part = divmod(round(self.clock.time * 1000), 1000)
            return [str(seconds).encode(), str(part * 1000).encode()]
        try:
            reply: Reply = self.client.execute_command(*_for_valkey(command))
        except valkey.ResponseError as error:
            return CommandError(str(error))
        return reply

    def billed_calls(self) -> int:
        """Commands that Valkey has run since the last asking, scripts' inner calls among them."""
        stats: dict[str, Any] = self.client.info("commandstats")
        own = {"cmdstat_info", "cmdstat_config|resetstat"}
        calls: int = sum(one["calls"] for name, one in stats.items() if name not in own)
        self.client.config_resetstat()
        return calls


def _for_valkey(command: Command) -> tuple[Any, ...]:
    if command.script is None:
        return command.args
    # Valkey knows no allow-key-locking.
    assert command.script.text.startswith(FLAGS)
    assert command.args[:2] == ("EVALSHA", command.script.sha)
    assert hashlib.sha1(command.script.text.encode()).hexdigest() == command.script.sha
    return ("EVAL", command.script.text.removeprefix(FLAGS), *command.args[2:])
