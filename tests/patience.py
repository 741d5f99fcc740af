"""Long deadlines by default: a machine under load is no outage."""

from __future__ import annotations

import pytest

from upstash_middleware import settings


@pytest.fixture(autouse=True)
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every call to Upstash 20 seconds, unless a test sets a deadline itself."""
    for name in ("deadline", "cache_deadline"):
        read, _ = settings._SETTINGS[name]
        monkeypatch.setitem(settings._SETTINGS, name, (read, 20.0))
