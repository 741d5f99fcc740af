"""Which view a request will be routed to, asked before Flask routes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException

from upstash_middleware.handlers import any_exempt, is_exempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from upstash_middleware.messages import Request


def is_exempt_view(view: object) -> bool:
    """Whether a view, or the class that it was made of, is marked by ``exempt``."""
    return is_exempt(view) or is_exempt(getattr(view, "view_class", None))


def exempts(app: Flask) -> Callable[[Request], bool]:
    """Return what tells whether an application's view for a request is exempt.

    Costs nothing in a process where none is.
    """

    def is_exempt_request(request: Request) -> bool:
        if not any_exempt():
            return False
        adapter = app.create_url_adapter(app.request_class(request.native))
        if adapter is None:
            return False
        try:
            endpoint, _ = adapter.match()
        except HTTPException:  # no route, another method, or a redirect
            return False
        return is_exempt_view(app.view_functions.get(endpoint))

    return is_exempt_request
