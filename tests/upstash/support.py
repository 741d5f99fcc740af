"""What the tests of the wire share: pipelines from words, and both kinds of client as one."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.upstash import AsyncClient, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.core.flow import Argument, Reply
    from upstash_middleware.upstash import Credentials


def pipeline(
    *commands: Command | tuple[Argument, ...],
    reads_only: bool = False,
    deadline: float | None = None,
) -> Pipeline:
    """Take commands as values or as their words."""
    values = [
        command if isinstance(command, Command) else Command(command, reads_only=reads_only)
        for command in commands
    ]
    return Pipeline(tuple(values), deadline)


@contextmanager
def executing(
    kind: str, credentials: Credentials, library: str | None
) -> Iterator[Callable[[Pipeline], list[Reply]]]:
    """Yield what performs pipelines: a Client, or an AsyncClient on an event loop.

    The library ``own`` is an httpx client of the test's.
    """
    if kind == "sync":
        transport: Any = httpx.Client(trust_env=False) if library == "own" else library
        client = Client(credentials, transport=transport, deadline=20.0)
        yield client.execute
        client.close()
        if library == "own":
            transport.close()
        return
    transport = httpx.AsyncClient(trust_env=False) if library == "own" else library
    async_client = AsyncClient(credentials, transport=transport, deadline=20.0)

    async def execute(pipeline: Pipeline) -> list[Reply]:
        return await async_client.execute(pipeline)

    with asyncio.Runner() as runner:
        yield lambda pipeline: runner.run(execute(pipeline))
        runner.run(async_client.aclose())
        if library == "own":
            runner.run(transport.aclose())
