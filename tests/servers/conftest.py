"""Each application under each server that serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers.running import SERVERS, Running, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

SITES = [(framework, name) for name, server in SERVERS.items() for framework in server.frameworks]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Keep the tests of one server together, in all files, since starting it takes a second.

    pytest groups tests by their parameters of the session, by the last of them first.
    """
    if "site" in metafunc.fixturenames:
        ids = [f"{name}-{framework}" for framework, name in SITES]
        metafunc.parametrize(("framework", "server_name"), SITES, ids=ids, scope="session")


@pytest.fixture(scope="session")
def running(upstash_server: LocalUpstash) -> Iterator[Running]:
    """Start servers as they are asked for."""
    found = Running(upstash_server.env)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def site(framework: str, server_name: str, running: Running) -> Site:
    """Each application under each server that serves it."""
    server = SERVERS[server_name]
    return Site(server, framework, running.port_of(server))


@pytest.fixture(autouse=True)
def _empty(upstash: LocalUpstash) -> None:
    """Begin with nothing counted or stored."""
