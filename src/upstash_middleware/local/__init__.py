"""Upstash on your own machine: its REST interface over an embedded Valkey, or over any Redis.

Only the public names may live here.
"""

try:
    import httptools as _httptools  # noqa: F401 - only to say early what is missing
except ImportError as _missing:
    raise ImportError(
        'upstash_middleware.local needs its extra: pip install "upstash-middleware[local]"'
    ) from _missing

from upstash_middleware.local.bill import Bill
from upstash_middleware.local.errors import LocalUpstashError
from upstash_middleware.local.server import LocalUpstash
from upstash_middleware.local.weather import Fault, Weather

__all__ = ["Bill", "Fault", "LocalUpstash", "LocalUpstashError", "Weather"]
