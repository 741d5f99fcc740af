"""How long ``import upstash_middleware`` takes: processes that do against processes that do not.

``-X importtime`` counts its own work in; the difference between two processes is what a cold
start waits for. ``python -m benchmarks.starting`` prints it.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

_ASGI = "import upstash_middleware.asgi, upstash_middleware.upstash.sockets"
_CACHE = f"{_ASGI}, upstash_middleware.core.cache"
_WSGI = "import upstash_middleware.wsgi, upstash_middleware.upstash.sockets"
IMPORTS = {
    "upstash_middleware": ("pass", "import upstash_middleware"),
    "upstash_middleware with the WSGI middleware and its client, after Flask": (
        "import flask",
        _WSGI,
    ),
    "upstash_middleware with the ASGI middleware and its client, after asyncio": (
        "import asyncio",
        _ASGI,
    ),
    "upstash_middleware with the ASGI middleware, its client and the cache, after asyncio": (
        "import asyncio",
        _CACHE,
    ),
    "asyncio": ("pass", "import asyncio"),
    "upstash_ratelimit and upstash_redis": ("pass", "import upstash_ratelimit, upstash_redis"),
}
"""What is imported, and by what else the process it is compared with."""


# What is installed has its bytecode; where nothing may write it, each import would compile.
_INSTALLED = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def milliseconds(rounds: int) -> dict[str, float]:
    """Return the median difference for each, from rounds that interleave them."""
    differences: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _, code in IMPORTS.values():  # so that all is compiled, and read from the disk once
        _process(code)
    for _ in range(rounds):
        for name, (beside, code) in IMPORTS.items():
            differences[name].append(_process(f"{beside}; {code}") - _process(beside))
    return {name: statistics.median(values) for name, values in differences.items()}


def _process(code: str) -> float:
    """Return the milliseconds of processor time that a process takes.

    Processor time and not the clock's, for a busy machine's other work is not ours; a process that
    imports does nothing but compute.
    """
    begun = _used()
    subprocess.run([sys.executable, "-c", code], env=_INSTALLED, check=True)
    return (_used() - begun) * 1000


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table."""
    for name, took in milliseconds(21).items():
        print(f"{name:50} {took:7.1f} ms")


if __name__ == "__main__":
    main()
