"""A CDN in front of the application: its header fields for tags and lifetimes, and its purges.

Each response has tags for its URL, its directories, its rule and everything, besides its own tags.
Any purge can therefore be passed on to the CDN as a list of tags.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from msgspec import Struct

from upstash_middleware.core.cache.entries import split_tags_and_groups, tag_refused
from upstash_middleware.core.cache.keys import scopes_of, scopes_to_purge, urls_to_purge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.cache.store import Purge, Target
    from upstash_middleware.messages import Headers

_PRINTABLE: Final = "!#$&'()*+./:;<=>?@[]^`{|}~"
"""The characters that a tag keeps besides letters, digits, ``_`` and ``-``: no separators or %."""


class CDN(Struct, frozen=True):
    """The header fields and limits of a CDN."""

    tag_field: str
    separator: str
    control_field: str
    """The field that this CDN reads instead of Cache-Control."""
    max_tag_length: int
    """The maximum length of a tag in characters."""
    max_field_length: int
    """The maximum length of the field with the tags in bytes."""
    max_tags: int
    honours_vary: bool
    """Whether the CDN selects by all fields in Vary; otherwise only by Accept-Encoding."""
    safe: str = _PRINTABLE
    """The characters allowed in tags besides letters, digits, ``_``, ``-``, ``.`` and ``~``."""

    def encode_tag(self, tag: str) -> str:
        """Return a tag in a form that the CDN accepts: percent-encoded, and hashed if too long."""
        text = quote(tag, safe=self.safe)
        if len(text) <= self.max_tag_length:
            return text
        return f"~{sha256(tag.encode()).hexdigest()}"

    def tags_of(self, target: Target, rule: CacheRule, tags: Iterable[str]) -> tuple[str, ...]:
        """Return the tags that purge a response from the CDN, in encoded form."""
        # A CDN that supports cache groups reads their field itself.
        own, _ = split_tags_and_groups(tags)
        urls = (f"url:{url}" for url in target.urls)
        named = ("everything", *scopes_of(target.url, rule), *urls, *map(_escape_tag, own))
        return tuple(dict.fromkeys(map(self.encode_tag, named)))

    def tags_of_purge(self, what: Purge, rules: Sequence[CacheRule]) -> tuple[str, ...]:
        """Return the tags of everything that a purge affects. Raises ValueError like the purge."""
        named = ["everything"] if what.everything else []
        named += [f"url:{url}" for url in urls_to_purge(what.urls, rules)]
        named += scopes_to_purge(what.directories, what.rules, rules)
        named += [_escape_tag(tag) for tag in what.tags if tag_refused(tag) is None]
        return tuple(dict.fromkeys(map(self.encode_tag, named)))

    def distinguishes(self, selecting: Iterable[str]) -> bool:
        """Whether the CDN sends a response only to requests with equal values of these fields.

        All CDNs store a separate response for each coding.
        """
        return self.honours_vary or {*selecting} <= {"accept-encoding"}

    def forbid_storing(self, headers: Headers) -> Headers:
        """Return header fields with which the CDN does not store the response."""
        headers = headers.without("cache-tag", "surrogate-key", self.tag_field.lower())
        return headers.setting(self.control_field, "no-store, max-age=0")

    def add_cdn_fields(self, headers: Headers, tags: Sequence[str], control: str | None) -> Headers:
        """Return header fields with the CDN's fields in place of the application's.

        ``control`` is the CDN's value for Cache-Control. If there are more tags than the CDN reads,
        it must not store the response, because a purge might not find it.
        """
        text = self.separator.join(tags)
        if len(text) > self.max_field_length or len(tags) > self.max_tags:
            return self.forbid_storing(headers)
        headers = headers.without("cache-tag", "surrogate-key", self.tag_field.lower())
        if control is not None:
            headers = headers.setting(self.control_field, control)
        return headers.setting(self.tag_field, text)


_RESERVED_TAG_NAMES: Final = frozenset({"everything", "rule", "tag", "under", "url"})
"""The prefixes of generated tags. An application's tag with one of these gets ``tag:``."""


def _escape_tag(tag: str) -> str:
    """Return an application's tag, escaped if it could be mistaken for a generated one."""
    return f"tag:{tag}" if tag.partition(":")[0] in _RESERVED_TAG_NAMES else tag


CDNS: Final = {
    # https://developers.cloudflare.com/cache/how-to/purge-cache/purge-by-tags/
    # https://developers.cloudflare.com/cache/concepts/vary/: only if a rule of the zone enables it
    "cloudflare": CDN(
        "Cache-Tag", ",", "Cloudflare-CDN-Cache-Control", 1024, 16_000, 1000, honours_vary=False
    ),
    # https://www.fastly.com/documentation/reference/http/http-headers/Surrogate-Key/
    # https://www.fastly.com/documentation/reference/http/http-headers/Vary/
    "fastly": CDN("Surrogate-Key", " ", "Surrogate-Control", 1024, 16_384, 1000, honours_vary=True),
    # https://vercel.com/docs/caching/cdn-cache/purge
    # https://vercel.com/changelog/vary-cookie-responses-no-longer-cached: not with Vary: Cookie;
    # of other fields, only those that it supports
    "vercel": CDN(
        "Vercel-Cache-Tag", ",", "Vercel-CDN-Cache-Control", 256, 8192, 128, honours_vary=False
    ),
    # https://docs.netlify.com/build/caching/caching-overview/: Vary is part of the cache key
    "netlify": CDN(
        "Netlify-Cache-Tag", ",", "Netlify-CDN-Cache-Control", 1024, 8192, 128, honours_vary=True
    ),
    # https://techdocs.akamai.com/purge-cache/docs/purge-content-cache-tag
    # https://techdocs.akamai.com/property-mgr/docs/rm-vary-header: some products remove Vary
    "akamai": CDN(
        "Edge-Cache-Tag", ",", "Edge-Control", 128, 8192, 128, honours_vary=False, safe="!#$'+./^`|"
    ),
}
"""The CDNs, by their names in the setting ``cdn``."""
