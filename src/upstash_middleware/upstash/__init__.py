"""Upstash Redis over HTTP: the names that other parts of this package may use.

Importing this opens no connection and loads no HTTP library; the first call does.
"""

from upstash_middleware.upstash.client import (
    AsyncClient,
    Breaker,
    Called,
    Client,
    SyncToken,
    Watch,
    own_client,
)
from upstash_middleware.upstash.credentials import Credentials
from upstash_middleware.upstash.process import OnePerProcess
from upstash_middleware.upstash.protocol import Call, Response
from upstash_middleware.upstash.transport import AsyncTransport, Transport

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "Breaker",
    "Call",
    "Called",
    "Client",
    "Credentials",
    "OnePerProcess",
    "Response",
    "SyncToken",
    "Transport",
    "Watch",
    "own_client",
]
