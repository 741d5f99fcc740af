"""The cache half of the engine: a shared HTTP cache (RFC 9111) over Redis; its public names."""

from upstash_middleware.core.cache.cache import Cache
from upstash_middleware.core.cache.rules import CacheRule, rule_from_mapping
from upstash_middleware.core.cache.store import Purge

__all__ = ["Cache", "CacheRule", "Purge", "rule_from_mapping"]
