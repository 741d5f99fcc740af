"""Rules from plain data: a mapping of Django's settings, Flask's config, or a TOML table.

Only the names of things are resolved here; the values are checked where rules are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from upstash_middleware.core.identify import (
    PLATFORMS,
    AnyExtractor,
    client_ip,
    cookie,
    header,
    query,
)
from upstash_middleware.core.ratelimit.rules import RateLimitRule
from upstash_middleware.errors import ConfigurationError

_KEYS = (
    "path",
    "limits",
    "methods",
    "by",
    "name",
    "on_error",
    "cost",
    "when",
    "allow",
    "deny",
    "shadow",
    "shared_prefix",
    "local_share",
    "settle",
    "challenge",
    "dynamic",
    "hosts",
    "bucket",
    "jitter",
    "deadline",
)


def rule_from_mapping(mapping: Mapping[str, Any], setting: str = "rate_limits[0]") -> RateLimitRule:
    """Return the rule that a mapping describes.

    ``setting`` says where the mapping stands, for messages. ``by`` may be a name:
    ``"client_ip"``, ``"client_ip:2"`` (trusted hops), ``"client_ip:vercel"`` (a platform),
    ``"header:X-API-Key"``, ``"cookie:NAME"``, ``"query:NAME"``.
    Raises ConfigurationError, naming the setting, the value and what would be right.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{setting} = {mapping!r}: a rule is a mapping or a RateLimitRule")
    values = dict(mapping)
    for key in values:
        if key not in _KEYS:
            raise ConfigurationError(
                f"{setting}.{key}: there is no such setting; a rule has {', '.join(_KEYS)}"
            )
    if "limits" not in values:
        raise ConfigurationError(f"{setting}.limits is missing; write for instance '10/10s'")
    if isinstance(values.get("by"), str):
        values["by"] = _extractor(values["by"], f"{setting}.by")
    return RateLimitRule(**values, setting=setting)


def _extractor(text: str, setting: str) -> AnyExtractor:
    name, _, argument = text.partition(":")
    make = _EXTRACTORS.get(name)
    if make is None or (not argument and name != "client_ip"):
        raise ConfigurationError(
            f"{setting} = {text!r}: write 'client_ip', 'client_ip:HOPS', 'client_ip:PLATFORM' "
            f"(one of {', '.join(PLATFORMS)}), 'header:NAME', 'cookie:NAME' or 'query:NAME', "
            "or give a function"
        )
    try:
        return make(argument)
    except ConfigurationError as error:
        raise ConfigurationError(f"{setting} = {text!r}: {error}") from None


def _client_ip(argument: str) -> AnyExtractor:
    if argument.isdecimal():
        return client_ip(trusted_hops=int(argument))
    return client_ip(platform=argument) if argument else client_ip()


_EXTRACTORS: dict[str, Callable[[str], AnyExtractor]] = {
    "client_ip": _client_ip,
    "header": header,
    "cookie": cookie,
    "query": query,
}
