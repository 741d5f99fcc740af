"""Partial responses put together (RFC 9111 §3.4); values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.entries import Damaged, body_of
from upstash_middleware.core.cache.fields import is_strong
from upstash_middleware.core.cache.ranges import Part, part_held
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse


def combined(held: StoredResponse, received: StoredResponse, largest: int) -> StoredResponse | None:
    """Return one response for a stored part and a part received later, None where it cannot be.

    They share a strong ETag, and touch or overlap. What they make is whole, a 200, where it has
    all bytes, and otherwise a greater part. ``largest`` are the bytes that it may have.
    """
    older, newer = part_held(held.headers), part_held(received.headers)
    if older is None or newer is None or not _same_representation(held, received):
        return None
    span = _span(older, newer)
    if span is None or span.last - span.first >= largest:
        return None
    try:
        body = _joined(older, body_of(held), newer, body_of(received))
    except Damaged:
        return None
    if len(body) != span.last - span.first + 1:
        return None
    headers = held.headers.without(*received.headers.names()).adding(*received.headers.raw)
    if span.is_whole:
        status, headers = 200, headers.without("content-range")
    else:
        status, headers = 206, headers.setting("content-range", str(span))
    headers = headers.setting("content-length", str(len(body)))
    return replace(received, status=status, headers=headers, packed=body, length=len(body))


def _same_representation(held: StoredResponse, received: StoredResponse) -> bool:
    etag = received.headers.get("etag")
    return etag is not None and is_strong(etag) and held.headers.get("etag") == etag


def _span(older: Part, newer: Part) -> Part | None:
    """Return what two parts span, None where they leave a gap or are of different wholes."""
    total = newer.total if newer.total is not None else older.total
    if older.total not in {None, total}:
        return None
    if max(older.first, newer.first) > min(older.last, newer.last) + 1:
        return None
    return Part(min(older.first, newer.first), max(older.last, newer.last), total)


def _joined(older: Part, old: bytes, newer: Part, new: bytes) -> bytes:
    """Return the bytes of both, the newer ones where they overlap."""
    before = old[: max(0, newer.first - older.first)]
    after = old[max(0, newer.last + 1 - older.first) :]
    return before + new + after
