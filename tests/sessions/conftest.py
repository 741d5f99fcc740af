"""Fixtures of the tests of sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sessions.site import Browser, Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.local import LocalUpstash


@pytest.fixture
def site_with(upstash: LocalUpstash) -> Callable[..., Site]:
    """Make a site with these settings."""

    def make(**settings: Any) -> Site:
        return Site(upstash, **settings)

    return make


@pytest.fixture
def site(upstash: LocalUpstash) -> Site:
    return Site(upstash)


@pytest.fixture
def browser(site: Site) -> Browser:
    return site.browser()
