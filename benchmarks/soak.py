"""Mixed load over four gunicorn workers while simulated faults change and workers are killed.

    python -m benchmarks.soak --seconds 1800 --write

It uses nothing but this machine: the local Upstash, gunicorn on a socket of loopback, and
threads that ask. ``--write`` puts what was measured into docs/soak.md and its plots beside it;
what must never happen ends in status 1.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from benchmarks.soak_app import WORKERS, proves_itself
from benchmarks.soak_report import (
    PAGE,
    PLOTS,
    Killed,
    Sample,
    Seen,
    Soaked,
    plots,
    report,
    violations,
)
from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
ASKING: Final = 6
"""Threads that ask: with them, the workers and the server, two cores are busy and not drowned."""
PAUSE: Final = 0.01
"""Seconds between two requests of one thread."""
PHASES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("fine", {}),
    ("slow", {"latency_ms": 20, "jitter_ms": 30}),
    ("reset after", {"fault": "drop-after", "probability": 0.2}),
    ("fine", {}),
    ("502", {"fault": "bad-gateway"}),
    ("silent", {"fault": "stall", "probability": 0.3}),
    ("fine", {}),
    ("quota", {"fault": "quota"}),
    ("no script", {"fault": "noscript", "probability": 0.3}),
    ("too slow", {"latency_ms": 2000}),
    ("fine", {}),
    ("refused", {"fault": "refuse"}),
    ("cut", {"fault": "truncate", "probability": 0.5}),
)
RENEW: Final = {"connection": "close"}
"""At times the next request comes over a connection of its own, to whichever worker takes it."""
PATHS: Final = ("/pages/{}", "/pages/{}", "/pages/{}", "/closed", "/local", "/other/{}")


@contextmanager
def served(upstash: LocalUpstash) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run gunicorn on a socket that listens already; yield its address and process."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        options = ["--bind", f"fd://{listening.fileno()}", "--workers", str(WORKERS)]
        options += ["--threads", "4", "--preload", "--log-level", "critical"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "benchmarks.soak_app:app"],
            cwd=ROOT,
            env=os.environ | upstash.env,
            pass_fds=[listening.fileno()],
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", process
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, began: float, until: float, seen: Seen, choice: random.Random) -> None:
    """Ask for random pages until the time is up."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        while (sent := time.monotonic()) < until:
            path = choice.choice(PATHS).format(choice.randrange(50))
            try:
                response = client.get(path, headers=RENEW if choice.random() < 0.05 else None)
            except httpx.TransportError:
                seen.cut += 1
                continue
            seen.note(sent - began, time.monotonic() - began, path, response.status_code)
            seen.hits += "; hit" in response.headers.get("cache-status", "")
            if response.status_code == 200 and not proves_itself(path, response.content):
                seen.wrong.append(path)
            time.sleep(PAUSE)


def children_of(process: int) -> list[int]:
    """Return the workers that gunicorn runs, as Linux lists them."""
    with suppress(OSError):
        return [
            int(child)
            for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    return []


def sample(process: int, at: float) -> list[Sample]:
    """Look at each worker's memory and descriptors."""
    samples = []
    for worker in children_of(process):
        with suppress(OSError, StopIteration):
            status = Path(f"/proc/{worker}/status").read_text().splitlines()
            kilobytes = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
            descriptors = len(list(Path(f"/proc/{worker}/fd").iterdir()))
            samples.append(Sample(at, worker, kilobytes, descriptors))
    return samples


def trouble(
    upstash: LocalUpstash, process: int, began: float, until: float, every: float
) -> tuple[list[Sample], list[tuple[float, str]], list[Killed]]:
    """Change the simulated faults, kill a worker now and then, and look at the others meanwhile.

    The first worker lives to the end, so that it shows what time does to one.
    """
    samples, phases, killed, number = [], [], [], 0
    while (now := time.monotonic()) < until:
        name, faults = PHASES[number % len(PHASES)]
        upstash.set_faults(**faults)
        phases.append((now - began, name))
        samples += sample(process, now - began)
        workers = sorted(children_of(process))
        if number % 5 == 4 and len(workers) == WORKERS:
            victim = workers[1 + number % (WORKERS - 1)]
            os.kill(victim, signal.SIGKILL)
            killed.append(Killed(now - began, victim))
        number += 1
        time.sleep(max(0.0, min(every, until - time.monotonic())))
    upstash.set_faults()
    return samples, phases, killed


def soak(seconds: float, every: float = 3.0) -> Soaked:
    """Run it all for so many seconds, with other faults ``every`` so many."""
    each = [Seen() for _ in range(ASKING)]
    with LocalUpstash() as upstash, served(upstash) as (url, process):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            client.get("/other/warm")
        began = time.monotonic()
        until = began + seconds
        threads = [
            threading.Thread(target=ask, args=(url, began, until, seen, random.Random(number)))
            for number, seen in enumerate(each)
        ]
        for thread in threads:
            thread.start()
        samples, phases, killed = trouble(upstash, process.pid, began, until, every)
        for thread in threads:
            thread.join()
    return Soaked(seconds, Seen.of_all(each), samples, phases, killed)


def main() -> int:
    """Soak for as long as the command line says; 1 if something was violated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE} and {PLOTS}")
    chosen = parser.parse_args()
    soaked = soak(chosen.seconds)
    print(report(soaked))
    if chosen.write:
        (ROOT / PAGE).write_text(report(soaked))
        (ROOT / PLOTS).write_text(plots(soaked))
    return int(bool(violations(soaked)))


if __name__ == "__main__":
    sys.exit(main())
