"""docs/settings.md as text, made from the code: every setting, in groups, with examples.

What a setting means, its type and its default are in the code. Here are the groups, the units, and
an example each, which the tests read as settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec import NODEFAULT
from msgspec.structs import fields

from documentation.docstrings import parameters_of
from documentation.site import table
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.core.sessions import SessionSettings
from upstash_middleware.settings import DEFAULTS, WithSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS: Final = 'seconds, a `timedelta`, or text such as `"500ms"` or `"5 minutes"`'
BYTES: Final = "bytes"
_COUNT: Final = "a count"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the page says of a setting beside its documentation."""

    example: str
    """As a keyword argument."""
    toml: str = ""
    """The same in a rule file; empty where a rule file cannot say it."""
    unit: str = ""
    variable: str = ""
    """The environment variable that gives it."""
    together: str = ""
    """Other settings that the example needs, as keyword arguments."""


GROUPS: Final[dict[str, dict[str, Entry]]] = {
    "Connection": {
        "url": Entry(
            'url="https://eu1-example.upstash.io"',
            'url = "https://eu1-example.upstash.io"',
            variable="UPSTASH_REDIS_REST_URL, or KV_REST_API_URL",
            together='token="AX…"',
        ),
        "token": Entry(
            'token=os.environ["SHOP_TOKEN"]',
            variable="UPSTASH_REDIS_REST_TOKEN, or KV_REST_API_TOKEN",
            together='url="https://eu1-example.upstash.io"',
        ),
        "redis": Entry("redis=Redis.from_env()"),
        "transport": Entry('transport="httpx"', 'transport = "httpx"'),
        "prefix": Entry('prefix="shop:production"', 'prefix = "shop:production"'),
        "secret": Entry('secret=os.environ["SHOP_SECRET"]'),
        "config": Entry('config="limits.toml"'),
        "enabled": Entry("enabled=False", "enabled = false", variable="UPSTASH_MIDDLEWARE_ENABLED"),
    },
    "Rate limits": {
        "rate_limits": Entry(
            'rate_limits=[RateLimitRule("/api/{rest:path}", "10/10s", by="header:X-API-Key")]',
            '[[rate_limits]]\npath = "/api/{rest:path}"\nlimits = "10/10s"\n'
            'by = "header:X-API-Key"',
            together="default_limit=None",
        ),
        "default_limit": Entry('default_limit="100/minute"', 'default_limit = "100/minute"'),
        "match": Entry('match="all"', 'match = "all"'),
        "remember_denials": Entry(
            "remember_denials=10", "remember_denials = 10", f"{SECONDS}, from 0 to 60"
        ),
        "lease": Entry(
            'lease="1s"',
            'lease = "1s"',
            f"{SECONDS}, at most an hour",
            variable="UPSTASH_MIDDLEWARE_LEASE",
        ),
        "client_ip": Entry("client_ip=1", "client_ip = 1", "proxies, if it is a number"),
        "deny_list": Entry('deny_list="@upstash/ratelimit"', 'deny_list = "@upstash/ratelimit"'),
        "on_denied": Entry(
            'on_denied=lambda request, decision: (429, {"X-Error": "quota"}, "Slow down.")'
        ),
    },
    "Cache: what is stored": {
        "cache": Entry(
            'cache=[CacheRule("/products/{id}", ttl="5 minutes", tags=["product:{id}"])]',
            '[[cache]]\npath = "/products/{id}"\nttl = "5 minutes"\ntags = ["product:{id}"]',
        ),
        "cache_profile": Entry('cache_profile="conforming"', 'cache_profile = "conforming"'),
        "cache_max_body": Entry(
            "cache_max_body=256 * 1024", "cache_max_body = 262144", f"{BYTES}, 1 to 9437184"
        ),
        "cache_grace": Entry('cache_grace="1 day"', 'cache_grace = "1 day"', SECONDS),
        "cache_max_keep": Entry(
            'cache_max_keep="1 day"', 'cache_max_keep = "1 day"', f"{SECONDS}, at least 60 seconds"
        ),
        "cache_targets": Entry(
            'cache_targets=("Shop-CDN-Cache-Control", "CDN-Cache-Control")',
            'cache_targets = ["Shop-CDN-Cache-Control", "CDN-Cache-Control"]',
        ),
        "cache_groups": Entry("cache_groups=False", "cache_groups = false"),
        "cache_ignore_cookies": Entry(
            'cache_ignore_cookies=["visitor_*"]', 'cache_ignore_cookies = ["visitor_*"]'
        ),
        "cache_max_variants": Entry(
            "cache_max_variants=20", "cache_max_variants = 20", f"{_COUNT}, 1 to 1000"
        ),
        "cache_version": Entry('cache_version="2026-11-23"', 'cache_version = "2026-11-23"'),
        "cache_previous_version": Entry(
            'cache_previous_version="2026-11-20"',
            'cache_previous_version = "2026-11-20"',
            together='cache_version="2026-11-23"',
        ),
        "credential_fields": Entry(
            'credential_fields=("X-Company-Token",)',
            'credential_fields = ["X-Company-Token"]',
            variable="UPSTASH_MIDDLEWARE_CREDENTIAL_FIELDS",
        ),
        "reflected_fields": Entry(
            'reflected_fields=("X-Brand",)',
            'reflected_fields = ["X-Brand"]',
            variable="UPSTASH_MIDDLEWARE_REFLECTED_FIELDS",
        ),
        "cache_keys": Entry('cache_keys=[os.environ["SHOP_CACHE_KEY"]]'),
        "cache_encrypt": Entry(
            "cache_encrypt=True",
            "cache_encrypt = true",
            together='cache_keys=[os.environ["SHOP_CACHE_KEY"]]',
        ),
    },
    "Cache: how it works": {
        "cache_refresh": Entry("cache_refresh=False", "cache_refresh = false"),
        "cache_collapse": Entry(
            "cache_collapse=1", "cache_collapse = 1", f"{SECONDS}, from 0 to 60"
        ),
        "cache_lock": Entry("cache_lock=True", "cache_lock = true"),
        "cache_store_first": Entry("cache_store_first=True", "cache_store_first = true"),
        "cache_l1_bytes": Entry(
            "cache_l1_bytes=64 * 1024 * 1024", "cache_l1_bytes = 67108864", BYTES
        ),
        "cache_l1_seconds": Entry(
            "cache_l1_seconds=2", "cache_l1_seconds = 2", f"{SECONDS}, above 0 and at most 60"
        ),
    },
    "Purging": {
        "purge_directories": Entry("purge_directories=True", "purge_directories = true"),
        "purge_path": Entry(
            'purge_path="/internal/purge"',
            'purge_path = "/internal/purge"',
            together='purge_token="a token of 16 characters or more"',
        ),
        "purge_token": Entry(
            'purge_token=os.environ["SHOP_PURGE_TOKEN"]', together='purge_path="/internal/purge"'
        ),
        "on_purge": Entry("on_purge=lambda purge: print(purge.cdn_tags)"),
        "cdn": Entry('cdn="cloudflare"', 'cdn = "cloudflare"'),
    },
    "HTTP sessions": {
        "sessions": Entry(
            'sessions={"https_only": True, "idle_timeout": "30 minutes"}',
            '[sessions]\nhttps_only = true\nidle_timeout = "30 minutes"',
        ),
    },
    "Cached data": {
        "data_l1_bytes": Entry("data_l1_bytes=16 * 1024 * 1024", "data_l1_bytes = 16777216", BYTES),
        "data_l1_seconds": Entry(
            "data_l1_seconds=2", "data_l1_seconds = 2", f"{SECONDS}, above 0 and at most 60"
        ),
    },
    "Failure": {
        "deadline": Entry(
            'deadline="500ms"', 'deadline = "500ms"', f"{SECONDS}, above 0 and at most 60"
        ),
        "cache_deadline": Entry(
            "cache_deadline=0.1", "cache_deadline = 0.1", f"{SECONDS}, above 0 and at most 60"
        ),
        "breaker": Entry("breaker=False", "breaker = false"),
        "breaker_slow": Entry(
            'breaker_slow="250ms"', 'breaker_slow = "250ms"', f"{SECONDS}, above 0 and at most 60"
        ),
    },
    "Observability": {
        "observers": Entry("observers=[PrometheusObserver()]"),
        "analytics": Entry('analytics="@upstash/ratelimit"', 'analytics = "@upstash/ratelimit"'),
        "cache_status_key": Entry("cache_status_key=True", "cache_status_key = true"),
        "cache_debug": Entry('cache_debug=os.environ["SHOP_CACHE_DEBUG"]'),
    },
}

