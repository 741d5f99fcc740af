"""Signals in Flask's sense, and how they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blinker import NamedSignal, Namespace

from upstash_middleware.events import UserCodeFailed

if TYPE_CHECKING:
    from flask import Flask

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.gateway import Gateway

rate_limited: NamedSignal = Namespace().signal(
    "rate-limited",
    """A limit has stopped a request, in front of the application or of a view.

    Sent with ``decision``, the Decision that stopped it, by the application; ``flask.request`` is
    the request. A receiver that raises is told to the observers and stops nothing.
    """,
)


def send_rate_limited(app: Flask, gateway: Gateway, decision: Decision) -> None:
    """Tell the receivers of a denial, each whatever befalls the others.

    Needs a request context.
    """
    if not rate_limited.receivers:
        return
    for receiver in rate_limited.receivers_for(app):
        try:
            app.ensure_sync(receiver)(app, decision=decision)
        except Exception as error:  # noqa: BLE001 - it is the application's, and the denial stands
            gateway.observe(UserCodeFailed("a receiver of rate_limited", error))
