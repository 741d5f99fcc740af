"""The words in which a case is told: what is asked, what the application answers, what comes.

Values and short ways to write them; the cases themselves stand in ``on_*.py``, one file for each
part of HTTP, and ``playing`` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

HOUR = 3600
DAY = 24 * HOUR


@dataclass(frozen=True)
class Date:
    """An HTTP-date so many seconds from the moment at which its step is taken."""

    offset: float
    form: str = "%a, %d %b %Y %H:%M:%S GMT"
    """Another one of RFC 9110 §5.6.7, or none of them."""


Value: TypeAlias = "str | bytes | Date"
Fields: TypeAlias = "tuple[tuple[str, Value], ...]"
EPOCH_FORMS = {
    "IMF-fixdate": "%a, %d %b %Y %H:%M:%S GMT",
    "RFC 850": "%A, %d-%b-%y %H:%M:%S GMT",
    "asctime": "%a %b %e %H:%M:%S %Y",
}


@dataclass(frozen=True)
class Reply:
    """What the application answers, if it is asked."""

    fields: Fields = ()
    status: int = 200
    body: bytes | tuple[bytes, ...] | None = None
    """Several pieces are streamed; None is a text that no other step has."""
    fault: str = ""
    """``raises`` before it answers, or ``breaks`` off after its first piece."""


class Use(Enum):
    """What becomes of a request."""

    CACHED = auto()
    """It is answered from the store, and the application is not asked."""
    FORWARDED = auto()
    """The application is asked, and what it answers comes."""
    VALIDATED = auto()
    """The application is asked, and what is stored comes."""
    REFRESHED = auto()
    """What is stored comes, and then the application is asked."""
    EITHER = auto()
    """Both are allowed; the step only prepares another one."""


CACHED, FORWARDED, VALIDATED = Use.CACHED, Use.FORWARDED, Use.VALIDATED
REFRESHED, EITHER = Use.REFRESHED, Use.EITHER


@dataclass(frozen=True)
class Step:
    """One request, and what is to become of it."""

    use: Use
    reply: Reply = field(default_factory=Reply)
    sends: Fields = ()
    method: str = "GET"
    at: str = ""
    """What the target adds to the case's own path."""
    host: str = "origin.test"
    after: float = 0.0
    """Seconds that pass before it."""
    status: int | None = None
    """The status that comes; None for that of whatever comes."""
    body: bytes | None = None
    got: Mapping[str, Any] = field(default_factory=dict)
    """Fields that come: the one value, all lines as a tuple, None for absent, or a predicate."""
    saw: Mapping[str, Any] = field(default_factory=dict)
    """Likewise, fields that the application is asked with."""
    of: int | None = None
    """Which step's answer comes, counted from 0; None for the last one that was forwarded."""


@dataclass(frozen=True)
class Case:
    """Steps that hold together, in one path of their own."""

    name: str
    """A sentence, which says what holds."""
    section: str
    """Of which document it follows: ``9111 §4.2``."""
    steps: tuple[Step, ...]
    not_in: Mapping[str, str] = field(default_factory=dict)
    """The interfaces that cannot express it, and why."""

    def __str__(self) -> str:
        return f"{self.section}: {self.name}"


def max_age(seconds: int = HOUR, *fields: tuple[str, Value], **reply: Any) -> Reply:
    """Answer with explicit freshness, and more fields."""
    return Reply((("Cache-Control", f"max-age={seconds}"), *fields), **reply)


def control(value: str, *fields: tuple[str, Value], **reply: Any) -> Reply:
    """Answer with this Cache-Control, and more fields."""
    return Reply((("Cache-Control", value), *fields), **reply)


def forwarded(reply: Reply | None = None, *sends: tuple[str, Value], **step: Any) -> Step:
    """Ask, and have the application answer."""
    return Step(FORWARDED, reply or Reply(), sends, **step)


def cached(*sends: tuple[str, Value], **step: Any) -> Step:
    """Ask, and be answered from the store."""
    return Step(CACHED, Reply(), sends, **step)


def again(use: Use, *sends: tuple[str, Value], **step: Any) -> Step:
    """Ask, with an answer that could be stored as well."""
    return Step(use, step.pop("reply", max_age()), sends, **step)


def used(name: str, section: str, reply: Reply, **step: Any) -> Case:
    """Tell that a response is stored and used."""
    return Case(name, section, (forwarded(reply), cached(**step)))


def not_used(name: str, section: str, reply: Reply, **step: Any) -> Case:
    """Tell that a response is not used, be it stored or not."""
    return Case(name, section, (forwarded(reply), again(FORWARDED, **step)))


def each(make: Callable[..., Case], table: Iterable[tuple[Any, ...]]) -> list[Case]:
    """Return a case for each row."""
    return [make(*row) for row in table]


def except_in_django(case: Case, why: str) -> Case:
    """Return a case that Django's responses cannot express."""
    return replace(case, not_in={"django-wsgi": why, "django-asgi": why})


TWICE = "Django's responses hold a field once"
