"""Whose quota it is, in Django's words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.identify import Identifier

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from upstash_middleware.messages import Request


def user(request: Request) -> Identifier | Awaitable[Identifier | None] | None:
    """Identify by the user of ``django.contrib.auth``: ``by=user``.

    By primary key; None for visitors who are not authenticated, so that the address counts.
    Raises LookupError where AuthenticationMiddleware does not stand above the limit.
    """
    known = request.native
    if not hasattr(known, "user"):
        raise LookupError("by=user: AuthenticationMiddleware should stand above the limit")
    if _on_an_event_loop():
        return _asked(known)
    return _identified(known.user)


async def _asked(request: Any) -> Identifier | None:
    return _identified(await request.auser())


def _on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _identified(user: Any) -> Identifier | None:
    return Identifier("user", str(user.pk)) if user.is_authenticated else None
