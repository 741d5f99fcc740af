"""Upstash on your own machine: its REST interface over an embedded Valkey, or over any Redis."""

from upstash_middleware.local.billing import Bill
from upstash_middleware.local.faults import Fault, Faults
from upstash_middleware.local.server import LocalUpstash
from upstash_middleware.local.testing import local_upstash
from upstash_middleware.local.valkey import LocalUpstashError

__all__ = ["Bill", "Fault", "Faults", "LocalUpstash", "LocalUpstashError", "local_upstash"]
