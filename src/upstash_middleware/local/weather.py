"""Weather: the ways in which Upstash and the network between can fail, to order.

Which request is hit, and by what, is decided here.  How an answer is cut or held back is the
business of the transports.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.messages import Answer, error_answer

if TYPE_CHECKING:
    from collections.abc import Callable


class Fault(Enum):
    """What can happen to a request, beside being late."""

    SERVER_ERROR = "server-error"
    """Answered with 500 and an error; not run."""
    BAD_GATEWAY = "bad-gateway"
    """Answered with 502 and a page of HTML, as by a proxy in between; not run."""
    UNAUTHORIZED = "unauthorized"
    """Answered with 401, as after the token was changed; not run."""
    QUOTA = "quota"
    """Answered with 400 and the text about the plan's request limit; not run."""
    NOSCRIPT = "noscript"
    """All scripts are forgotten, as after a restart; then run."""
    REFUSE = "refuse"
    """No connection can be made, and those that were made are cut."""
    DROP_BEFORE = "drop-before"
    """The connection is cut when the request has come; not run."""
    DROP_AFTER = "drop-after"
    """Run; then the connection is cut, without an answer."""
    TRUNCATE = "truncate"
    """Run; then half of the answer is sent, and the connection is cut."""
    TRICKLE = "trickle"
    """Run; then the answer comes one byte every 20 ms."""
    STALL = "stall"
    """Run; then half of the answer is sent, and nothing more, ever."""


class Manner(Enum):
    """How an answer is to be delivered."""

    WHOLE = "whole"
    REFUSE = "refuse"
    DROP = "drop"
    TRUNCATE = "truncate"
    TRICKLE = "trickle"
    STALL = "stall"


MANNERS: Final = {
    Fault.REFUSE: Manner.REFUSE,
    Fault.DROP_BEFORE: Manner.DROP,
    Fault.DROP_AFTER: Manner.DROP,
    Fault.TRUNCATE: Manner.TRUNCATE,
    Fault.TRICKLE: Manner.TRICKLE,
    Fault.STALL: Manner.STALL,
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
"""What is answered without running anything."""

TRICKLE_SECONDS: Final = 0.02


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fault(name: object) -> Fault:
    try:
        return Fault(name)
    except ValueError:
        names = ", ".join(fault.value for fault in Fault)
        raise ValueError(f"weather: there is no fault {name!r}, only {names}") from None


@dataclass(frozen=True, slots=True)
class Weather:
    """The weather: every request is late by `latency_ms`, and some meet `fault`.

    `jitter_ms` adds a random part between 0 and itself.  `probability` (0 to 1) is the share of
    requests that the fault hits; `times` is how many it hits before it is over; after `seconds`
    the whole weather is over.  Raises ValueError, naming the setting, for what cannot be.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    fault: Fault | None = None
    probability: float = 1.0
    times: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Check every setting."""
        for name in ("latency_ms", "jitter_ms", "times", "seconds"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value < 0):
                raise ValueError(f"weather: {name} should be a number of at least 0, not {value!r}")
        if self.fault is Fault.REFUSE and (self.times is not None or self.probability != 1):
            raise ValueError("weather: refuse hits everybody, so it takes no times or probability")
        if not _is_number(self.probability) or not 0 <= self.probability <= 1:
            raise ValueError(
                f"weather: probability should be between 0 and 1, not {self.probability!r}"
            )


CLEAR: Final = Weather()


def parse_weather(settings: object) -> Weather:
    """Weather from plain values, as JSON and keyword arguments give them.

    Raises ValueError, naming the setting.
    """
    if not isinstance(settings, dict):
        raise ValueError('weather: give an object such as {"latency_ms": 50}')  # noqa: TRY004 - JSON
    known = asdict(CLEAR)
    for name in settings:
        if name not in known:
            raise ValueError(f"weather: there is no {name!r}, only {', '.join(known)}")
    fault = settings.get("fault")
    return Weather(**{**settings, "fault": None if fault is None else _fault(fault)})


def plain_weather(weather: Weather) -> dict[str, object]:
    """The same, the other way."""
    return {**asdict(weather), "fault": weather.fault.value if weather.fault else None}


class WeatherStation:
    """The weather as it is now: who asks gets the fate of the next request."""

    __slots__ = ("_clock", "_ends_at", "_hits_left", "_random", "now")

    def __init__(
        self, weather: Weather = CLEAR, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - weather is no secret
        self.change(weather)

    def change(self, weather: Weather) -> None:
        """Change the weather; `times` and `seconds` count from here."""
        self.now: Weather = weather
        self._hits_left = weather.times
        self._ends_at = None if weather.seconds is None else self._clock() + weather.seconds

    def look(self) -> Weather:
        """The weather as it is now: clear again when its `seconds` are over."""
        if self._ends_at is not None and self._clock() >= self._ends_at:
            self.change(CLEAR)
        return self.now

    def next(self) -> tuple[float, Fault | None]:
        """For one request: seconds to wait, and the fault that hits it."""
        if self.look() is CLEAR:
            return 0.0, None
        late = self.now.latency_ms + self._random.random() * self.now.jitter_ms
        return late / 1000, self._next_fault()

    def _next_fault(self) -> Fault | None:
        if self.now.fault is None or self._random.random() >= self.now.probability:
            return None
        if self._hits_left is not None:
            if self._hits_left == 0:
                return None
            self._hits_left -= 1
        return self.now.fault
