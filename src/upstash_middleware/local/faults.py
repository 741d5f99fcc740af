"""Simulated faults: the ways in which Upstash and the network can fail, on request.

`FaultInjector` decides which requests fail, and how; the transports (`http1`, `transport`) cut or
delay the answers.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.http1 import Answer, Delivery, error_answer

if TYPE_CHECKING:
    from collections.abc import Callable


class Fault(Enum):
    """What can happen to a request, besides latency."""

    SERVER_ERROR = "server-error"
    """Answered with 500 and an error; not run."""
    BAD_GATEWAY = "bad-gateway"
    """Answered with 502 and a page of HTML, as by a proxy in between; not run."""
    UNAUTHORIZED = "unauthorized"
    """Answered with 401, as after the token was changed; not run."""
    QUOTA = "quota"
    """Answered with 400 and the text about the plan's request limit; not run."""
    NOSCRIPT = "noscript"
    """All scripts are deleted, as after a restart; then run."""
    REFUSE = "refuse"
    """No connection can be made, and open connections are cut."""
    DROP_BEFORE = "drop-before"
    """The connection is cut when the request has arrived; not run."""
    DROP_AFTER = "drop-after"
    """Run; then the connection is cut, without an answer."""
    TRUNCATE = "truncate"
    """Run; then half of the answer is sent, and the connection is cut."""
    TRICKLE = "trickle"
    """Run; then the answer is sent one byte every 20 ms."""
    STALL = "stall"
    """Run; then half of the answer is sent, and nothing more."""


DELIVERIES: Final = {
    Fault.REFUSE: Delivery.REFUSE,
    Fault.DROP_BEFORE: Delivery.DROP,
    Fault.DROP_AFTER: Delivery.DROP,
    Fault.TRUNCATE: Delivery.TRUNCATE,
    Fault.TRICKLE: Delivery.TRICKLE,
    Fault.STALL: Delivery.STALL,
}
INSTEAD: Final = {
    Fault.SERVER_ERROR: error_answer(500, "ERR internal server error"),
    Fault.BAD_GATEWAY: Answer(
        502,
        b"<html><head><title>502 Bad Gateway</title></head>"
        b"<body><h1>502 Bad Gateway</h1></body></html>\n",
        b"text/html",
    ),
    Fault.UNAUTHORIZED: error_answer(401, "WRONGPASS invalid or missing auth token"),
    Fault.QUOTA: error_answer(
        400,
        "ERR max requests limit exceeded. Limit: 500000, Usage: 500000. "
        "See https://upstash.com/docs/redis/troubleshooting/max_requests_limit for details",
    ),
    Fault.REFUSE: Answer(500, b""),
    Fault.DROP_BEFORE: Answer(500, b""),
}
"""The answers of faults that prevent a request from being run."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Faults:
    """Which faults are simulated: `latency_ms` for every request, and `fault` for some.

    `jitter_ms` adds a random part between 0 and itself.  `probability` (0 to 1) is the share of
    requests that the fault hits; `times` is how many it hits before it is over; after `seconds`
    all of it is over.  Raises ValueError, naming the setting.
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
    """Faults from plain values, as in JSON and keyword arguments.

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
    """The faults as plain values; `parse_faults` reads them."""
    return {**asdict(faults), "fault": faults.fault.value if faults.fault else None}


class FaultInjector:
    """Decides which faults apply to the next request."""

    __slots__ = ("_clock", "_ends_at", "_faults", "_hits_left", "_random")

    def __init__(
        self, faults: Faults = NO_FAULTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - needs no secrecy
        self.change(faults)

    def change(self, faults: Faults) -> None:
        """Change the simulated faults; `times` and `seconds` count from now."""
        self._faults = faults
        self._hits_left = faults.times
        self._ends_at = None if faults.seconds is None else self._clock() + faults.seconds

    @property
    def current(self) -> Faults:
        """The current faults: none when their `seconds` are over."""
        if self._ends_at is not None and self._clock() >= self._ends_at:
            self.change(NO_FAULTS)
        return self._faults

    def next(self) -> tuple[float, Fault | None]:
        """For the next request: seconds of latency, and the fault that hits it."""
        faults = self.current
        if faults is NO_FAULTS:
            return 0.0, None
        latency_ms = faults.latency_ms + self._random.random() * faults.jitter_ms
        fault = faults.fault
        if fault is not None and self._random.random() >= faults.probability:
            fault = None
        if fault is not None and self._hits_left is not None:
            if self._hits_left == 0:
                fault = None
            else:
                self._hits_left -= 1
        return latency_ms / 1000, fault
