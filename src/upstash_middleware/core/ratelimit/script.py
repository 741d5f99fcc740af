"""The Lua scripts that charge requests and settle charges: their text, commands and replies."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cache
from hashlib import sha1
from os.path import dirname, join
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from upstash_middleware.core.flow import Command, Script
from upstash_middleware.core.ratelimit.algorithms import ALGORITHMS, Concurrency, Limit
from upstash_middleware.errors import CommandError, UnexpectedAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.flow import Argument, Reply
    from upstash_middleware.core.ratelimit.algorithms.limit import Check

_NUMBERS_PER_LIMIT = 6
_INT = frozenset({int})
FOLLOWS = -1
"""The group of a shadow rule's charges in a bucket that an enforced rule of the request counts in:
they are taken when group 0 is, and their own verdict has no effect."""


class Charge(Struct, frozen=True):
    """A cost to take from one limit of one identifier."""

    base: str
    """``PREFIX:RULE:IDENTIFIER``, escaped."""
    limit: Limit
    cost: int
    group: int = 0
    """Charges of one group are taken all or none; see ``FOLLOWS``."""
    token: int = 0
    """Identifies the slot of this request, where the limit is a Concurrency."""
    changed_at: str | None = None
    """The key of a quota that overrides the limit's, if there is one."""


class Verdict(Struct, frozen=True):
    """The state of one limit after the call; times are milliseconds from the call's own time."""

    allowed: bool
    remaining: int
    reset_ms: int
    retry_ms: int | None
    """0 where it allows; None where it never will, because the cost is above the limit."""
    where: int
    """Which part of the state it was taken from, for refunds: a window, an entry's time."""
    quota: int
    """The script's number a, or what a key overrides it with."""


class Settlement(Struct, frozen=True):
    """Units to charge to one limit after the response, whatever is left; below 0 to refund."""

    base: str
    limit: Limit
    units: int
    where: int
    """Where the units were taken, according to the verdict."""


@cache
def limit_script() -> Script:
    """Return the script that checks and takes."""
    return _script("charge")


@cache
def settle_script() -> Script:
    """Return the script that settles after the response."""
    return _script("settle")


def read_scripts() -> None:
    """Read the scripts' files now, so that no request reads them on an event loop."""
    limit_script()
    settle_script()


def _script(main: str) -> Script:
    names = [f"algorithms/{name}" for name in ("common", *ALGORITHMS)]
    folder, loader = dirname(__file__), __spec__.loader  # noqa: PTH120 - it may be in an archive
    files = [loader.get_data(join(folder, f"{name}.lua")) for name in (*names, main)]  # type: ignore[union-attr]  # noqa: PTH118
    # The flag lets Upstash lock only the script's own keys.
    text = b"#!lua flags=allow-key-locking\n" + b"\n".join(files)
    return Script(text.decode(), sha1(text, usedforsecurity=False).hexdigest())


def charge_command(charges: Sequence[Charge], now_ms: int, *, peek: bool = False) -> Command:
    """Return the command that checks all charges and takes those of a group all or none.

    With ``peek`` it takes nothing.
    """
    keys: list[Argument] = []
    arguments: list[Argument] = [str(now_ms), "peek" if peek else "take"]
    for charge in charges:
        keys += charge.limit.keys(charge.base, now_ms)
        if charge.changed_at is not None:
            keys.append(charge.changed_at)
        changes = charge.changed_at is not None
        arguments += charge_words(charge.limit, charge.cost, charge.group, charge.token, changes)
    return _command(limit_script(), keys, arguments)


def charge_words(
    limit: Limit, cost: int, group: int = 0, token: int = 0, changes: bool = False
) -> tuple[str, ...]:
    """Return the arguments for one charge; ``changes`` says that a key may override the quota."""
    a, b, c = limit.numbers
    if token and isinstance(limit, Concurrency):
        c = str(token)
    fits = "1" if cost <= limit.highest_cost else "0"
    return (str(group), limit.name, str(cost), a, b, c, fits, "1" if changes else "0")


