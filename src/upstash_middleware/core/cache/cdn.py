"""A CDN in front: the fields by which it tags what it stores and limits how long, and its purges.

Whatever a purge here reaches, the CDN finds by a tag: of the response, of its URL, of its
directories and its rule, and of everything. So each purge is passed on as tags alone.
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
"""What a tag keeps beside letters, digits, ``_`` and ``-``; not what separates tags, nor ``%``."""


class CDN(Struct, frozen=True):
    """How one CDN reads tags and lifetimes."""

    tag_field: str
    separator: str
    control_field: str
    """The field that only this CDN reads in place of Cache-Control."""
    max_tag_length: int
    """Characters of one tag."""
    max_field_length: int
    """Bytes of the field with the tags."""
    max_tags: int
    honours_vary: bool
    """Whether it compares all request fields that Vary names; otherwise Accept-Encoding alone."""
    safe: str = _PRINTABLE
    """The characters that a tag may have beside letters, digits, ``_``, ``-``, ``.`` and ``~``."""

    def encode_tag(self, tag: str) -> str:
        """Return a tag as the CDN can read it: percent-encoded, and a digest if it is too long."""
        text = quote(tag, safe=self.safe)
        if len(text) <= self.max_tag_length:
            return text
        return f"~{sha256(tag.encode()).hexdigest()}"

    def tags_of(self, target: Target, rule: CacheRule, tags: Iterable[str]) -> tuple[str, ...]:
        """Return the tags by which the CDN finds a response, as written in its field."""
        # A CDN that knows cache groups reads their field itself.
        own, _ = split_tags_and_groups(tags)
        urls = (f"url:{url}" for url in target.urls)
        named = ("everything", *scopes_of(target.url, rule), *urls, *map(_escape_tag, own))
        return tuple(dict.fromkeys(map(self.encode_tag, named)))

    def tags_of_purge(self, what: Purge, rules: Sequence[CacheRule]) -> tuple[str, ...]:
        """Return the tags of all that a purge reaches. Raises ValueError as the purge does."""
        named = ["everything"] if what.everything else []
        named += [f"url:{url}" for url in urls_to_purge(what.urls, rules)]
        named += scopes_to_purge(what.directories, what.rules, rules)
        named += [_escape_tag(tag) for tag in what.tags if tag_refused(tag) is None]
        return tuple(dict.fromkeys(map(self.encode_tag, named)))

    def distinguishes(self, selecting: Iterable[str]) -> bool:
        """Whether the CDN sends a response only to requests with the same values of these fields.

        Each CDN has one copy for each coding.
        """
        return self.honours_vary or {*selecting} <= {"accept-encoding"}

    def forbid_storing(self, headers: Headers) -> Headers:
        """Return a response's fields so that the CDN does not store it."""
        headers = headers.without("cache-tag", "surrogate-key", self.tag_field.lower())
        return headers.setting(self.control_field, "no-store, max-age=0")

    def add_cdn_fields(self, headers: Headers, tags: Sequence[str], control: str | None) -> Headers:
        """Return a response's fields with the CDN's in place of the application's.

        ``control`` is what the CDN gets in place of Cache-Control. If the tags are more than the
        CDN reads, it may not store the response: no purge would find it there.
        """
        text = self.separator.join(tags)
        if len(text) > self.max_field_length or len(tags) > self.max_tags:
            return self.forbid_storing(headers)
        headers = headers.without("cache-tag", "surrogate-key", self.tag_field.lower())
        if control is not None:
            headers = headers.setting(self.control_field, control)
        return headers.setting(self.tag_field, text)


_RESERVED_TAG_NAMES: Final = frozenset({"everything", "rule", "tag", "under", "url"})
"""The first parts of the tags that are not the application's own, and what its own get before."""


def _escape_tag(tag: str) -> str:
    """Return an application's tag, changed if it could be mistaken for a reserved one."""
    return f"tag:{tag}" if tag.partition(":")[0] in _RESERVED_TAG_NAMES else tag


CDNS: Final = {
    # https://developers.cloudflare.com/cache/how-to/purge-cache/purge-by-tags/
    # https://developers.cloudflare.com/cache/concepts/vary/: only as far as a rule of the zone says
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
    # https://docs.netlify.com/build/caching/caching-overview/: Vary is a part of its keys
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
