"""``ping``: whether Upstash answers, how fast, what it can do, and what the token may."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upstash_middleware.cli.session import Session, command
from upstash_middleware.cli.showing import Answer, pairs, text
from upstash_middleware.core.effects import Command, Pipeline
from upstash_middleware.errors import CommandError
from upstash_middleware.refusals import Refusal, refusal_in
from upstash_middleware.upstash import Credentials

if TYPE_CHECKING:
    from rich.text import Text

    from upstash_middleware.core.effects import Reply
    from upstash_middleware.gateway import Gateway

_LOCKING = "#!lua flags=allow-key-locking\nreturn 1"
_BINARY = b"\x00\xff\xfe"


def add_to(group: typer.Typer) -> None:
    """Add the command."""
    command(group, "ping")(ping)


def ping(
    session: Session,
    *,
    count: Annotated[
        int, typer.Option(help="How many round trips to measure.", min=1, max=100)
    ] = 5,
) -> Answer:
    """Tell whether Upstash answers, how fast, what it supports, and what the token may do."""
    gateway = session.gateway()
    settings = gateway.settings
    found = Credentials.find(
        url=settings.url, token=settings.token, redis=settings.redis, environ=os.environ
    )
    first, *others = [_timed(gateway) for _ in range(count + 1)]
    told: dict[str, Any] = {
        "url": found.url,
        "first_ms": first,
        "latency_ms": {
            "min": min(others),
            "median": round(statistics.median(others), 2),
            "max": max(others),
        },
        **_abilities(gateway),
    }
    return Answer(told, [_headline(told), pairs(_shown(told))])


def _timed(gateway: Gateway) -> float:
    began = time.perf_counter()
    _ask(gateway, Command(("PING",), reads_only=True))
    return round((time.perf_counter() - began) * 1000, 2)


def _ask(gateway: Gateway, *commands: Command) -> list[Reply]:
    async def flow() -> list[Reply]:
        return await Pipeline(commands)

    replies = gateway.perform(flow())
    for reply in replies:
        # A token that is wrong is told once for all; what single commands answer is the finding.
        if isinstance(reply, CommandError) and refusal_in(str(reply)) is Refusal.TOKEN:
            raise reply
    return replies


def _abilities(gateway: Gateway) -> dict[str, Any]:
    """Ask what the server can do, in two calls; nothing is changed."""
    missing = f"{gateway.settings.prefix}:ping:nothing"
    (echo,) = _ask(gateway, Command(("ECHO", _BINARY), reads_only=True))  # bytes travel alone
    sent = time.time()
    script, delete, scan, clock, info = _ask(
        gateway,
        Command(("EVAL", _LOCKING, 0)),
        Command(("DEL", missing)),  # a write that changes nothing, to see if it is permitted
        Command(("SCAN", 0, "MATCH", missing, "COUNT", 1), reads_only=True),
        Command(("TIME",), reads_only=True),
        Command(("INFO", "server"), reads_only=True),
    )
    answered = time.time()
    return {
        "server": _version(info),
        "may_write": _permitted(delete),
        "may_scan": _permitted(scan),
        "scripts": _permitted(script) and not isinstance(script, CommandError),
        "binary": echo == _BINARY,
        "clock_offset_ms": _offset_ms(clock, (sent + answered) / 2),
    }


def _permitted(reply: Reply) -> bool:
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


def _offset_ms(clock: Reply, here: float) -> float | None:
    match clock:
        case [bytes(seconds), bytes(microseconds)]:
            return round((int(seconds) + int(microseconds) / 1e6 - here) * 1000, 1)
        case _:
            return None


def _headline(told: dict[str, Any]) -> Text:
    latency = told["latency_ms"]["median"]
    return text(f"{told['url']} answers in {latency:g} ms", "bold green")


def _shown(told: dict[str, Any]) -> dict[str, object]:
    latency, offset = told["latency_ms"], told["clock_offset_ms"]
    return {
        "latency": f"{latency['min']:g} ms at best, {latency['max']:g} ms at worst; "
        f"{told['first_ms']:g} ms the first time, connecting included",
        "server": told["server"],
        "token": "reads and writes"
        if told["may_write"]
        else "READ-ONLY: limits cannot count and the cache cannot store with it",
        "scanning": "allowed" if told["may_scan"] else "not with this token: no `cache list`",
        "scripts": "run, with key locking"
        if told["scripts"]
        else "not with this token, or not here: limits need them",
        "binary values": "whole" if told["binary"] else "damaged on the way",
        "server's clock": None if offset is None else f"{offset:+g} ms against this machine's",
    }