def settle_command(settlements: Sequence[Settlement], now_ms: int) -> Command:
    """Return the command that charges, or refunds, after the response."""
    keys: list[Argument] = []
    arguments: list[Argument] = [now_ms]
    for settlement in settlements:
        base, limit, where = settlement.base, settlement.limit, settlement.where
        if settlement.units < 0:
            own = limit.refund_keys(base, where, now_ms)
        else:
            own = limit.keys(base, now_ms)
        keys += own
        a, b, c = limit.numbers
        if isinstance(limit, Concurrency):
            c = str(where)
        arguments += (limit.name, settlement.units, a, b, c, where, len(own))
    return _command(settle_script(), keys, arguments)


def _command(script: Script, keys: list[Argument], arguments: list[Argument]) -> Command:
    """Return the command that calls a script."""
    return Command(("EVALSHA", script.sha, str(len(keys)), *keys, *arguments), False, script)


def read_verdicts(reply: Reply, count: int) -> tuple[Verdict, ...]:
    """Return the script's verdicts on so many charges.

    Raises the reply if it is an error, and UnexpectedAnswer if it is not such a reply.
    """
    if isinstance(reply, CommandError):
        raise reply
    numbers: list[Any] = reply if isinstance(reply, list) else []
    if len(numbers) != _NUMBERS_PER_LIMIT * count:
        raise UnexpectedAnswer(f"the rate limits' script answered {type(reply).__name__}")
    if not _INT.issuperset(map(type, numbers)):
        raise UnexpectedAnswer("the rate limits' script answered something else than numbers")
    verdicts = []
    for begin in range(0, len(numbers), _NUMBERS_PER_LIMIT):
        allowed, remaining, reset, retry, where, quota = numbers[begin : begin + _NUMBERS_PER_LIMIT]
        if allowed not in {0, 1}:
            raise UnexpectedAnswer(f"the rate limits' script answered {allowed}, not 0 or 1")
        wait = None if retry < 0 else retry
        verdicts.append(Verdict(allowed == 1, remaining, reset, wait, where, quota))
    return tuple(verdicts)


class LocalCounters:
    """Does what the script does, for this process alone; safe under threads.

    For rules with ``on_error="local"``, while Upstash is unreachable: the same algorithms on the
    same keys, in a bounded table. Nothing of it is ever sent to Upstash.
    """

    def __init__(self, most_keys: int = 10_000) -> None:
        self._most_keys = most_keys
        self._values: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def decide(self, charges: Sequence[Charge], now: int) -> tuple[Verdict, ...]:
        """Check all charges and take those of a group all or none; ``now`` in ms since 1970."""
        with self._lock:
            checks, denied = [], set[int]()
            for charge in charges:
                keys = charge.limit.keys(charge.base, now)
                values = [self._value(key, now) for key in keys]
                check = charge.limit.check(values, now, charge.cost)
                allowed = check.passes <= now and charge.cost <= charge.limit.highest_cost
                checks.append((charge, check, keys[check.key], allowed))
                if not allowed and charge.group != FOLLOWS:
                    denied.add(charge.group)
            if 0 in denied:
                denied.add(FOLLOWS)
            # Of two limits with one key, the one that is enforced writes it.
            written: set[str] = set()
            for charge, check, key, _ in sorted(checks, key=lambda each: each[0].group == FOLLOWS):
                if charge.group not in denied and key not in written:
                    written.add(key)
                    self._put(key, check)
        return tuple(
            _verdict(charge, check, now, allowed=allowed, taken=charge.group not in denied)
            for charge, check, _, allowed in checks
        )

    def _value(self, key: str, now: int) -> Any:
        expires, value = self._values.get(key, (0, None))
        return value if expires > now else None

    def _put(self, key: str, check: Check) -> None:
        self._values[key] = (check.counts_until, check.value)
        self._values.move_to_end(key)
        if len(self._values) > self._most_keys:
            self._values.popitem(last=False)


def _verdict(charge: Charge, check: Check, now: int, *, allowed: bool, taken: bool) -> Verdict:
    fits = charge.cost <= charge.limit.highest_cost
    return Verdict(
        allowed,
        max(0, check.remaining_after if taken else check.remaining),
        max(0, (check.reset_after if taken else check.reset) - now),
        max(0, check.passes - now) if fits else None,
        check.where,
        int(charge.limit.numbers[0]),
    )
