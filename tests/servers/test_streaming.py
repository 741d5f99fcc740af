"""A body that is too large to be stored streams through a real server without waiting."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.servers.running import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.running import Site


def test_the_first_bytes_of_a_large_body_arrive_before_the_last_are_produced(
    site: Site, tmp_path: Path
) -> None:
    marker = tmp_path / "the first bytes are there"
    (prefix, *_) = [each for each in site.server.takes if site.reaches(f"{each}/login")]
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE)
    try:
        fields = {"Host": f"{site.framework}.test"}
        connection.request("GET", f"{prefix}/large?marker={quote(str(marker))}", headers=fields)
        response = connection.getresponse()
        assert response.status == 200
        assert "fwd=uri-miss" in (response.getheader("Cache-Status") or "")
        assert response.read(1) == b"x"
        marker.touch()
        assert response.read() == b"x" * 19_999 + b"last"
    finally:
        connection.close()
