"""The cache's two profiles: a table of what differs between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Profile(Struct, frozen=True, kw_only=True):
    """What a shared cache may do beyond what every shared cache must."""

    name: str
    stores_set_cookie: bool = False
    """Whether a response with Set-Cookie may be stored and sent to others."""
    stores_for_cookies: bool = False
    """Whether the response to a request with cookies may be stored although neither ``Vary:
    Cookie`` nor the rule accounts for them."""
    stores_for_credentials: bool = False
    """Whether the response to a request with a field such as X-Api-Key may be stored although that
    field does not select it. For Authorization, RFC 9111 §3.5 decides."""
    stores_reflections: bool = False
    """Whether a response may be stored that shows an address from X-Forwarded-For or similar."""
    stores_parts: bool = False
    """Whether a partial response is stored (§3.3). It serves only requests for the same range, and
    replaces a stored whole."""
    ignores_bodies: bool = False
    """Whether the body of a GET or HEAD is ignored, since it has no meaning (RFC 9110 §9.3.1).
    Applications may read it nevertheless."""
    stores_posts: bool = False
    """Whether the response to a POST may answer a later GET where it says so (RFC 9110 §9.3.3),
    which costs each POST a lookup."""
    uses_heuristics: bool = False
    """Whether a response without explicit freshness may get heuristic freshness (§4.2.2)."""
    stores_to_validate: bool = False
    """Whether a response that is never fresh is stored for its validator alone. That saves work
    only if the application answers conditional requests, and costs a command each time."""
    fills_despite_conditions: bool = False
    """Whether a conditional request that misses is forwarded without its conditions. §4.3.2 leaves
    them to the application, whose 304 cannot be stored: as long as all clients have the page, each
    of them would reach the application."""
    obeys_clients: bool = False
    """Whether the request's own directives are obeyed (§5.2.1). They are advisory, and would let
    clients bypass an application's own cache."""
    s_maxage_revalidates: bool = False
    """Whether s-maxage (§5.2.2.10) forbids stale responses even if the response states
    stale-while-revalidate. CDNs allow that, and applications are written for CDNs."""
    replays_date: bool = False
    """Whether a hit carries the stored Date instead of the server's own."""
    stores_first: bool = False
    """Whether a response is stored before its last byte is sent, if the setting does not say."""
    updates_content_type: bool = False
    """Whether a 304 may change the Content-Type (§3.2). Frameworks put their default on a 304."""
    normalises: bool = False
    """Whether hosts and the values of selecting fields are normalised as far as their definitions
    allow. Applications are less thorough: Django reads no language from ``de,,en``, and Starlette
    does not read ``GZIP`` as ``gzip``."""


SAFE = Profile(name="safe", fills_despite_conditions=True)
CONFORMING = Profile(
    name="conforming",
    stores_set_cookie=True,
    stores_for_cookies=True,
    stores_for_credentials=True,
    stores_reflections=True,
    stores_parts=True,
    ignores_bodies=True,
    stores_posts=True,
    uses_heuristics=True,
    stores_to_validate=True,
    obeys_clients=True,
    s_maxage_revalidates=True,
    replays_date=True,
    stores_first=True,
    updates_content_type=True,
    normalises=True,
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (SAFE, CONFORMING)}


def profile_named(name: str) -> Profile:
    """Return a profile by its name. Raises ConfigurationError for an unknown name."""
    if name not in PROFILES:
        raise ConfigurationError(
            f"cache profile {name!r} should be one of {', '.join(map(repr, PROFILES))}"
        )
    return PROFILES[name]
