"""Cookies that no page depends on, and header fields without them.

Such a cookie makes each visitor's request different. Under a rule that ignores it, it is removed
from the request before anything is decided, and from what the application gets: what the
application cannot see, the response cannot depend on.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.http.vary import OPEN_QUOTE
from upstash_middleware.messages import Headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from upstash_middleware.core.cache.rules import CacheRule, Profile

# Set and read by scripts in the browser. Not in the list: cookies that a server reads to choose
# what it renders, such as those of experiments, feature flags and consent.
ANALYTICS_COOKIES: Mapping[str, str] = {
    "_ga": "Google Analytics: support.google.com/analytics/answer/11397207",
    "_ga_*": "the same, one for each property",
    "_gid": "Google Analytics: developers.google.com/analytics, cookie usage of gtag.js",
    "_gat": "the same",
    "_gat_*": "the same, one for each tracker",
    "_gac_*": "the same, for campaigns",
    "_dc_gtm_*": "the same, set by Google Tag Manager",
    "__utm[abctvxz]": "Google Analytics: developers.google.com/analytics, cookie usage of ga.js",
    "_gcl_*": "Google Ads: policies.google.com/technologies/cookies",
    "_fbp": "Meta Pixel: developers.facebook.com, Conversions API, fbp and fbc",
    "_fbc": "the same",
    "_clck": "Microsoft Clarity: learn.microsoft.com/clarity, cookie list",
    "_clsk": "the same",
    "_uetsid": "Microsoft Advertising: help.ads.microsoft.com, UET tag",
    "_uetvid": "the same",
    "_hjSession_*": "Hotjar: help.hotjar.com, cookies set by the tracking code",
    "_hjSessionUser_*": "the same",
    "_pk_id.*": "Matomo: matomo.org/faq, cookies of the JavaScript tracker",
    "_pk_ses.*": "the same",
    "_pk_ref.*": "the same, for referrers",
    "_pk_cvar.*": "the same, for custom variables",
    "mp_*_mixpanel": "Mixpanel: docs.mixpanel.com, JavaScript SDK",
    "__hstc": "HubSpot: knowledge.hubspot.com, cookies set in a visitor's browser",
    "__hssc": "the same",
    "__hssrc": "the same",
    "_ym_uid": "Yandex Metrica: yandex.com/support/metrica, cookies",
    "_ym_d": "the same",
    "_ym_isad": "the same",
    "_ttp": "TikTok Pixel: ads.tiktok.com/help, cookies of the pixel",
}
"""Patterns of names, each with what sets it and where its maker describes it."""


def ignored_cookies(
    rule: CacheRule, setting: Iterable[str] | None, profile: Profile
) -> tuple[str, ...]:
    """Return the patterns of the cookies that a rule ignores, by itself or by the setting."""
    named = setting if rule.ignore_cookies is None else rule.ignore_cookies
    if named is not None and not (named := tuple(named)):
        return ()
    return (*(named or ()), *(ANALYTICS_COOKIES if profile.ignores_analytics else ()))


def ignoring(patterns: Iterable[str], except_for: Iterable[str]) -> re.Pattern[str] | None:
    """Return what matches the names of ignored cookies; None if nothing is ignored."""
    alternatives = "|".join(translate(pattern) for pattern in patterns)
    if not alternatives:
        return None
    kept = "|".join(re.escape(name) for name in except_for)
    return re.compile(f"(?!(?:{kept})\\Z)(?:{alternatives})" if kept else alternatives)


def without_cookies(headers: Headers, ignored: re.Pattern[str]) -> Headers:
    """Return header fields without the ignored cookies; the same object if there are none."""
    lines = [value for name, value in headers.raw if name.lower() == b"cookie"]
    if sum(line.count(b";") + 1 for line in lines) > _MOST_COOKIES:
        return headers
    raw = []
    for pair in headers.raw:
        if pair[0].lower() == b"cookie":
            line = pair[1].decode("latin-1")
            if (kept := _kept(line, ignored)) != line:
                if kept:
                    raw.append((pair[0], kept.encode("latin-1")))
                continue
        raw.append(pair)
    return headers if tuple(raw) == headers.raw else Headers(raw)


_MOST_COOKIES = 300
"""Cookies of a request up to which ignored ones are looked for; browsers send fewer."""


def _kept(line: str, ignored: re.Pattern[str]) -> str:
    """Return a Cookie field without the ignored cookies, the others as they were sent."""
    pairs = [pair.partition("=") for pair in line.split(";")]
    if any(OPEN_QUOTE.match(value) for _, _, value in pairs):
        return line  # what is one cookie to one parser is several to another
    kept = [pair for pair in pairs if not ignored.fullmatch(pair[0].strip())]
    if len(kept) == len(pairs):
        return line
    return ";".join("".join(pair) for pair in kept).strip(" \t;")
