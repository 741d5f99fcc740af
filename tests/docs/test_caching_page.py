"""What docs/caching.md says of its own application is what that does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from tests.docs.pages import ROOT, blocks, prose
from upstash_middleware.core.cache.entries import MAX_TAGS
from upstash_middleware.core.cache.rules import SUCCESSFUL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

PAGE = ROOT / "docs" / "caching.md"


@pytest.fixture
def client(upstash: LocalUpstash) -> Iterator[TestClient]:
    block = next(block for block in blocks(PAGE) if "app.add_middleware" in block.text)
    names: dict[str, Any] = {"__name__": "documented"}
    text = block.text.replace("    CacheMiddleware,\n", "    CacheMiddleware, cache_deadline=20,\n")
    exec(compile(text, str(block), "exec"), names)
    with TestClient(names["app"]) as client:
        yield client


def status(client: TestClient, path: str) -> str:
    """Return what Cache-Status says after our name."""
    return client.get(path).headers["cache-status"].partition("; ")[2]


def test_its_application_caches_and_purges(client: TestClient):
    """The words of Cache-Status are those of the page's table."""
    assert status(client, "/products/7") == "fwd=uri-miss; stored"
    assert re.fullmatch(r"hit; ttl=(59|60)", status(client, "/products/7"))
    client.post("/products/7/edit")
    assert status(client, "/products/7") == "fwd=uri-miss; stored"
    assert status(client, "/account") == 'fwd=uri-miss; detail="private"'
    assert status(client, "/nowhere") == 'fwd=uri-miss; detail="no freshness lifetime"'


def test_its_numbers_are_the_codes():
    """Statuses that a rule's ttl is for, and the bound on tags."""
    text = " ".join(prose(PAGE).split())
    *most, last = sorted(SUCCESSFUL)
    assert f"{', '.join(map(str, most))} and {last}" in text
    assert f"more than {MAX_TAGS} tags is not stored" in text
