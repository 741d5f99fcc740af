"""The script calls that decide and settle: their text, their commands, their answers.

What the algorithms do is in the ``.lua`` files beside this; nothing here decides anything.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, assert_never

from upstash_middleware.core.effects import Command, Script
from upstash_middleware.core.lua import script
from upstash_middleware.core.ratelimit.keys import limit_keys
from upstash_middleware.core.ratelimit.limits import (
    GCRA,
    MAX_QUOTA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    quota,
    window_ms,
)
from upstash_middleware.errors import CommandError, UnexpectedAnswer
from upstash_middleware.values import dataclass, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.effects import Argument, Reply

_FLAGS = "#!lua flags=allow-key-locking\n"
_ALGORITHMS = (
    "numbers",
    "fixed_window",
    "sliding_window",
    "token_bucket",
    "gcra",
    "sliding_log",
    "concurrency",
)
_FIGURES_PER_LIMIT = 6
_NUMBERS = frozenset({int})
_C = 5
"""Where the third of a limit's numbers stands in what the script is told of a charge."""


@value(frozen=True, slots=True)
class Charge:
    """A cost to take from one limit of one identifier."""

    base: str
    """``PREFIX:RULE:IDENTIFIER``, escaped."""
    limit: Limit
    cost: int
    group: int = 0
    """Charges of one group are taken all or none."""
    token: int = 0
    """What a slot is taken under, unlike that of any other request in flight."""

    changed_at: str | None = None
    """The key of a quota that overrules the limit's, if there is one."""

    @property
    def fits(self) -> bool:
        """Whether the cost can ever pass; a request takes one slot whatever it costs."""
        return self.cost <= _figures(self.limit)[-1]


@value(frozen=True, slots=True)
class Verdict:
    """How one limit stands after the call; times are milliseconds from the call's own time."""

    allowed: bool
    remaining: int
    reset_ms: int
    retry_ms: int | None
    """0 where it allows; None where it never will, because the cost is above the limit."""
    where: int = 0
    """Which part of the state it was taken from, for giving back: a window, an entry's time."""
    quota: int | None = None
    """What was there to take, where a key overrules the limit."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Units to charge to one limit after the response, whatever is left; below 0 to give back."""

    base: str
    limit: Limit
    units: int
    where: int
    """Where the units were taken, as the verdict said."""


@cache
def limit_script() -> Script:
    """Return the script that decides, with the line that lets Upstash lock its keys only."""
    return _script("main")


@cache
def settle_script() -> Script:
    """Return the script that settles after the response."""
    return _script("settle")


def _script(main: str) -> Script:
    return script(__package__, *_ALGORITHMS, main, first_line=_FLAGS)


def charge_command(charges: Sequence[Charge], now_ms: int, *, peek: bool = False) -> Command:
    """Return the command that checks all charges and takes those of a group all or none.

    ``peek`` has it take nothing.
    """
    keys: list[Argument] = []
    arguments: list[Argument] = [str(now_ms), "peek" if peek else "take"]
    for charge in charges:
        keys.extend(limit_keys(charge.base, charge.limit, now_ms))
        if charge.changed_at is not None:
            keys.append(charge.changed_at)
        words = _words(charge.limit, charge.cost, charge.group, charge.changed_at is not None)
        if isinstance(charge.limit, Concurrency):
            words = (*words[:_C], str(charge.token), *words[_C + 1 :])
        arguments.extend(words)
    return _call(limit_script(), keys, arguments)


@lru_cache(maxsize=256)
def _words(limit: Limit, cost: int, group: int, changes: bool) -> tuple[str, ...]:
    """Return what the script is told of a charge; ``changes``: a key may overrule the limit."""
    name, a, b, c, most = _figures(limit)
    fits = "1" if cost <= most else "0"
    return (str(group), name, str(cost), a, b, c, fits, "1" if changes else "0")


def settle_command(settlements: Sequence[Settlement], now_ms: int) -> Command:
    """Return the command that charges, or gives back, after the response."""
    keys: list[Argument] = []
    arguments: list[Argument] = [now_ms]
    for settlement in settlements:
        own = limit_keys(settlement.base, settlement.limit, now_ms)
        if settlement.units < 0 and isinstance(settlement.limit, FixedWindow | SlidingWindow):
            own = (f"{settlement.base}:{settlement.where}",)
        keys.extend(own)
        name, a, b, c, _ = _figures(settlement.limit)
        c = str(settlement.where) if name == "slots" else c
        arguments.extend((name, settlement.units, a, b, c, settlement.where, len(own)))
    return _call(settle_script(), keys, arguments)


def read_verdicts(reply: Reply, charges: Sequence[Charge]) -> tuple[Verdict, ...]:
    """Return what the script answered for each charge.

    Raises the reply if it is an error, and UnexpectedAnswer if it is not such an answer.
    """
    if isinstance(reply, CommandError):
        raise reply
    figures: list[Any] = reply if isinstance(reply, list) else []
    if len(figures) != _FIGURES_PER_LIMIT * len(charges):
        raise UnexpectedAnswer(f"the rate limits' script answered {type(reply).__name__}")
    if not _NUMBERS.issuperset(map(type, figures)):
        raise UnexpectedAnswer("the rate limits' script answered something else than numbers")
    verdicts, end = [], 0
    for charge in charges:
        begin, end = end, end + _FIGURES_PER_LIMIT
        allowed, remaining, reset, retry, where, found = figures[begin:end]
        wait = None if retry < 0 else retry
        changed = None if charge.changed_at is None else found
        verdicts.append(Verdict(allowed == 1, remaining, reset, wait, where, changed))
    return tuple(verdicts)


def _call(script: Script, keys: list[Argument], arguments: list[Argument]) -> Command:
    return Command(("EVALSHA", script.sha, str(len(keys)), *keys, *arguments), False, script)


@lru_cache(maxsize=256)
def _figures(limit: Limit) -> tuple[str, str, str, str, int]:
    """Return an algorithm's name, its three numbers a, b, c, and the highest cost that can pass.

    A slot's ``c`` is what it is taken under; a request takes one whatever it costs.
    """
    most, window = quota(limit), str(window_ms(limit))
    match limit:
        case FixedWindow():
            return ("fixed", str(limit.limit), window, "0", most)
        case SlidingWindow():
            return ("sliding", str(limit.limit), window, "0", most)
        case TokenBucket():
            return ("bucket", str(limit.capacity), str(limit.refill), window, most)
        case GCRA():
            return ("gcra", str(limit.limit), window, str(most), most)
        case SlidingLog():
            return ("log", str(limit.limit), window, "0", most)
        case Concurrency():
            return ("slots", str(limit.limit), window, "", MAX_QUOTA)
    assert_never(limit)
