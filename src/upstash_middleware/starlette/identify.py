"""Whose quota it is, in Starlette's words; it imports no Starlette."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.identify import Identifier

if TYPE_CHECKING:
    from upstash_middleware.messages import Request


def user(request: Request) -> Identifier | None:
    """Identify by the user whom Starlette's AuthenticationMiddleware has found: ``by=user``.

    Its ``identity``, or where the class has none, its ``display_name``; None for visitors who are
    not authenticated, so that the address counts. Raises LookupError where no
    AuthenticationMiddleware stands outside of the limit.
    """
    if "user" not in request.native:
        raise LookupError("by=user: put Starlette's AuthenticationMiddleware outside of the limit")
    known = request.native["user"]
    if not known.is_authenticated:
        return None
    try:
        name = known.identity
    except NotImplementedError:  # as in starlette.authentication.SimpleUser
        name = known.display_name
    return Identifier("user", str(name))
