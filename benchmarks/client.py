"""The client by itself: what a call costs, ``Redis.get`` beside the SDK, and rules of batching.

``python -m benchmarks.client`` compares the rules under which concurrent calls share a request, at
several latencies, and prints the table.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.page import spread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RULES: dict[str, dict[str, float]] = {
    "as released": {},
    "at most two in flight": {"SECONDS_BETWEEN_CALLS": 1e9},
    "one in flight": {"SECONDS_BETWEEN_CALLS": 1e9, "MIN_CALLS": 1},
    "no batching": {"MIN_CALLS": 1_000_000},
}
"""Constants of ``batching`` by the rule that they make."""

_LATENCIES = (0, 1, 5, 20)
_CONCURRENCY = (16, 64)
_WORK_SECONDS = 60e-6
"""What an application does with each reply, since the client has no processor to itself."""

Figures = dict[str, float]


def measured(url: str, seconds: float, rounds: int) -> dict[str, str]:
    """Return the client's figures for the page."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for concurrency in (1, 16, 64):
            cpu = _in_process(url, "AsyncClient", concurrency, seconds)["cpu"]
            found[f"CPU of a call, {concurrency} in flight, µs"].append(cpu * 1e6)
        for kind, concurrency in itertools.product(("Redis", "AsyncRedis"), (1, 16)):
            ours = _in_process(url, kind, concurrency, seconds)["rate"]
            theirs = _in_process(url, f"upstash_redis.{kind}", concurrency, seconds)["rate"]
            who = ("thread" if kind == "Redis" else "task") + "s" * (concurrency > 1)
            name = (
                f"`{kind}.get` compared with upstash_redis, {concurrency} {who}: ratio of calls/s"
            )
            found[name].append(ours / theirs)
    return {
        name: spread(values, "{:.0f}" if name.startswith("CPU") else "{:.1f}")
        for name, values in found.items()
    }


def _in_process(url: str, kind: str, concurrency: int, seconds: float, rule: str = "") -> Figures:
    """Make calls in a process of their own; with a rule, the replies are worked on."""
    command = [sys.executable, "-m", "benchmarks.client", kind, f"{concurrency}", f"{seconds}"]
    environment = {
        **os.environ,
        "UPSTASH_REDIS_REST_URL": url,
        "UPSTASH_REDIS_REST_TOKEN": "benchmark",
    }
    done = subprocess.run([*command, rule], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _measure(kind: str, concurrency: int, seconds: float, rule: str) -> Figures:
    """Make calls for so long in this process."""
    if kind.endswith("AsyncRedis") or kind == "AsyncClient":
        import uvloop  # noqa: PLC0415

        work = _WORK_SECONDS if rule else 0.0
        return uvloop.run(_on_loop(_async_call(kind, rule), concurrency, seconds, work))
    call = _call(kind)
    with ThreadPoolExecutor(concurrency) as threads:
        return _figures(
            lambda until: list(threads.map(lambda _: _thread(call, until), range(concurrency))),
            seconds,
        )


def _thread(call: Callable[[], object], until: float) -> list[float]:
    latencies = []
    while (begun := time.perf_counter()) < until:
        call()
        latencies.append(time.perf_counter() - begun)
    return latencies


async def _on_loop(
    call: Callable[[], Awaitable[object]], concurrency: int, seconds: float, work: float
) -> Figures:
    latencies: list[float] = []

    async def task(until: float) -> None:
        while (begun := time.perf_counter()) < until:
            await call()
            if work:
                busy = time.perf_counter() + work
                while time.perf_counter() < busy:
                    pass
            latencies.append(time.perf_counter() - begun)

    async def tasks(length: float) -> None:
        until = time.perf_counter() + length
        await asyncio.gather(*[task(until) for _ in range(concurrency)])

    await tasks(0.2)
    latencies.clear()
    cpu, begun = time.process_time(), time.perf_counter()
    await tasks(seconds)
    return _summary(latencies, time.process_time() - cpu, time.perf_counter() - begun)


def _figures(run: Callable[[float], list[list[float]]], seconds: float) -> Figures:
    run(time.perf_counter() + 0.2)
    cpu, begun = time.process_time(), time.perf_counter()
    latencies = [*itertools.chain(*run(begun + seconds))]
    return _summary(latencies, time.process_time() - cpu, time.perf_counter() - begun)


def _summary(latencies: list[float], cpu: float, seconds: float) -> Figures:
    latencies.sort()
    count = len(latencies)
    return {
        "rate": count / seconds,
        "p50": latencies[count // 2],
        "p99": latencies[int(count * 0.99)],
        "cpu": cpu / count,
    }


def _call(kind: str) -> Callable[[], object]:
    import upstash_redis  # noqa: PLC0415

    from upstash_middleware import Redis  # noqa: PLC0415

    redis: Any = upstash_redis.Redis.from_env() if "." in kind else Redis.from_env()
    return lambda: redis.get("benchmark")


def _async_call(kind: str, rule: str) -> Callable[[], Awaitable[Any]]:
    if kind == "AsyncClient":
        from upstash_middleware.core.flow import Command, Pipeline  # noqa: PLC0415
        from upstash_middleware.upstash import AsyncClient, Credentials, batching  # noqa: PLC0415

        for name, value in RULES.get(rule, {}).items():
            setattr(batching, name, value)
        client = AsyncClient(Credentials.find(environ=os.environ), deadline=30)
        pipeline = Pipeline((Command(("GET", "benchmark")),))
        return lambda: client.execute(pipeline)
    import upstash_redis.asyncio  # noqa: PLC0415

    from upstash_middleware import AsyncRedis  # noqa: PLC0415

    sdk = upstash_redis.asyncio.Redis
    redis: Any = sdk.from_env() if "." in kind else AsyncRedis.from_env()
    return lambda: redis.get("benchmark")


def compare_rules(rounds: int = 7, seconds: float = 1.0) -> None:
    """Print requests per second, p50 and p99 for each rule, latency and concurrency."""
    from benchmarks.stage import Stage  # noqa: PLC0415

    found: defaultdict[tuple[int, int, str], list[Figures]] = defaultdict(list)
    with Stage(_LATENCIES) as stage:
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for latency, concurrency in itertools.product(_LATENCIES, _CONCURRENCY):
                for rule in random.sample(list(RULES), len(RULES)):
                    url = stage.upstash_urls[latency]
                    one = _in_process(url, "AsyncClient", concurrency, seconds, rule)
                    found[latency, concurrency, rule].append(one)
    print("| latency, ms | tasks | rule | requests/s | p50 ms | p99 ms |")
    print("| --: | --: | --- | --: | --: | --: |")
    for (latency, concurrency, rule), ones in sorted(found.items()):
        rate, p50, p99 = (
            statistics.median(one[name] for one in ones) for name in ("rate", "p50", "p99")
        )
        print(
            f"| {latency} | {concurrency} | {rule} | {rate:.0f} | {p50 * 1e3:.2f} "
            f"| {p99 * 1e3:.2f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))
    else:
        compare_rules()