_PAGE: Final = """# Settings

`make docs-tables` writes this page from the code.

Give a setting in one of these places:

| place | framework | example |
| --- | --- | --- |
| keyword argument | all but Django | `UpstashMiddleware(app, deadline=0.5)` |
| `UPSTASH_MIDDLEWARE` in `settings.py` | Django | `UPSTASH_MIDDLEWARE = {{"deadline": 0.5}}` |
| `UPSTASH_MIDDLEWARE` in `app.config` | Flask | `UPSTASH_MIDDLEWARE={{"deadline": 0.5}}` |
| a rule file in TOML, named by [`config`](#config) | all | `deadline = 0.5` |
| an environment variable | all, for some settings | `UPSTASH_REDIS_REST_URL=https://…` |

A setting that is given twice, for instance as an argument and in a rule file, is an error. The
description of a setting says what its environment variable does. An unknown name or a wrong value
is an error when the application starts. The error names the setting, its value and the remedy.

{contents}
{groups}
## Rate-limit rules

Each of [`rate_limits`](#rate_limits) is a `RateLimitRule`, or a mapping with these keys.
`default_limit` also takes a rule, or only its limits. In Python, [every parameter has a
type](reference/rules.md#upstash_middlewareratelimitrule). [Leases](leases.md) have fields too:
`seconds`, `share` and `from_rate`.

{rate_limits}

## Cache rules

Each of [`cache`](#cache) is a `CacheRule`, or a mapping with these keys. The first rule that covers
a request applies.

{cache}

## Session settings

[`sessions`](#sessions) is `True`, a `SessionSettings`, or a mapping with these keys.

{sessions}
"""
_DEFAULTS_IN_WORDS: Final = {
    "by": "`client_ip()`",
    "breaker_slow": "half of [`deadline`](#deadline)",
    "cache_max_body": "`1048576` (1 MiB)",
    "cache_grace": "`3600` (1 hour)",
    "cache_max_keep": "`604800` (7 days)",
}


