"""`local_upstash`: a local server for a test, for any test runner."""

from __future__ import annotations

import atexit
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from upstash_middleware import clock
from upstash_middleware.local.server import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Iterator

_servers: dict[int, LocalUpstash] = {}
"""This process's server by process id, because a forked process inherits no running server."""


def server_for_tests() -> LocalUpstash:
    """The server that all tests of this process share; it is started on first use.

    A middleware keeps the URL that it found in the environment, so an application that is shared by
    all tests needs a server that is shared by all tests.
    """
    server = _servers.get(os.getpid())
    if server is None:
        server = LocalUpstash()
        server.start()
        _servers[os.getpid()] = server
        atexit.register(server.stop)
    return server


@contextmanager
def local_upstash() -> Iterator[LocalUpstash]:
    """A local Upstash for a test: empty, with a bill of zero, and URL and token in the environment.

    At the end, time and environment are restored. The server itself is started once for all
    tests of the process, and stops when the process ends::

        class LoginTests(TestCase):
            def setUp(self):
                self.upstash = self.enterContext(local_upstash())

    Raises:
        LocalUpstashError: No Valkey is available.
    """
    server = server_for_tests()
    server.set_faults()
    server.flush()
    server.reset_bill()
    clock.forget()
    before = {name: os.environ.get(name) for name in server.env}
    os.environ.update(server.env)
    try:
        yield server
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.restore_time()
