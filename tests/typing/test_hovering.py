"""An editor explains each parameter of what users call, as pyright's language server shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.node

CALLS = {
    "RateLimitRule": "from upstash_middleware import RateLimitRule",
    "CacheRule": "from upstash_middleware import CacheRule",
    "Lease": "from upstash_middleware import Lease",
    "Limiter": "from upstash_middleware import Limiter",
    "SyncLimiter": "from upstash_middleware import SyncLimiter",
    "Data": "from upstash_middleware import Data",
    "UpstashMiddleware": "from upstash_middleware.starlette import UpstashMiddleware",
    "CacheMiddleware": "from upstash_middleware.asgi import CacheMiddleware",
    "SessionMiddleware": "from upstash_middleware.starlette import SessionMiddleware",
    "OfWSGI": "from upstash_middleware.wsgi import UpstashMiddleware as OfWSGI",
    "OfFlask": "from upstash_middleware.flask import UpstashMiddleware as OfFlask",
    "Sessions": "from upstash_middleware.flask import Sessions",
    "limit": "from upstash_middleware.starlette import limit",
    "limit_of_django": "from upstash_middleware.django import limit as limit_of_django",
    "limit_of_flask": "from upstash_middleware.flask import limit as limit_of_flask",
    "limit_of_fastapi": "from upstash_middleware.fastapi import limit as limit_of_fastapi",
    "throttle": "from upstash_middleware.django.rest_framework import throttle",
    "cached": "from upstash_middleware.starlette import cached",
}
CODE = "\n".join(CALLS.values()) + "\n\n" + "".join(f"{name}()\n" for name in CALLS)


class Server:
    """pyright's language server, with one document."""

    def __init__(self, document: Path) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [str(Path(sys.executable).parent / "pyright-langserver"), "--stdio"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environ
        )
        self._uri, self._sent = document.as_uri(), 0
        folders = [{"uri": ROOT.as_uri(), "name": "root"}]
        self._ask(
            "initialize",
            {
                "processId": None,
                "rootUri": ROOT.as_uri(),
                "workspaceFolders": folders,
                "capabilities": {"textDocument": {"hover": {"contentFormat": ["plaintext"]}}},
            },
        )
        self._send({"method": "initialized", "params": {}})
        opened = {"uri": self._uri, "languageId": "python", "version": 1, "text": CODE}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": opened}})

    def hover(self, line: int) -> str:
        """Return what is shown for the name at the beginning of a line."""
        where = {"textDocument": {"uri": self._uri}, "position": {"line": line, "character": 1}}
        shown: str = self._ask("textDocument/hover", where)["contents"]["value"]
        return shown

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        length = 0
        while line := self._process.stdout.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        return message

    def _ask(self, method: str, params: dict[str, Any]) -> Any:
        self._sent += 1
        self._send({"id": self._sent, "method": method, "params": params})
        while True:
            message = self._receive()
            if "method" not in message and message.get("id") == self._sent:
                return message["result"]
            if "method" in message and "id" in message:  # it asks for its configuration
                items = message.get("params", {}).get("items", [])
                self._send({"id": message["id"], "result": [{} for _ in items]})


def test_what_is_called_is_shown_with_each_parameter_and_what_it_means(tmp_path: Path) -> None:
    document = tmp_path / "hovering.py"
    document.write_text(CODE)
    server = Server(document)
    try:
        shown = {
            line.partition("(")[0]: server.hover(number)
            for number, line in enumerate(CODE.splitlines())
            if line.endswith("()")
        }
    finally:
        server.stop()
    assert shown.keys() == CALLS.keys()
    missing = [
        (name, parameter)
        for name, text in shown.items()
        for parameter in parameters_in(text)
        if f"    {parameter}: " not in text.partition("Args:")[2]
    ]
    assert missing == []
    assert all("**" not in text.partition("Args:")[0] for text in shown.values())


def parameters_in(text: str) -> list[str]:
    """Return the names in a signature of several lines; one that is only named has none."""
    if "\n)" not in text:
        return ["limits"]
    lines = text.partition("\n)")[0].splitlines()[1:]
    return [line.partition(":")[0].strip() for line in lines if ":" in line]
