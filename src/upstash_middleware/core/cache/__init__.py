"""The cache part of the engine, a shared HTTP cache (RFC 9111) on Redis: its public names.

They are imported at the first use, because a process that only has limits needs few of the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upstash_middleware.core.cache.cache import Cache
    from upstash_middleware.core.cache.rules import CacheRule, rule_from_mapping
    from upstash_middleware.core.cache.store import Purge

__all__ = ["Cache", "CacheRule", "Purge", "rule_from_mapping"]

_MODULES = {"Cache": "cache", "CacheRule": "rules", "Purge": "store", "rule_from_mapping": "rules"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - slow to import itself

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
