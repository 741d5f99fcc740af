"""The application for ``INSTALLED_APPS``; it only registers the system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from upstash_middleware.django.checks import (
    check_caches,
    check_client_address,
    check_credentials,
    check_denied_view,
    check_middleware,
    check_paths,
    check_sessions,
    check_settings,
)

TAG = "upstash_middleware"


class UpstashMiddlewareConfig(AppConfig):
    """``upstash_middleware.django``; its label is not ``django``, which would be ambiguous."""

    name: str = "upstash_middleware.django"
    label = "upstash_middleware"
    verbose_name: str = "Upstash middleware"

    def ready(self) -> None:
        """Register the system checks with their own tag."""
        checks.register(check_settings, TAG)
        checks.register(check_middleware, TAG)
        checks.register(check_client_address, TAG)
        checks.register(check_caches, TAG)
        checks.register(check_paths, TAG)
        checks.register(check_sessions, TAG)
        checks.register(check_denied_view, TAG)
        checks.register(check_credentials, TAG, deploy=True)
