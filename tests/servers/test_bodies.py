"""A body that a limit reads arrives as without the limit, however a real server receives it."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from http.client import HTTPResponse
from typing import TYPE_CHECKING

import pytest

from tests.servers.running import PATIENCE, SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.running import Site

FORM = "Content-Type: application/x-www-form-urlencoded"
HESITATION = 0.2
"""Seconds for which a client waits for 100 Continue (RFC 9110 §10.1.1); not all servers send it."""


def exchanged(site: Site, path: str, fields: str, body: bytes) -> tuple[int, bytes]:
    """Send a request in two pieces; return status and body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {site.framework}.test\r\n{FORM}\r\n{fields}\r\n"
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as connection:
        # A server may answer before it has read a body that its application does not read.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
            if "100-continue" in fields:
                select.select([connection], [], [], HESITATION)
            for piece in (body[: len(body) // 2], body[len(body) // 2 :]):
                connection.sendall(piece)
        with HTTPResponse(connection, method="POST") as response:
            response.begin()
            return response.status, response.read()


def announced(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body)}", body


def continued(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body)}\r\nExpect: 100-continue", body


def chunked(body: bytes) -> tuple[str, bytes]:
    half = len(body) // 2
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b"")]
    return "Transfer-Encoding: chunked", b"".join(chunks)


@pytest.mark.parametrize("sent", [announced, continued, chunked])
@pytest.mark.parametrize("padding", [0, 200_000])
def test_a_body_arrives_under_every_server(
    site: Site,
    sent: Callable[[bytes], tuple[str, bytes]],
    padding: int,
):
    """Of those without Content-Length, some servers and frameworks show none to an application."""
    if sent is chunked and site.server is SERVERS["runserver"]:
        return  # it takes chunks for the next request
    body = b"name=ada&padding=" + b"x" * padding
    (prefix, *_) = [each for each in site.server.takes if site.reaches(f"{each}/login")]
    found = exchanged(site, f"{prefix}/echo", *sent(body))
    assert found == exchanged(site, f"{prefix}/unlimited", *sent(body))
    if sent is announced:
        assert found == (200, body)
