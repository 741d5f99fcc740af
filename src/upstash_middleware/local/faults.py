"""Simulated faults of Upstash and the network.

`FaultInjector` decides which requests fail and how; the transports (`http1`, `transport`) truncate
or delay the responses.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from msgspec import Struct, to_builtins

from upstash_middleware.local.http1 import Answer, Delivery, error_answer

if TYPE_CHECKING:
    from collections.abc import Callable


class Fault(Enum):
    """The possible effects on a request, in addition to latency."""

    SERVER_ERROR = "server-error"
    BAD_GATEWAY = "bad-gateway"
    UNAUTHORIZED = "unauthorized"
    QUOTA = "quota"
    NOSCRIPT = "noscript"
    REFUSE = "refuse"
    DROP_BEFORE = "drop-before"
    DROP_AFTER = "drop-after"
    TRUNCATE = "truncate"
    TRICKLE = "trickle"
    STALL = "stall"


class Effect(Struct, frozen=True):
    """The effect of a fault on a request."""

    text: str
    """The client's view."""
    delivery: Delivery = Delivery.WHOLE
    instead: Answer | None = None
    """The response if the request is not run."""


_BAD_GATEWAY: Final = Answer(
    502,
    b"<html><head><title>502 Bad Gateway</title></head>"
    b"<body><h1>502 Bad Gateway</h1></body></html>\n",
    b"text/html",
)
_QUOTA: Final = (
    "ERR max requests limit exceeded. Limit: 500000, Usage: 500000. "
    "See https://upstash.com/docs/redis/troubleshooting/max_requests_limit for details"
)
_UNAUTHORIZED: Final = error_answer(401, "WRONGPASS invalid or missing auth token")
_NO_ANSWER: Final = Answer(500, b"")
EFFECTS: Final = {
    Fault.SERVER_ERROR: Effect(
        "500 with an error in JSON", instead=error_answer(500, "ERR internal server error")
    ),
    Fault.BAD_GATEWAY: Effect("502 with a page of HTML", instead=_BAD_GATEWAY),
    Fault.UNAUTHORIZED: Effect("401, as after the token was changed", instead=_UNAUTHORIZED),
    Fault.QUOTA: Effect(
        "400, the plan's request limit is exceeded", instead=error_answer(400, _QUOTA)
    ),
    Fault.NOSCRIPT: Effect("all scripts are deleted, as after a restart"),
    Fault.REFUSE: Effect(
        "no connection can be made, and open ones are cut", Delivery.REFUSE, _NO_ANSWER
    ),
    Fault.DROP_BEFORE: Effect("the connection ends without an answer", Delivery.DROP, _NO_ANSWER),
    Fault.DROP_AFTER: Effect("the connection ends without an answer", Delivery.DROP),
    Fault.TRUNCATE: Effect("half of the answer, then the end", Delivery.TRUNCATE),
    Fault.TRICKLE: Effect("the answer, one byte every 20 ms", Delivery.TRICKLE),
    Fault.STALL: Effect("half of the answer, and nothing more", Delivery.STALL),
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults to simulate.

    Args:
        latency_ms: Milliseconds by which every request is delayed.
        jitter_ms: The largest additional random delay, in milliseconds.
        fault: The fault, or its name; None for no fault.
        probability: The share of requests that the fault affects, from 0 to 1.
        times: The number of affected requests after which the fault ends; None for no limit.
        seconds: Seconds after which all faults end; None for no limit.

    Raises:
        ValueError: A setting is wrong; the message names it.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    fault: Fault | None = None
    probability: float = 1.0
    times: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency_ms", "jitter_ms", "times", "seconds"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value < 0):
                raise ValueError(f"faults: {name} should be a number of at least 0, not {value!r}")
        if self.fault is Fault.REFUSE and (self.times is not None or self.probability != 1):
            raise ValueError(
                "faults: refuse affects all requests, so it takes no times or probability"
            )
        if not _is_number(self.probability) or not 0 <= self.probability <= 1:
            raise ValueError(
                f"faults: probability should be between 0 and 1, not {self.probability!r}"
            )


NO_FAULTS: Final = Faults()


def parse_faults(settings: object) -> Faults:
    """Faults from plain values, as in JSON or keyword arguments.

    Raises ValueError, naming the setting.
    """
    if not isinstance(settings, dict):
        raise ValueError('faults: give an object such as {"latency_ms": 50}')  # noqa: TRY004 - JSON
    known = asdict(NO_FAULTS)
    for name in settings:
        if name not in known:
            raise ValueError(f"faults: there is no {name!r}, only {', '.join(known)}")
    fault = settings.get("fault")
    if fault is not None:
        try:
            fault = Fault(fault)
        except ValueError:
            names = ", ".join(each.value for each in Fault)
            raise ValueError(f"faults: there is no fault {fault!r}, only {names}") from None
    return Faults(**{**settings, "fault": fault})


def plain_faults(faults: Faults) -> dict[str, object]:
    """The faults as plain values, which `parse_faults` can read."""
    return to_builtins(faults)  # type: ignore[no-any-return]  # a mapping, as of any dataclass


class FaultInjector:
    """Decides which faults affect the next request."""

    def __init__(
        self, faults: Faults = NO_FAULTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - not used for secrets
        self.change(faults)

    def change(self, faults: Faults) -> None:
        """Change the simulated faults; `times` and `seconds` start now."""
        self._faults = faults
        self._hits_left = math.inf if faults.times is None else faults.times
        self._ends_at = math.inf if faults.seconds is None else self._clock() + faults.seconds

    @property
    def current(self) -> Faults:
        """The current faults; none if their `seconds` have passed."""
        if self._clock() >= self._ends_at:
            self.change(NO_FAULTS)
        return self._faults

    def for_next_request(self) -> tuple[float, Fault | None]:
        """Return the latency of the next request in seconds, and the fault that affects it."""
        faults = self.current
        if faults is NO_FAULTS:
            return 0.0, None
        latency = (faults.latency_ms + self._random.random() * faults.jitter_ms) / 1000
        if not faults.fault or not self._hits_left or self._random.random() >= faults.probability:
            return latency, None
        self._hits_left -= 1
        return latency, faults.fault
