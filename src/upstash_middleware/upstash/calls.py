"""The life of a pipeline as a flow of HTTP calls, without I/O: what is sent, and sent again.

A generator yields what to send and for how long to wait, is sent the answer or thrown the
transport's error, and returns the replies. Client and AsyncClient drive it.

What may be sent twice is decided here and nowhere else: a call whose connection was never made, a
call that only reads and was lost on the way, and a script's call that the server did not know
(``NOSCRIPT``: it ran nothing).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from upstash_middleware.errors import CommandError, ConnectionLost, DeadlineExceeded, NotConnected
from upstash_middleware.upstash.protocol import Answer, Call, decode, encode
from upstash_middleware.values import dataclass, value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.effects import Argument, Command, Reply
    from upstash_middleware.upstash.sync_token import SyncToken

Calls = Generator[tuple[Call, float], Answer, list["Reply"]]
"""Yields a call with the seconds that are left for it."""


@value(frozen=True, slots=True)
class Deadline:
    """When a pipeline's time is up, on a clock that counts seconds."""

    seconds: float
    at: float
    clock: Callable[[], float]

    def left(self) -> float:
        """Return the seconds that are left; raises DeadlineExceeded if none are."""
        left = self.at - self.clock()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        """Return the error that says so."""
        return DeadlineExceeded(f"no answer within {self.seconds:g} s")


@dataclass(frozen=True, slots=True)
class Session:
    """What the calls to one database have in common."""

    sync_token: SyncToken
    secret: str
    """Kept out of everything that is raised."""


def calls_for(
    call: Call,
    commands: Sequence[Command],
    deadline: Deadline,
    session: Session,
    *,
    repeat: bool,
) -> Calls:
    """Send the call that performs the commands, and return their replies in order.

    ``repeat`` allows sending once more what was lost on the way: only where all commands only
    read. Raises what the transport raised, DeadlineExceeded, Refused or UnexpectedAnswer for the
    whole.
    """
    replies = yield from _performed(call, len(commands), deadline, session, repeat=repeat)
    unknown = [
        index
        for index, reply in enumerate(replies)
        if isinstance(reply, CommandError) and reply.code == "NOSCRIPT" and commands[index].script
    ]
    if unknown:
        in_full = encode([_in_full(commands[index]) for index in unknown])
        again = yield from _performed(in_full, len(unknown), deadline, session, repeat=repeat)
        for index, reply in zip(unknown, again, strict=True):
            replies[index] = reply
    return replies


def _performed(
    call: Call, expected: int, deadline: Deadline, session: Session, *, repeat: bool
) -> Calls:
    sync_token, once_more = session.sync_token, True
    while True:
        number = sync_token.number_call()
        headers = call.headers + sync_token.headers
        try:
            answer = yield Call(call.path, headers, call.body), deadline.left()
        except NotConnected:
            if not once_more:
                raise
        except ConnectionLost:
            if not (repeat and once_more):
                raise
        else:
            sync_token.keep(number, answer.sync_token)
            return decode(answer, expected, session.secret)
        once_more = False


def _in_full(command: Command) -> tuple[Argument, ...]:
    """Return the command's words with its script's text in place of the SHA."""
    script = command.script
    if script is None:
        raise TypeError(f"{command.args[0]!s} has no script")
    name = str(command.args[0]).upper().replace("EVALSHA", "EVAL")
    return (name, script.text, *command.args[2:])
