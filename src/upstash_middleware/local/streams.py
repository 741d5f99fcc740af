"""Server-sent events: subscriptions and MONITOR, each on a connection of its own to Valkey.

Only the endless answers may live here.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.lua import shown_in_monitor
from upstash_middleware.local.messages import Stream
from upstash_middleware.local.resp import Failure, Reply, Status
from upstash_middleware.local.store import StoreUnreachable, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from upstash_middleware.local.store import Address

_ORIGIN: Final = re.compile(rb"^(\d+\.\d+) \[(\d+) (?!lua\])[^\]]*\]")
_OUR_OWN: Final = re.compile(rb'^\d+\.\d+ \[\d+ lua\] "COMMAND" "GETKEYS"')


class Lost:
    """In the place of a reply: the connection has ended."""


async def open_stream(address: Address, command: list[bytes]) -> Stream:
    """Send SUBSCRIBE, PSUBSCRIBE or MONITOR; the events that come, as they go to the client.

    Raises StoreUnreachable when there is no connection to be had.
    """
    arrived: asyncio.Queue[Reply | Lost] = asyncio.Queue()
    wire = await connect(address, arrived.put_nowait)
    wire.lost.add_done_callback(lambda _: arrived.put_nowait(Lost()))
    wire.send_and_forget(command)
    write = _monitor_event if command[0].upper() == b"MONITOR" else _message_event
    return Stream(_events(arrived, write), wire.close)


async def _events(
    arrived: asyncio.Queue[Reply | Lost], write: Callable[[Reply], bytes]
) -> AsyncIterator[bytes]:
    while not isinstance(reply := await arrived.get(), Lost):
        if event := write(reply):
            yield event


def _message_event(reply: Reply) -> bytes:
    """``data: message,CHANNEL,PAYLOAD``; a payload of several lines takes several `data:`."""
    if isinstance(reply, Failure):
        raise StoreUnreachable(reply.text.decode("utf-8", "replace"))
    members = reply if isinstance(reply, list) else [reply]
    return _event(b",".join(map(_text, members)))


def _monitor_event(reply: Reply) -> bytes:
    """A line of MONITOR, without what only this server has done, and as Upstash shows origins."""
    if isinstance(reply, Failure):
        raise StoreUnreachable(reply.text.decode("utf-8", "replace"))
    line = _text(reply)
    if line == b"OK":
        return _event(b'"OK"')
    if _OUR_OWN.match(line):
        return b""
    return _event(shown_in_monitor(_ORIGIN.sub(rb"\1 [\2 0.0.0.0:0]", line)))


def _event(data: bytes) -> bytes:
    return b"".join(b"data: " + line + b"\n" for line in data.split(b"\n")) + b"\n"


def _text(member: Reply) -> bytes:
    match member:
        case bytes():
            return member
        case Status():
            return member.text
        case _:
            return str(member).encode()
