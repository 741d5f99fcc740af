"""The cache's two profiles, as tables of what differs between them; nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Profile:
    """What a shared cache may do beyond what every one must."""

    name: str
    stores_set_cookie: bool
    """Whether a response with Set-Cookie may be stored and replayed to others."""
    stores_for_cookies: bool
    """Whether the response to a request with cookies may be stored where neither ``Vary:
    Cookie`` nor the rule says that the cookies are accounted for."""
    stores_reflections: bool
    """Whether a response may be stored that repeats X-Forwarded-Host or its kin."""
    stores_parts: bool
    """Whether a part of a representation is stored (§3.3): it serves those alone who ask for
    the same range, and takes the whole's place."""
    stores_posts: bool
    """Whether the response to a POST may answer a later GET where it says so (RFC 9110 §9.3.3),
    which costs every POST a lookup."""
    uses_heuristics: bool
    """Whether a response without explicit freshness may get a heuristic one (§4.2.2)."""
    stores_to_validate: bool
    """Whether what is never fresh is stored for its validator alone: it saves the application
    work only where that answers conditional requests, and costs a command each time."""
    obeys_clients: bool
    """Whether a request's own directives command the cache (§5.2.1). They are advisory; for an
    application's own cache they would be a lever to go around it."""
    s_maxage_revalidates: bool
    """Whether s-maxage forbids stale responses (§5.2.2.10) even beside an explicit
    stale-while-revalidate, with which it is often written."""
    replays_date: bool
    """Whether a hit carries the stored Date; else the server's own stands."""
    stores_first: bool
    """Whether a response is stored before its last byte goes out where the setting does not say:
    what a client has been sent whole, it then finds stored."""
    updates_content_type: bool
    """Whether a 304 may change the Content-Type (§3.2). Frameworks put their default on a 304, and
    a stored page of another type would be read as that."""
    ignores_order: bool
    """Whether the order in Accept and its kin selects no variant; for some applications the
    order of Accept-Language means a preference."""


SAFE = Profile(
    "safe",
    stores_set_cookie=False,
    stores_for_cookies=False,
    stores_reflections=False,
    stores_parts=False,
    stores_posts=False,
    uses_heuristics=False,
    stores_to_validate=False,
    obeys_clients=False,
    s_maxage_revalidates=False,
    replays_date=False,
    stores_first=False,
    updates_content_type=False,
    ignores_order=False,
)
CONFORMING = Profile(
    "conforming",
    stores_set_cookie=True,
    stores_for_cookies=True,
    stores_reflections=True,
    stores_parts=True,
    stores_posts=True,
    uses_heuristics=True,
    stores_to_validate=True,
    obeys_clients=True,
    s_maxage_revalidates=True,
    replays_date=True,
    stores_first=True,
    updates_content_type=True,
    ignores_order=True,
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (SAFE, CONFORMING)}


def profile_named(name: str) -> Profile:
    """Return a profile by its name.

    Raises ConfigurationError for a name that is none.
    """
    if name not in PROFILES:
        raise ConfigurationError(
            f"cache profile {name!r} should be one of {', '.join(map(repr, PROFILES))}"
        )
    return PROFILES[name]
