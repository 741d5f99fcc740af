"""The CDNs of docs/how-to/cdn.md, played by a Varnish that reads their fields and by their APIs."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from examples.demo.servers import free_port
from tests.docs.following import environment, write
from tests.docs.pages import ROOT, blocks
from tests.patience import patient_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from upstash_middleware.local import LocalUpstash

# Varnish is installed by `make test-all`.
pytestmark = pytest.mark.slow

PATIENCE = 60.0
FIELDS = {
    "fastly": ("Surrogate-Key", "Surrogate-Control"),
    "cloudflare": ("Cache-Tag", "Cloudflare-CDN-Cache-Control"),
    "vercel": ("Vercel-Cache-Tag", "Vercel-CDN-Cache-Control"),
    "varnish": ("Surrogate-Key", "Surrogate-Control"),
}
CALLS = {
    "fastly": ("/service/shop/purge", "fastly-key", "token", "surrogate_keys"),
    "cloudflare": ("/zones/shop/purge_cache", "authorization", "Bearer token", "tags"),
    "vercel": (
        "/v1/edge-cache/dangerously-delete-by-tags?projectIdOrName=shop",
        "authorization",
        "Bearer token",
        "tags",
    ),
}


@dataclass
class Front:
    """A Varnish in front of the application, and the API that purges it."""

    port: int
    calls: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    status: int = 200

    def request(self, method: str, path: str, **fields: str) -> tuple[int, dict[str, str], str]:
        """Send a request to the CDN; return status, header fields in lower case, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, headers={"Host": "shop.example", **fields})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[bool, str]:
        """Return whether the CDN answered by itself, and the body."""
        status, headers, body = self.request("GET", path)
        assert status == 200
        return len(headers["x-varnish"].split()) == 2, body


def api(front: Front) -> type[BaseHTTPRequestHandler]:
    """Return the API of all vendors: it purges from Varnish what a call names."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fields = {name.lower(): value for name, value in self.headers.items()}
            front.calls.append((self.path, fields, body))
            if front.status == 200:
                tags = "|".join(map(re.escape, body.get("surrogate_keys") or body["tags"]))
                front.request("BAN", "/", **{"X-Tags": rf"(^|[\s,])({tags})([\s,]|$)"})
            self.send_response(front.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def process(command: list[str], port: int, **options: Any) -> Iterator[None]:
    """Run a server until the end of the block."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.connect()
            except OSError:
                assert running.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.05)
            else:
                break
            finally:
                connection.close()
        yield
    finally:
        running.terminate()
        running.wait(PATIENCE)


@pytest.fixture(params=FIELDS)
def cdn(request: pytest.FixtureRequest) -> str:
    """Each CDN of the page."""
    name: str = request.param
    return name


@pytest.fixture
def front(cdn: str, tmp_path: Path, upstash: LocalUpstash) -> Iterator[Front]:
    """The application of the page, behind its CDN."""
    for block in blocks(ROOT / "docs/how-to/cdn.md"):
        if block.file is not None:
            write(block, tmp_path)
    application, varnish = free_port(), free_port()
    front = Front(varnish)
    tags, control = FIELDS[cdn]
    vcl = (tmp_path / "default.vcl").read_text().partition("\n")[2]
    for old, new in (("8000", str(application)), ("Surrogate-Key", tags)):
        vcl = vcl.replace(old, new)
    (tmp_path / "default.vcl").write_text(vcl.replace("Surrogate-Control", control))
    server = ThreadingHTTPServer(("127.0.0.1", 0), api(front))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "CDN": cdn,
        **{f"{vendor}_URL": base for vendor in ("FASTLY", "CLOUDFLARE", "VERCEL")},
        "VARNISH_URL": f"http://127.0.0.1:{varnish}",
        **dict.fromkeys(("FASTLY_SERVICE_ID", "CLOUDFLARE_ZONE_ID", "VERCEL_PROJECT"), "shop"),
        **{f"{vendor}_API_TOKEN": "token" for vendor in ("FASTLY", "CLOUDFLARE", "VERCEL")},
    }
    environ = environment() | patient_environment() | upstash.env | settings
    uvicorn = [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(application)]
    listen, vcl_file = f"127.0.0.1:{varnish}", str(tmp_path / "default.vcl")
    varnishd = [
        "varnishd",
        "-j",
        "none",
        "-F",
        "-a",
        listen,
        "-f",
        vcl_file,
        "-n",
        str(tmp_path / "varnish"),
    ]
    with (
        process([*uvicorn, "--log-level", "error"], application, cwd=tmp_path, env=environ),
        process([*varnishd, "-s", "malloc,10m"], varnish),
    ):
        yield front
    server.shutdown()
    server.server_close()


def test_a_page_is_kept_by_the_cdn_until_it_is_purged_there_too(front: Front, cdn: str):
    """By the tags that it was sent with, and no other page; its visitors see none of that."""
    _, first = front.get("/products/7")
    front.get("/products/8")
    assert front.get("/products/7") == (True, first)
    status, headers, _ = front.request("GET", "/products/7")
    assert {tags.lower() for tags in FIELDS[cdn]}.isdisjoint(headers)
    assert headers["cache-control"] == "max-age=0, must-revalidate"
    assert front.request("PUT", "/products/7")[::2] == (200, "edited\n")
    hit, second = front.get("/products/7")
    assert (status, hit, second == first) == (200, False, False)
    assert front.get("/products/7") == (True, second)
    assert front.get("/products/8")[0], "another page stays"
    if cdn in CALLS:
        path, name, token, key = CALLS[cdn]
        ((called, fields, body),) = front.calls
        assert (called, fields[name], body) == (path, token, {key: ["product:7"]})


@pytest.mark.parametrize("cdn", ["fastly"], indirect=True)
def test_a_purge_that_the_cdn_refuses_fails_in_the_handler_and_can_be_repeated(front: Front):
    """Until then the CDN has the old page."""
    _, first = front.get("/products/7")
    front.status = 503
    assert front.request("PUT", "/products/7")[0] == 500
    assert front.get("/products/7") == (True, first)
    front.status = 200
    assert front.request("PUT", "/products/7")[0] == 200
    assert front.get("/products/7")[0] is False
