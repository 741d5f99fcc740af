"""The wire is loaded at the first call, by a thread that may soon end; in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

_EACH_CALL_IN_A_THREAD_THAT_ENDS = """
import os, threading
from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.upstash import Client, Credentials

client = Client(Credentials.find(url=None, token=None, redis=None, environ=os.environ), deadline=5)
pipeline = Pipeline((Command(("INCR", "calls")),))
replies = []
for _ in range(50):
    thread = threading.Thread(target=lambda: replies.extend(client.execute(pipeline)))
    thread.start()
    thread.join()
print(replies[-1])
"""


def test_a_first_use_in_a_thread_that_ends_leaves_the_client_usable(upstash: LocalUpstash):
    """Where each request has a thread of its own, such a thread is the first to come here."""
    result = subprocess.run(
        [sys.executable, "-c", _EACH_CALL_IN_A_THREAD_THAT_ENDS],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, "50\n"), result.stderr
