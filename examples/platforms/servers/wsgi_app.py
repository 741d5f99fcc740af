"""A Flask application for gunicorn or granian with several workers, behind one proxy."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, g

from upstash_middleware import CacheRule
from upstash_middleware.flask import UpstashMiddleware, purge

app = Flask(__name__)
UpstashMiddleware(
    app,
    client_ip=1,
    default_limit="log 30/hour",
    cache=[CacheRule("/page", ttl=60)],
)


@app.get("/limited")
def limited() -> dict[str, Any]:
    """Tell whom the request counts for, and which process has answered."""
    return {"identifier": g.rate_limit.identifier, "process": os.getpid()}


@app.get("/page")
def page() -> tuple[str, dict[str, str]]:
    """Render a page, and tell where."""
    return f"rendered in {os.getpid()}", {"Content-Type": "text/plain"}


if os.environ.get("PURGE_AT_START"):
    # With --preload, this runs in the parent process, before the workers are forked.
    with app.app_context():
        purge(everything=True)
