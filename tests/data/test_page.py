"""The page about data: its Python runs, block after block."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tests.docs.pages import ROOT, blocks

if TYPE_CHECKING:
    import pytest

    from upstash_middleware.local import LocalUpstash


def test_its_python_runs(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch):
    page = ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", page)
    for block in blocks(ROOT / "docs/data.md"):
        if block.language == "python":
            is_application = "\napp = " in block.text
            own: dict[str, Any] = {"__name__": "shop"} if is_application else vars(page)
            exec(compile(block.text, str(block), "exec", dont_inherit=True), own)
            if "app" in own:
                client = own["app"].test_client()
                assert client.get("/products/7").text == "700 cents"
                assert client.post("/products/7").text == "changed"
