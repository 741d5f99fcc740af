"""Django signals, to which a project can connect receivers; nothing else is here."""

from django.dispatch import Signal

rate_limited: Signal = Signal()
"""A limit has stopped a request, in the middleware or in front of a view.

Sent with ``request``, the HttpRequest, and ``decision``, the Decision that stopped it; ``sender``
is HttpRequest's class. On an event loop it is sent from a thread, so that receivers may use the
database; they may be async, too. One that raises is logged by Django and stops nothing.
"""
