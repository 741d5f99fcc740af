"""Cookies that no page depends on, and removal of these cookies from requests.

Such a cookie makes each visitor's request different. A rule that ignores the cookie removes it from
the request before the lookup, and from the request that the application gets. The response can
therefore not depend on it.
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

# Cookies that scripts in the browser set and read. The list has no cookies that servers read, such
# as cookies of experiments (``__utmx``), feature flags and consent.
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
"""Patterns of names, each with the product that sets the cookie and the source."""


def ignored_cookies(
    rule: CacheRule, setting: Iterable[str] | None, profile: Profile
) -> tuple[str, ...]:
    """Return the patterns of the cookies that a rule ignores, from the rule or the setting."""
    named = setting if rule.ignore_cookies is None else rule.ignore_cookies
    if named is not None and not (named := tuple(named)):
        return ()
    return (*(named or ()), *(ANALYTICS_COOKIES if profile.ignores_analytics else ()))


def ignored_cookie_pattern(
    patterns: Iterable[str], except_for: Iterable[str]
) -> re.Pattern[str] | None:
    """Return a pattern for the names of ignored cookies; None if no cookie is ignored."""
    alternatives = "|".join(translate(pattern) for pattern in patterns)
    if not alternatives:
        return None
    kept = "|".join(re.escape(name) for name in except_for)
    return re.compile(f"(?!(?:{kept})\\Z)(?:{alternatives})" if kept else alternatives)


def without_cookies(headers: Headers, ignored: re.Pattern[str]) -> Headers:
    """Return header fields without the ignored cookies; the same object if it has none."""
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
"""The maximum number of cookies in a request that are checked. Browsers send fewer."""


def _without_ignored(line: str, ignored: re.Pattern[str]) -> str:
    """Return a Cookie field without the ignored cookies. The others are unchanged."""
    pairs = [pair.partition("=") for pair in line.split(";")]
    if any(OPEN_QUOTE.match(value) for _, _, value in pairs):
        return line  # parsers may split this field into different cookies
    kept = [pair for pair in pairs if not ignored.fullmatch(pair[0].strip())]
    if len(kept) == len(pairs):
        return line
    return ";".join("".join(pair) for pair in kept).strip(" \t;")
