"""A process that visits one page many times at once: URL TOKEN VISITS SECONDS-TO-RENDER.

Prints how many renders it made, how many pages it got, and the slowest visit in seconds. Where
it makes one visit only, it says ``rendering`` first.
"""

from __future__ import annotations

import secrets
import sys
import time

import anyio

from tests.cache.world import reply, request
from upstash_middleware.core.cache import Cache, CacheRule
from upstash_middleware.drivers import arun
from upstash_middleware.upstash import AsyncClient, Credentials


class Clock:
    """The system's clock."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


def say(*words: object) -> None:
    """Tell the test."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Visit, and report."""
    url, token, visits, seconds = sys.argv[1:]
    client = AsyncClient(Credentials(url, token))
    cache = Cache(
        (CacheRule("/page", ttl=60),),
        prefix="test",
        secret=lambda: b"secret",
        clock=Clock(),
        observe=lambda _: None,
        deadline=20.0,
        lock=True,
        randomness=secrets.token_bytes,
    )
    renders, pages, slowest = 0, 0, 0.0

    async def visit() -> None:
        nonlocal renders, pages, slowest
        began = time.monotonic()
        exchange = await arun(cache.begin(request()), client)
        if exchange.response is None:
            renders += 1
            if visits == "1":
                say("rendering")
            await anyio.sleep(float(seconds))
            exchange.head(reply(cache_control="max-age=60", content_length="4")[0])
            exchange.chunk(b"page")
        if (flow := exchange.finish(complete=True)) is not None:
            await arun(flow, client)
        pages += exchange.response is None or exchange.response.body == b"page"
        slowest = max(slowest, time.monotonic() - began)

    async with anyio.create_task_group() as group:
        for _ in range(int(visits)):
            group.start_soon(visit)
    await client.aclose()
    say(renders, pages, slowest)


anyio.run(main)
