"""The contract's backends, for the faults: every test that asks for ``serve`` runs in each."""

from __future__ import annotations

from tests.contract.conftest import backend, serve

__all__ = ["backend", "serve"]
