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
# what it renders, such as those of experiments (``__utmx``), feature flags and consent.
ANALYTICS_COOKIES: Mapping[str, str] = {
    "_ga": "Google Analytics: developers.google.com/analytics, cookie usage of gtag.js",
    "_ga_*": "Google Analytics 4: support.google.com/analytics/answer/11397207",
    "_gid": "Google Analytics: cookie usage of gtag.js",
    "_gat": "Google Analytics: cookie usage of gtag.js",
    "_gat_*": "Google Analytics, one for each tracker: seen as _gat_gtag_UA_1_2 and _gat_UA-1-2",
    "_gac_*": "Google Analytics, for campaigns: cookie usage of gtag.js",
    "_dc_gtm_*": "Google Tag Manager, in place of _gat: cookie usage of gtag.js",
    "__utm[abctvz]": "Google Analytics: developers.google.com/analytics, cookie usage of ga.js",
    "_gcl_*": "Google Ads, conversion linker: business.safety.google/adscookies",
    "_fbp": "Meta Pixel: developers.facebook.com, Conversions API, fbp and fbc",
    "_fbc": "Meta Pixel: developers.facebook.com, Conversions API, fbp and fbc",
    "_clck": "Microsoft Clarity: learn.microsoft.com/clarity, cookie list",
    "_clsk": "Microsoft Clarity: learn.microsoft.com/clarity, cookie list",
    "_uetsid": "Microsoft Advertising, UET tag: seen, and in lists of consent managers",
    "_uetvid": "Microsoft Advertising, UET tag: seen, and in lists of consent managers",
    "_hjSession_*": "Hotjar, one for each site: seen, and in lists of consent managers",
    "_hjSessionUser_*": "Hotjar, one for each site: seen, and in lists of consent managers",
    "_pk_id.*": "Matomo: matomo.org/faq/general/faq_146",
    "_pk_ses.*": "Matomo: matomo.org/faq/general/faq_146",
    "_pk_ref.*": "Matomo, referrers: matomo.org/faq/general/faq_146",
    "_pk_cvar.*": "Matomo, custom variables: matomo.org/faq/general/faq_146",
    "mp_*_mixpanel": "Mixpanel: the source of its JavaScript SDK, mp_TOKEN_mixpanel",
    "__hstc": "HubSpot: knowledge.hubspot.com, cookies set in a visitor's browser",
    "__hssc": "HubSpot: knowledge.hubspot.com, cookies set in a visitor's browser",
    "__hssrc": "HubSpot: knowledge.hubspot.com, cookies set in a visitor's browser",
    "_ym_uid": "Yandex Metrica: seen, and in the cookie policies of sites",
    "_ym_d": "Yandex Metrica: seen, and in the cookie policies of sites",
    "_ym_isad": "Yandex Metrica, ad blockers: seen, and in the cookie policies of sites",
    "_ttp": "TikTok Pixel: ads.tiktok.com, Events API, ttp",
}
"""Patterns of names, each with who sets it and where that is described."""


def ignored_cookies(
    rule: CacheRule, setting: Iterable[str] | None, profile: Profile
) -> tuple[str, ...]:
    """Return the patterns of the cookies that a rule ignores, by itself or by the setting."""
    named = setting if rule.ignore_cookies is None else rule.ignore_cookies
    if named is not None and not (named := tuple(named)):
        return ()
    return (*(named or ()), *(ANALYTICS_COOKIES if profile.ignores_analytics else ()))


def ignored_cookie_pattern(
    patterns: Iterable[str], except_for: Iterable[str]
) -> re.Pattern[str] | None:
    """Return a pattern for the names of ignored cookies; None if none is ignored."""
    alternatives = "|".join(translate(pattern) for pattern in patterns)
    if not alternatives:
        return None
    kept = "|".join(re.escape(name) for name in except_for)
    return re.compile(f"(?!(?:{kept})\\Z)(?:{alternatives})" if kept else alternatives)


def without_cookies(headers: Headers, ignored: re.Pattern[str]) -> Headers:
    """Return header fields without the ignored cookies; the same object if there are none."""
    lines = [value for name, value in headers.raw if name.lower() == b"cookie"]
    if sum(line.count(b";") + 1 for line in lines) > _MAX_COOKIES:
        return headers
    raw = []
    for pair in headers.raw:
        if pair[0].lower() == b"cookie":
            line = pair[1].decode("latin-1")
            if (kept := _without_ignored(line, ignored)) != line:
                if kept:
                    raw.append((pair[0], kept.encode("latin-1")))
                continue
        raw.append(pair)
    return headers if tuple(raw) == headers.raw else Headers(raw)


_MAX_COOKIES = 300
"""Cookies of a request up to which ignored ones are looked for; browsers send fewer."""


def _without_ignored(line: str, ignored: re.Pattern[str]) -> str:
    """Return a Cookie field without the ignored cookies, the others as they were sent."""
    pairs = [pair.partition("=") for pair in line.split(";")]
    if any(OPEN_QUOTE.match(value) for _, _, value in pairs):
        return line  # what is one cookie to one parser is several to another
    kept = [pair for pair in pairs if not ignored.fullmatch(pair[0].strip())]
    if len(kept) == len(pairs):
        return line
    return ";".join("".join(pair) for pair in kept).strip(" \t;")
