"""Upstash Redis over HTTP: the names that other parts may use, and nothing else.

Importing this opens nothing and loads no HTTP library; the first call does.
"""

from upstash_middleware.upstash.breaker import Breaker, Change, Closed, Opened
from upstash_middleware.upstash.client import AsyncClient, Client
from upstash_middleware.upstash.credentials import Credentials
from upstash_middleware.upstash.process import OnePerProcess
from upstash_middleware.upstash.protocol import Answer, Call
from upstash_middleware.upstash.sync_token import SyncToken
from upstash_middleware.upstash.transport import AsyncTransport, Transport
from upstash_middleware.upstash.watching import Called, Watch

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncTransport",
    "Breaker",
    "Call",
    "Called",
    "Change",
    "Client",
    "Closed",
    "Credentials",
    "OnePerProcess",
    "Opened",
    "SyncToken",
    "Transport",
    "Watch",
]
