"""From a response's head to what would be stored of it: all of the rules put together."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.entries import StoredResponse
from upstash_middleware.core.cache.epochs import Epochs
from upstash_middleware.core.cache.fields import members
from upstash_middleware.core.cache.freshness import Lifetime, Staleness, initial_age, staleness
from upstash_middleware.core.cache.storing import lifetime, refusal, storable_headers
from upstash_middleware.core.cache.validation import has_validator
from upstash_middleware.values import dataclass, replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.storing import Candidate
    from upstash_middleware.messages import Headers


@dataclass(frozen=True, slots=True)
class Plan:
    """A response that is to be stored, as far as its head goes."""

    stored: StoredResponse
    """Without its body, and with the tags that the response itself names."""
    vary: tuple[str, ...]
    """The fields that select it."""
    keep: float
    """Seconds for which it is of any use."""

    def with_body(self, body: bytes) -> Plan:
        """Return the plan with the whole body, which becomes known last."""
        return replace(self, stored=replace(self.stored, packed=body, length=len(body)))

    def with_etag(self) -> Plan:
        """Return the plan with a strong ETag made from its body, if it has none."""
        stored = self.stored
        if stored.status != 200 or "etag" in stored.headers:
            return self
        etag = f'"{blake2b(stored.packed, digest_size=12).hexdigest()}"'
        return replace(self, stored=replace(stored, headers=stored.headers.setting("etag", etag)))


def plan(candidate: Candidate, asked_at: float, grace: float) -> Plan | str:
    """Return what to store of a response, or in words why nothing.

    ``asked_at`` is when the application was called; for ``grace`` seconds beyond all else, or
    those of its rule, a response is kept that can be validated.
    """
    if (reason := refusal(candidate)) is not None:
        return reason
    if (fresh := lifetime(candidate)) is None:
        return "no freshness lifetime"
    grace = grace if candidate.rule.grace is None else candidate.rule.grace
    stale = staleness(candidate.control, candidate.rule, candidate.profile)
    age = initial_age(candidate.headers, asked_at, candidate.received_at)
    keep = _use(candidate, fresh, stale, grace) - age
    if keep <= 0 or (fresh.seconds <= age and not _of_use_stale(candidate, stale)):
        return "stale already"
    stored = StoredResponse(
        status=candidate.head.status,
        headers=storable_headers(candidate.headers, candidate.control.directives),
        stored_at=candidate.received_at,
        initial_age=age,
        lifetime=fresh.seconds,
        stale=stale,
        packed=b"",
        length=0,
        tags=_tags(candidate.headers),
        epochs=Epochs(),
    )
    return Plan(stored, _selecting(candidate), keep)


def _use(candidate: Candidate, fresh: Lifetime, stale: Staleness, grace: float) -> float:
    """Return the age up to which a response is of any use."""
    can_be_validated = has_validator(candidate.headers) or candidate.profile.obeys_clients
    beyond = max(stale.while_revalidate, stale.if_error, grace if can_be_validated else 0.0)
    return fresh.seconds + beyond


def _of_use_stale(candidate: Candidate, stale: Staleness) -> bool:
    """Whether it is worth storing a response that is never fresh."""
    if stale.while_revalidate or stale.if_error:
        return True
    return candidate.profile.stores_to_validate and has_validator(candidate.headers)


def _selecting(candidate: Candidate) -> tuple[str, ...]:
    if candidate.rule.vary_cookies is None:
        return candidate.vary
    # Those cookies select the resource already, and no others shall.
    return tuple(name for name in candidate.vary if name != "cookie")


def _tags(headers: Headers) -> tuple[str, ...]:
    """Return the tags that a response names: Cache-Tag by commas, Surrogate-Key by blanks."""
    named = members(headers.lines("cache-tag"))
    named += [key for line in headers.lines("surrogate-key") for key in line.split()]
    return tuple(dict.fromkeys(named))
