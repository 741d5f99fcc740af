"""A stand-in for Upstash that is quick enough not to be what a benchmark measures.

``python -m benchmarks.standin PORT VALKEY_SOCKET MILLISECONDS`` serves ``/``, ``/pipeline`` and
``/set/KEY`` over a Valkey's Unix socket, with answers in RESP2 (passed through as bytes) or base64
JSON, each delayed by so much. It checks no token, knows no limit and counts nothing but calls: for
what Upstash does, the package has ``upstash_middleware.local``. A line on its standard input makes
it print the number of calls; the end of its input ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from base64 import b64encode
from hashlib import sha1
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import hiredis
import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_FLAGGED = "#!lua flags=allow-key-locking\n"
_HEAD = b"HTTP/1.1 %d \r\ncontent-type: %b\r\nupstash-sync-token: 1\r\ncontent-length: %d\r\n\r\n%b"
_RESP2, _JSON = b"application/octet-stream", b"application/json"

calls = 0
_real_shas: dict[str, str] = {}
"""The SHA of each script as sent, and without the flag that Valkey does not know."""


class Backend(asyncio.Protocol):
    """A connection to Valkey that belongs to one HTTP connection."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._buffer = b""
        self._position = 0
        self._lacking = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, data: bytes, replies: int) -> None:
        """Send commands that as many replies will answer."""
        self._buffer, self._position, self._lacking = b"", 0, replies
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._lacking:
            end = reply_end(self._buffer, self._position)
            if end < 0:
                return
            self._position = end
            self._lacking -= 1
        self._front.answer(self._buffer)

    def close(self) -> None:
        self._transport.close()


class Front(asyncio.Protocol):
    """One HTTP connection; its requests come one after another."""

    def __init__(self, socket_path: str, delay: float) -> None:
        self._socket_path = socket_path
        self._delay = delay
        self._buffer = b""
        self._backend: Backend | None = None
        self._raw = self._batch = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        if self._backend is not None:
            self._backend.close()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        found = _LENGTH.search(self._buffer, 0, head_end)
        body_end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) < body_end:
            return
        head, body = self._buffer[:head_end], self._buffer[head_end + 4 : body_end]
        global calls  # noqa: PLW0603 - a count of the process
        calls += 1
        self._buffer = b""
        self._take(head, body)

    def _take(self, head: bytes, body: bytes) -> None:
        target = head[head.index(b" ") + 1 : head.index(b" ", 6)]
        self._raw = b"resp2" in head
        self._batch = target == b"/pipeline"
        if self._batch:
            commands = json.loads(body)
        elif target == b"/":
            commands = [json.loads(body)]
        else:
            commands = [_from_path(target, body)]
        packed = b"".join(hiredis.pack_command(tuple(_known(one))) for one in commands)
        if self._backend is None:
            asyncio.get_running_loop().create_task(self._open(packed, len(commands)))
        else:
            self._backend.ask(packed, len(commands))

    async def _open(self, packed: bytes, replies: int) -> None:
        loop = asyncio.get_running_loop()
        _, self._backend = await loop.create_unix_connection(
            lambda: Backend(self), self._socket_path
        )
        self._backend.ask(packed, replies)

    def answer(self, replies: bytes) -> None:
        """Send what Valkey said."""
        kind = _RESP2 if self._raw else _JSON
        status = 400 if replies[:1] == b"-" and not self._batch else 200
        body = replies if self._raw else _as_json(replies, batch=self._batch)
        data = _HEAD % (status, kind, len(body), body)
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, data)
        else:
            self._transport.write(data)


def reply_end(data: bytes, position: int) -> int:
    """Return where the reply that begins here ends, or -1 if it is not all there."""
    wanted = 1
    while wanted:
        line_end = data.find(b"\r\n", position)
        if line_end < 0:
            return -1
        kind = data[position]
        if kind == 36:  # $
            length = int(data[position + 1 : line_end])
            position = line_end + 2 if length < 0 else line_end + 4 + length
            if position > len(data):
                return -1
        else:
            if kind == 42:  # *
                wanted += max(int(data[position + 1 : line_end]), 0)
            position = line_end + 2
        wanted -= 1
    return position


def _known(command: list[Any]) -> list[Any]:
    """Return a command as Valkey takes it: scripts without Upstash's flag."""
    name = str(command[0]).upper()
    if name == "EVAL" and command[1].startswith(_FLAGGED):
        text = "#!lua\n" + command[1].removeprefix(_FLAGGED)
        sent, real = (sha1(one.encode()).hexdigest() for one in (command[1], text))
        _real_shas[sent] = real
        return ["EVAL", text, *map(_word, command[2:])]
    if name == "EVALSHA":
        return [name, _real_shas.get(command[1], command[1]), *map(_word, command[2:])]
    return [name, *map(_word, command[1:])]


def _word(value: Any) -> Any:
    return value if isinstance(value, str | bytes | int) else json.dumps(value)


def _from_path(target: bytes, body: bytes) -> list[Any]:
    path, _, query = target.partition(b"?")
    words: list[Any] = [unquote_to_bytes(word) for word in path[1:].split(b"/")]
    words[0] = words[0].decode()
    options = [
        word for pair in parse_qsl(query.decode(), keep_blank_values=True) for word in pair if word
    ]
    return [*words, body, *options] if body else [*words, *options]


def _as_json(replies: bytes, *, batch: bool) -> bytes:
    reader = hiredis.Reader()
    reader.feed(replies)
    members = []
    while (reply := reader.gets()) is not False:
        members.append(
            {"error": str(reply)}
            if isinstance(reply, hiredis.ReplyError)
            else {"result": _encoded(reply)}
        )
    return json.dumps(members if batch else members[0]).encode()


def _encoded(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return "OK" if reply == b"OK" else b64encode(reply).decode()
    return [_encoded(member) for member in reply] if isinstance(reply, list) else reply


def _report() -> None:
    if not os.read(0, 4096):
        asyncio.get_running_loop().stop()
        return
    print(calls, flush=True)


async def _serve(port: int, socket_path: str, delay: float) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Front(socket_path, delay), "127.0.0.1", port, backlog=512)
    loop.add_reader(0, _report)


def main() -> None:
    """Serve until the standard input ends."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_serve(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) / 1000))
    loop.run_forever()


if __name__ == "__main__":
    main()
