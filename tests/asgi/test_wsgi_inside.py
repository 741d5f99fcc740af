"""A WSGI application inside an ASGI one reads a field with underscores as that with hyphens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from asgiref.wsgi import WsgiToAsgi
from flask import Flask, request
from starlette.testclient import TestClient

from tests.asgi.serving import PATIENCE
from upstash_middleware import CacheRule
from upstash_middleware.asgi import CacheMiddleware

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash


@pytest.mark.parametrize("name", ["x_forwarded_host", "x_api_key", "x_real_ip"])
def test_a_field_with_underscores_poisons_no_page(upstash: LocalUpstash, name: str):
    flask_app = Flask("shop")
    shown = name.replace("_", "-")
    flask_app.add_url_rule("/tea", "tea", lambda: request.headers.get(shown, "nothing"))
    rules = [CacheRule("/tea", ttl=60)]
    app: Any = CacheMiddleware(WsgiToAsgi(flask_app), cache=rules, cache_deadline=PATIENCE)
    client = TestClient(app)
    assert client.get("/tea", headers={name: "evil"}).text == "evil"
    assert client.get("/tea").text == "nothing"
    assert "; hit" in client.get("/tea").headers["cache-status"]
