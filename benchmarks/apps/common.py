"""What the applications share: where their stores are, the bodies they answer, the quotas.

The quota is one that no run uses up, and the same everywhere, but for the rows that are denied.
"""

from __future__ import annotations

import os
import random
from typing import Any

from upstash_middleware import CacheRule

ROW = os.environ["BENCH_ROW"]
UPSTASH = {"url": os.environ["UPSTASH_REDIS_REST_URL"], "token": "benchmark"}
REDIS_URL = os.environ["BENCH_REDIS_URL"]
REDIS_PORT = int(REDIS_URL.rpartition(":")[2].partition("/")[0])

QUOTA, WINDOW = 1_000_000_000, 3600
LIMIT = f"{QUOTA}/hour"
THREE_LIMITS = f"{QUOTA}/hour; {QUOTA}/day; {QUOTA}/minute"

_WORDS = [f"{number * 2654435761 % 1_000_003:x}" for number in range(1000)]
_TEXT = " ".join(random.Random(1).choices(_WORDS, k=200)).encode()
KILOBYTE = _TEXT[:1024]
BODIES = {"/": b"ok", "/1k": KILOBYTE}

FIXED_WINDOW = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return count
"""
"""The least that a hand-written limiter runs on Redis."""

SECRET = "of the benchmark"
SESSION = {"user": 7, "name": "ada lovelace", "cart": [{"product": 7, "count": 1}]}
"""What the session of each visitor contains."""

CACHED = [CacheRule("/{rest:path}", ttl=3600)]

OURS: dict[str, dict[str, Any]] = {
    "one limit": {"default_limit": LIMIT},
    "one limit with a lease": {"default_limit": f"{LIMIT} lease 1s"},
    "three limits": {"default_limit": THREE_LIMITS},
    "blocked": {"default_limit": "1/hour"},
    "cache": {"cache": CACHED},
    "cache with L1": {"cache": CACHED, "cache_l1_bytes": 4 * 1024 * 1024, "cache_l1_seconds": 60},
    "limit and cache": {"default_limit": LIMIT, "cache": CACHED},
    "data": {"default_limit": None},
    "session": {"sessions": {"secret_key": SECRET}},
    "limit and session": {"default_limit": LIMIT, "sessions": {"secret_key": SECRET}},
}
"""This package's settings by what the row shows."""


def ours() -> dict[str, Any]:
    """Return the row's arguments for this package's middleware."""
    framework, _, what = ROW.partition(": ")
    # All rows share one store and one host name: a page of another framework's is none of ours.
    prefix = f"upstash-middleware-{framework.lower().replace(' ', '-')}"
    return {**OURS[what], **UPSTASH, "prefix": prefix}
