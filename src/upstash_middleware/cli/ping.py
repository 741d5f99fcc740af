"""``ping``: checks whether Upstash answers, its latency, its features, and the token's rights."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upstash_middleware.cli.invocation import Invocation, send_commands
from upstash_middleware.cli.output import Answer, pairs, text
from upstash_middleware.core.flow import Command
from upstash_middleware.errors import CommandError, Refusal, refusal_in
from upstash_middleware.upstash import Credentials

if TYPE_CHECKING:
    from upstash_middleware.core.flow import Reply
    from upstash_middleware.runtime import Runtime

_LOCKING = "#!lua flags=allow-key-locking\nreturn 1"
_BINARY = b"\x00\xff\xfe"


def ping(
    invocation: Invocation,
    *,
    count: Annotated[
        int, typer.Option(help="The number of round trips to measure.", min=1, max=100)
    ] = 5,
) -> Answer:
    """Show whether Upstash answers, its latency, its features, and the token's rights."""
    runtime = invocation.any_runtime()
    settings = runtime.settings
    url = Credentials.find(
        url=settings.url, token=settings.token, redis=settings.redis, environ=os.environ
    ).url
    first, *others = [_measure(runtime) for _ in range(count + 1)]
    latency = {
        "min": min(others),
        "median": round(statistics.median(others), 2),
        "max": max(others),
    }
    data = {"url": url, "first_ms": first, "latency_ms": latency, **_inspect(runtime)}
    offset = data["clock_offset_ms"]
    shown = {
        "latency": f"{latency['min']:g} ms at best, {latency['max']:g} ms at worst; "
        f"{first:g} ms the first time, including connecting",
        "server": data["server"],
        "token": "reads and writes"
        if data["may_write"]
        else "READ-ONLY: limits cannot count and the cache cannot store with it",
        "scanning": "allowed" if data["may_scan"] else "not with this token: no `cache list`",
        "scripts": "run, with key locking"
        if data["scripts"]
        else "not with this token, or not here: limits need them",
        "binary values": "unchanged" if data["binary"] else "damaged in transit",
        "server's clock": None if offset is None else f"{offset:+g} ms against this machine's",
    }
    headline = text(f"{url} answers in {latency['median']:g} ms", "bold green")
    return Answer(data, [headline, pairs(shown)])


def _measure(runtime: Runtime) -> float:
    began = time.perf_counter()
    _send(runtime, Command(("PING",), reads_only=True))
    return round((time.perf_counter() - began) * 1000, 2)


def _send(runtime: Runtime, *commands: Command) -> list[Reply]:
    replies = send_commands(runtime, *commands)
    for reply in replies:
        # A wrong token ends the command; other errors are results.
        if isinstance(reply, CommandError) and refusal_in(str(reply)) is Refusal.TOKEN:
            raise reply
    return replies


def _inspect(runtime: Runtime) -> dict[str, Any]:
    """The server's features, determined in two calls that change nothing."""
    missing = f"{runtime.settings.prefix}:ping:nothing"
    (echo,) = _send(runtime, Command(("ECHO", _BINARY), reads_only=True))  # not in a batch
    sent = time.time()
    script, delete, scan, clock, info = _send(
        runtime,
        Command(("EVAL", _LOCKING, 0)),
        Command(("DEL", missing)),  # a write that changes nothing, to test the permission
        Command(("SCAN", 0, "MATCH", missing, "COUNT", 1), reads_only=True),
        Command(("TIME",), reads_only=True),
        Command(("INFO", "server"), reads_only=True),
    )
    here, offset = (sent + time.time()) / 2, None
    match clock:
        case [bytes(seconds), bytes(microseconds)]:
            offset = round((int(seconds) + int(microseconds) / 1e6 - here) * 1000, 1)
    return {
        "server": _version(info),
        "may_write": _is_permitted(delete),
        "may_scan": _is_permitted(scan),
        "scripts": not isinstance(script, CommandError),
        "binary": echo == _BINARY,
        "clock_offset_ms": offset,
    }


def _is_permitted(reply: Reply) -> bool:
    refusal = refusal_in(str(reply)) if isinstance(reply, CommandError) else None
    return refusal is not Refusal.PERMISSION


def _version(info: Reply) -> str | None:
    if not isinstance(info, bytes):
        return None
    lines = dict(
        line.split(":", 1) for line in info.decode("utf-8", "replace").splitlines() if ":" in line
    )
    for name in ("upstash_version", "valkey_version", "redis_version"):
        if name in lines:
            return f"{name.removesuffix('_version')} {lines[name]}"
    return None
