"""Django signals for a project's receivers."""

from django.dispatch import Signal

rate_limited: Signal = Signal()
"""A limit has denied a request, in the middleware or in a decorator of a view.

The arguments are ``request``, the HttpRequest, and ``decision``, the Decision that denied it;
``sender`` is the request's class. On an event loop it is sent from a thread, so that receivers
may use the database; they may also be async. If a receiver raises, Django logs the exception.
"""
