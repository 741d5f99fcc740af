"""Epochs: the values on Redis by which a purge makes stored responses dead or stale.

Comparison only. Every stored response records the epochs that were read before the application
was called; a purge replaces one of them by a value that never was there before. There is one
of everything (``A``), one of each URL (``U``), one that moves with every purge of any tag
(``G``), and one of each tag (``T``).
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from upstash_middleware.values import field, value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Epoch(NamedTuple):
    """An epoch's two parts; both are empty where the key is absent.

    An absent epoch equals an absent one only. That it expires is safe because no entry lives
    until an epoch that was set after the entry's were read is gone.
    """

    hard: str = ""
    soft: str = ""

    @classmethod
    def parse(cls, value: bytes | None) -> Epoch:
        """Read an epoch as it stands on Redis."""
        return _ABSENT if value is None else cls.of(value.decode("latin-1"))

    @classmethod
    def of(cls, text: str) -> Epoch:
        """Read an epoch as an entry records it."""
        hard, _, soft = text.partition(":")
        return cls(hard, soft)

    def __str__(self) -> str:
        return f"{self.hard}:{self.soft}"


_ABSENT = Epoch()
# Bytes of epochs as read together up to which they are remembered: many more than were written.
_LONGEST_REMEMBERED = 4096


@value(frozen=True, slots=True)
class Epochs:
    """The epochs that bear on one URL, as read at some moment."""

    everything: Epoch = _ABSENT
    url: Epoch = _ABSENT
    any_tag: str = ""
    """``G``, which has no parts: it only says whether tags have to be looked at."""
    tags: Mapping[str, Epoch] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: tuple[bytes | None, ...], tags: tuple[str, ...]) -> Epochs:
        """Read the epochs of everything, a URL, any tag, and each of ``tags``, as on Redis.

        Nearly always they are those that were read last.
        """
        if any(values) and sum(map(len, filter(None, values))) > _LONGEST_REMEMBERED:
            return _parsed.__wrapped__(values, tags)
        return _parsed(values, tags)


@lru_cache(maxsize=128)
def _parsed(values: tuple[bytes | None, ...], tags: tuple[str, ...]) -> Epochs:
    everything, url, any_tag, *of_tags = values
    return Epochs(
        Epoch.parse(everything),
        Epoch.parse(url),
        any_tag.decode("latin-1") if any_tag else "",
        dict(zip(tags, map(Epoch.parse, of_tags), strict=True)),
    )


class Life(Enum):
    """What the epochs say of a stored response."""

    ALIVE = auto()
    STALE = auto()
    """Purged softly: usable where a stale response is."""
    DEAD = auto()
    UNKNOWN = auto()
    """Some tag was purged, and not all of its tags' epochs have been read."""


def life(recorded: Epochs, current: Epochs) -> Life:
    """Compare the epochs recorded with a stored response to those of now."""
    same_tags = recorded.any_tag == current.any_tag
    if same_tags and recorded.everything == current.everything and recorded.url == current.url:
        return Life.ALIVE  # nothing was purged: nearly always
    pairs = [(recorded.everything, current.everything), (recorded.url, current.url)]
    if not same_tags:
        if any(tag not in current.tags for tag in recorded.tags):
            return Life.DEAD if _dead(pairs) else Life.UNKNOWN
        pairs += [(epoch, current.tags[tag]) for tag, epoch in recorded.tags.items()]
    if _dead(pairs):
        return Life.DEAD
    return Life.STALE if any(was.soft != now.soft for was, now in pairs) else Life.ALIVE


def _dead(pairs: Iterable[tuple[Epoch, Epoch]]) -> bool:
    return any(was.hard != now.hard for was, now in pairs)


def with_ancestors(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags with their colon-ancestors: ``product:7`` counts for ``product`` too."""
    known: dict[str, None] = {}
    for tag in tags:
        known[tag] = None
        for place, character in enumerate(tag):
            if character == ":" and place:
                known[tag[:place]] = None
    return tuple(known)
