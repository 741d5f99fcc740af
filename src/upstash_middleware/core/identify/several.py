"""Identifiers made of others: all of them together, the first that is found, one hashed."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeGuard

from upstash_middleware.core.effects import Resolve
from upstash_middleware.core.identify.identifier import Extractor, Finder, Identifier
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.messages import Request


async def extract(extractor: AnyExtractor, request: Request) -> Identifier | None:
    """Return what an extractor, sync or async, finds; its own text or number is kind ``id``.

    A flow. Raises TypeError for anything else, and whatever the extractor raises.
    """
    if isinstance(extractor, Finder):
        return await extractor.find(request)
    return await identified(extractor(request))


async def identified(answer: Any) -> Identifier | None:
    """Return what an extractor's answer means, the part of ``extract`` that comes after."""
    found = await Resolve(answer) if isinstance(answer, Awaitable) else answer
    if found is None or isinstance(found, Identifier):
        return found
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise TypeError(
            f"an extractor should answer text, a whole number, an Identifier or None, "
            f"not {type(found).__name__}"
        )
    return Identifier("id", str(found)) if found != "" else None


@dataclass(frozen=True, slots=True)
class Combined(Finder):
    """All of several extractors; made by ``combine``."""

    extractors: tuple[AnyExtractor, ...]

    async def find(self, request: Request) -> Identifier | None:
        """Return one identifier of all; None if any finds nothing."""
        parts = [await extract(extractor, request) for extractor in self.extractors]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        # Lengths come first, so that no two lists of values read the same.
        value = "&".join(f"{len(part.value)}.{part.value}" for part in found)
        kind = "+".join(part.kind for part in found)
        return Identifier(kind, value, secret=any(part.secret for part in found))


@dataclass(frozen=True, slots=True)
class FirstOf(Finder):
    """The first of several extractors; made by ``first_of``."""

    extractors: tuple[AnyExtractor, ...]

    async def find(self, request: Request) -> Identifier | None:
        """Return what the first extractor that finds anything has found."""
        for extractor in self.extractors:
            if found := await extract(extractor, request):
                return found
        return None


@dataclass(frozen=True, slots=True)
class Hashed(Finder):
    """An extractor whose finds are hashed; made by ``hashed``."""

    extractor: AnyExtractor

    async def find(self, request: Request) -> Identifier | None:
        """Return what the extractor finds, to be hashed wherever it is written."""
        found = await extract(self.extractor, request)
        return Identifier(found.kind, found.value, secret=True) if found else None


def combine(*extractors: AnyExtractor) -> Combined:
    """Identify by several things at once: one quota for each pair of address and account."""
    return Combined(_callables("combine", extractors))


def first_of(*extractors: AnyExtractor) -> FirstOf:
    """Identify by the first of several things that a request has."""
    return FirstOf(_callables("first_of", extractors))


def hashed(extractor: AnyExtractor) -> Hashed:
    """Hash what an extractor of your own finds: for credentials and personal data."""
    return Hashed(*_callables("hashed", (extractor,)))


def parts_of(extractor: AnyExtractor) -> Iterator[AnyExtractor]:
    """Return the extractors that one is made of, at any depth; itself if it is made of none."""
    match extractor:
        case Combined(parts) | FirstOf(parts):
            for part in parts:
                yield from parts_of(part)
        case Hashed(part):
            yield from parts_of(part)
        case _:
            yield extractor


def is_extractor(value: object) -> TypeGuard[AnyExtractor]:
    """Whether a value can stand as a rule's ``by``."""
    return callable(value) or isinstance(value, Finder)


AnyExtractor = Extractor | Finder


def _callables(function: str, extractors: tuple[AnyExtractor, ...]) -> tuple[AnyExtractor, ...]:
    for extractor in extractors:
        if not is_extractor(extractor):
            raise ConfigurationError(
                f"{function}: {extractor!r} should be an extractor such as header('X-API-Key')"
            )
    if not extractors:
        raise ConfigurationError(f"{function}: give at least one extractor")
    return extractors
