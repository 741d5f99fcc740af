"""Django's own tests of session backends, on this package's engine and middleware.

A label of Django's suite: the classes of ``sessions_tests`` are run again with another backend, in
one mode. Left out are, each with its reason: what tests the tables, files and caches of Django's
backends (the classes that are not named here), and the tests that are skipped below.
"""

from __future__ import annotations

from typing import Any
from unittest import mock, skip

import around

if around.run.mode == "cache":
    from django.contrib.sessions.middleware import SessionMiddleware as DjangosSessionMiddleware
    from django.test import SimpleTestCase, override_settings
    from sessions_tests import tests  # type: ignore[import-not-found] # of Django's sdist

    from upstash_middleware.django import SessionMiddleware
    from upstash_middleware.django.sessions import SessionStore

    ENGINE = override_settings(SESSION_ENGINE="upstash_middleware.django.sessions")

    class UpstashSessionTests(tests.SessionTestsMixin, SimpleTestCase):  # type: ignore[misc]
        """The interface of session backends."""

        backend = SessionStore

    @override_settings(USE_TZ=True)
    class UpstashSessionWithTimeZoneTests(UpstashSessionTests):
        """The same with time zones."""

    @ENGINE
    class WithDjangosMiddlewareTests(tests.SessionMiddlewareTests):  # type: ignore[misc]
        """Requests with Django's own middleware."""

        middleware: Any = DjangosSessionMiddleware

        def setUp(self) -> None:
            super().setUp()
            patched = mock.patch.object(tests, "SessionMiddleware", self.middleware)
            self.enterContext(patched)

        @skip("It reads the session from the database.")
        def test_empty_session_saved(self) -> None:
            pass

    class WithOurMiddlewareTests(WithDjangosMiddlewareTests):
        """Requests with this package's middleware."""

        middleware = SessionMiddleware

        @skip("The timeout and the cookie are renewed once in a twentieth of SESSION_COOKIE_AGE.")
        def test_save_every_request_with_non_empty_session_renews_session_cookie(self) -> None:
            pass
