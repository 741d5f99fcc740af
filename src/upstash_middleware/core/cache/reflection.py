"""Unkeyed inputs: request fields that change a response without selecting it; rules only.

Frameworks build links from X-Forwarded-Host and its kin. They are no part of a cache key, so
whoever sends a false one could have it served to everybody. RFC 9111 §7.1 names the attack;
the profile ``safe`` refuses to store what reflects one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upstash_middleware.messages import Headers, Request

_HOSTS_AND_PATHS = (
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
)
_SCHEMES = ("x-forwarded-proto", "x-forwarded-scheme")
_HOST_OF_FORWARDED = re.compile(r'host="?([^;,"]+)', re.IGNORECASE)


def reflected(
    request: Request, vary: Sequence[str], headers: Headers, body: bytes = b""
) -> str | None:
    """Return the unkeyed input that a response reflects, None if it reflects none.

    A field that Vary names selects the response, so it may shape it.
    """
    for name, value in _inputs(request, vary):
        if not value or value in {request.host, "/"}:
            continue
        needle = value.encode("latin-1")
        if needle in body or any(needle in line for _, line in headers.raw):
            return name
    location = headers.get("location") or ""
    for name in _SCHEMES:
        value = (request.headers.get(name) or "").strip().lower()
        other = value and value != request.scheme and name not in vary
        if other and location.lower().startswith(f"{value}:"):
            return name
    return None


def _inputs(request: Request, vary: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return the values of fields that a response could have taken for its own address."""
    for name in _HOSTS_AND_PATHS:
        if name in request.headers and name not in vary:
            for line in request.headers.lines(name):
                yield from ((name, value) for value in map(str.strip, line.split(",")))
    if "forwarded" in request.headers and "forwarded" not in vary:
        for line in request.headers.lines("forwarded"):
            yield from (("forwarded", value) for value in _HOST_OF_FORWARDED.findall(line))