def settings_page() -> str:
    """Return docs/settings.md."""
    documented = {each.name: each for each in parameters_of(WithSettings)}
    groups, contents = [], []
    for title, entries in GROUPS.items():
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        names = ", ".join(f"[`{name}`](#{name})" for name in entries)
        contents.append((f"[{title}](#{anchor})", names))
        groups.append(f"## {title}\n")
        for name, entry in entries.items():
            groups.append("\n".join(_setting(name, entry, documented[name])))
    return _PAGE.format(
        contents=table(("group", "settings"), contents) + "\n",
        groups="\n".join(groups),
        rate_limits=_fields(RateLimitRule, "rate_limits"),
        cache=_fields(CacheRule, "cache"),
        sessions=_fields(SessionSettings, "sessions"),
    )


def _setting(name: str, entry: Entry, documented: Any) -> Iterator[str]:
    default = _DEFAULTS_IN_WORDS.get(name, f"`{DEFAULTS[name]!r}`")
    places = ["argument", "Django and Flask setting"]
    places += ["TOML"] if entry.toml else []
    places += [f"environment: {entry.variable}"] if entry.variable else []
    rows = [
        ("type", f"`{documented.annotation}`".replace("|", "\\|")),
        *([("unit", entry.unit)] if entry.unit else []),
        ("default", default),
        ("where", "; ".join(places)),
    ]
    yield f"### `{name}`\n"
    yield f"{documented.meaning}\n"
    yield table(("", ""), rows) + "\n"
    yield f"```text\nUpstashMiddleware(app, {entry.example})\n```\n"
    if entry.toml:
        yield f"```text\n# in the rule file\n{entry.toml}\n```\n"


def _fields(rule: type[Any], prefix: str) -> str:
    documented = {each.name: each for each in parameters_of(rule)}
    rows = []
    for each in fields(rule):
        if each.name == "setting":
            continue
        default = "required" if each.required else f"`{each.default!r}`"
        if each.default is NODEFAULT and not each.required:
            default = "`()`"
        default = _DEFAULTS_IN_WORDS.get(each.name, default)
        cells = (f"`{documented[each.name].annotation}`", default, documented[each.name].meaning)
        anchor = f'<a id="{prefix}-{each.name}"></a>`{each.name}`'
        rows.append((anchor, *(cell.replace("|", "\\|") for cell in cells)))
    return table(("field", "type", "default", "meaning"), rows)
