"""A Django project with nothing in it, configured once for a process; tests override settings.

Importing this configures Django. Views are functions given to ``urls``, settings are given to
``override_settings``; neither lives here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.urls import path, re_path
from django.utils import translation
from django.utils.translation import trans_null

if TYPE_CHECKING:
    from collections.abc import Callable

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["upstash_middleware.django"],
        LOGGING_CONFIG=None,
        MIDDLEWARE=[],
        REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": [], "UNAUTHENTICATED_USER": None},
        ROOT_URLCONF="",
        SECRET_KEY="for tests alone",
    )
    django.setup()
    # Each function of Django's is chosen at its first call, and not again: not in a test that is
    # without USE_I18N.
    for name in vars(trans_null):
        getattr(vars(translation)["_trans"], name, None)


class Urls:
    """A URL configuration as an object, for ``ROOT_URLCONF``."""

    def __init__(self, **views: Callable[..., Any]) -> None:
        """Give each view the path of its name; ``anything`` gets every other path."""
        anything = views.pop("anything", None)
        self.urlpatterns = [path(name, view) for name, view in views.items()]
        if anything is not None:
            self.urlpatterns.append(re_path("", anything))
