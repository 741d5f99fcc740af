"""What makes tests independent of the machine's speed: long deadlines, windows just begun.

And what makes them quicker: one authority in place of all that certifi knows.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import pytest

from upstash_middleware import settings

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

_FOLDER = Path(__file__).parent / "patient"
_DEADLINE_SECONDS = 20.0

# For each of its clients httpx reads every authority that certifi knows, which takes 60 ms. No test
# calls a server elsewhere, so one authority is enough, here and in the processes that tests start.
_END = b"-----END CERTIFICATE-----\n"
_authority = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - until the process ends
_authority.write(certifi.contents().encode().partition(_END)[0] + _END)
_authority.flush()
os.environ["SSL_CERT_FILE"] = _authority.name
ONE_AUTHORITY: ssl.SSLContext = ssl.create_default_context(cafile=_authority.name)
"""For ``verify`` of clients with ``trust_env=False``, which read no variables."""


@pytest.fixture(autouse=True)
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every call to Upstash 20 seconds, unless a test sets a deadline itself."""
    for name in ("deadline", "cache_deadline"):
        monkeypatch.setitem(settings.DEFAULTS, name, _DEADLINE_SECONDS)


@pytest.fixture
def upstash(upstash: LocalUpstash) -> LocalUpstash:
    """The local Upstash a second into a minute, so that no window begins or ends in the test.

    The process may set its clock back by some milliseconds when it has seen the server's.
    """
    upstash.advance(61 - time.time() % 60)
    return upstash


def patient_environment() -> dict[str, str]:
    """Return the environment of a process in which calls to Upstash have 20 seconds too."""
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{_FOLDER}{os.pathsep}{path}" if path else str(_FOLDER)}
