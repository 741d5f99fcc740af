"""Mixed load over four gunicorn workers while the weather changes and workers are killed.

    python -m benchmarks.soak --seconds 1800 --report soak.md

It uses nothing but this machine: the local Upstash, gunicorn on a socket of loopback, and
threads that ask. What is measured goes into the report; what must never happen ends in status 1.
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
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from benchmarks.soak_app import CLOSED_QUOTA, DEADLINE, proves_itself
from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
WORKERS: Final = 4
ASKING: Final = 6
"""Threads that ask: with them, the workers and the server, two cores are busy and not drowned."""
PAUSE: Final = 0.01
"""Seconds between two requests of one thread."""
WEATHERS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"latency_ms": 20, "jitter_ms": 30},
    {"fault": "drop-after", "probability": 0.2},
    {},
    {"fault": "bad-gateway"},
    {"fault": "stall", "probability": 0.3},
    {},
    {"fault": "quota"},
    {"fault": "noscript", "probability": 0.3},
    {"latency_ms": 2000},
    {},
    {"fault": "refuse"},
    {"fault": "truncate", "probability": 0.5},
)
PATHS: Final = ("/pages/{}", "/pages/{}", "/pages/{}", "/closed", "/local", "/other/{}")
FLAT_KB: Final = 30_000
FLAT_DESCRIPTORS: Final = 40


@dataclass
class Seen:
    """What the clients have seen; each thread has one."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cut: int = 0
    """Connections that ended with a killed worker."""
    hits: int = 0
    admitted: int = 0
    """At `/closed`."""


@dataclass(frozen=True)
class Sample:
    """A worker at a moment."""

    at: float
    worker: int
    kilobytes: int
    descriptors: int


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


def ask(url: str, until: float, seen: Seen, choice: random.Random) -> None:
    """Ask for random pages until the time is up."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        while time.monotonic() < until:
            path = choice.choice(PATHS).format(choice.randrange(50))
            began = time.monotonic()
            try:
                response = client.get(path)
            except httpx.TransportError:
                seen.cut += 1
                continue
            seen.seconds.append(time.monotonic() - began)
            note(seen, path, response)
            time.sleep(PAUSE)


def note(seen: Seen, path: str, response: httpx.Response) -> None:
    """Note what a response shows."""
    seen.statuses[response.status_code] += 1
    if response.status_code == 200 and not proves_itself(path, response.content):
        seen.wrong.append(path)
    seen.hits += "; hit" in response.headers.get("cache-status", "")
    seen.admitted += path == "/closed" and response.status_code == 200


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


def trouble(upstash: LocalUpstash, process: int, until: float, every: float) -> list[Sample]:
    """Change the weather, kill a worker now and then, and look at the others meanwhile."""
    samples, began = [], time.monotonic()
    number = 0
    while time.monotonic() < until:
        upstash.set_weather(**WEATHERS[number % len(WEATHERS)])
        samples += sample(process, time.monotonic() - began)
        workers = children_of(process)
        if number % 5 == 4 and len(workers) == WORKERS:
            os.kill(workers[number % len(workers)], signal.SIGKILL)
        number += 1
        time.sleep(max(0.0, min(every, until - time.monotonic())))
    upstash.set_weather()
    return samples


def soak(seconds: float, every: float = 3.0) -> tuple[Seen, list[Sample]]:
    """Run it all for so many seconds, with other weather ``every`` so many."""
    each = [Seen() for _ in range(ASKING)]
    with LocalUpstash() as upstash, served(upstash) as (url, process):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            client.get("/other/warm")
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=ask, args=(url, until, seen, random.Random(number)))
            for number, seen in enumerate(each)
        ]
        for thread in threads:
            thread.start()
        samples = trouble(upstash, process.pid, until, every)
        for thread in threads:
            thread.join()
    return together(each), samples


def together(each: list[Seen]) -> Seen:
    """Return what all threads have seen."""
    total = Seen()
    for seen in each:
        total.statuses += seen.statuses
        total.seconds += seen.seconds
        total.wrong += seen.wrong
        total.cut += seen.cut
        total.hits += seen.hits
        total.admitted += seen.admitted
    total.seconds.sort()
    return total


def violations(seen: Seen, samples: list[Sample], *, slack: float = 0.05) -> list[str]:
    """Return what must never happen and did; ``slack`` seconds are the application's own."""
    found = [f"status {status}" for status in seen.statuses if status not in {200, 429, 503}]
    found += [f"a wrong byte at {path}" for path in seen.wrong[:5]]
    if seen.admitted > CLOSED_QUOTA:
        found.append(f"{seen.admitted} admitted of {CLOSED_QUOTA}")
    if quantile(seen, 0.999) > DEADLINE + slack:
        found.append(f"p99.9 is {quantile(seen, 0.999):.3f} s")
    for worker, (first, last) in lives(samples).items():
        if last.kilobytes - first.kilobytes > FLAT_KB:
            found.append(f"worker {worker} grew by {last.kilobytes - first.kilobytes} kB")
        if last.descriptors - first.descriptors > FLAT_DESCRIPTORS:
            found.append(f"worker {worker} opened {last.descriptors - first.descriptors} more")
    return found


def lives(samples: list[Sample]) -> dict[int, tuple[Sample, Sample]]:
    """Return each worker's first settled and last sample."""
    found: dict[int, tuple[Sample, Sample]] = {}
    for one in samples:
        if one.at > 2.0:  # a worker that has just begun loads what it needs
            found[one.worker] = (found[one.worker][0] if one.worker in found else one, one)
    return found


def quantile(seen: Seen, share: float) -> float:
    """Return the response time that this share of requests did not exceed, in seconds."""
    if not seen.seconds:
        return 0.0
    return seen.seconds[min(len(seen.seconds) - 1, int(len(seen.seconds) * share))]


def report(seen: Seen, samples: list[Sample], seconds: float) -> str:
    """Return the report as Markdown, with plots of text."""
    rows = [
        ("seconds", f"{seconds:g}"),
        ("requests", str(len(seen.seconds))),
        ("statuses", ", ".join(f"{code}: {n}" for code, n in sorted(seen.statuses.items()))),
        ("connections cut with a killed worker", str(seen.cut)),
        ("from the cache", str(seen.hits)),
        ("admitted at /closed", f"{seen.admitted} of {CLOSED_QUOTA}"),
        ("wrong bytes", str(len(seen.wrong))),
        *(
            (f"p{share * 100:g}", f"{quantile(seen, share) * 1000:.1f} ms")
            for share in (0.5, 0.9, 0.99, 0.999)
        ),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    plots = "\n".join(
        f"    worker {worker}: {plot([one.kilobytes for one in samples if one.worker == worker])}"
        f" {last.kilobytes} kB, {last.descriptors} descriptors"
        for worker, (_, last) in lives(samples).items()
    )
    broken = violations(seen, samples)
    verdict = "\n".join(f"- {one}" for one in broken) or "Nothing that must never happen did."
    return f"# Soak\n\n| | |\n|---|---|\n{table}\n\nMemory:\n\n{plots}\n\n{verdict}\n"


def plot(values: list[int]) -> str:
    """Return numbers as a line of blocks, from 0 to the greatest."""
    top = max(values, default=0) or 1
    step = max(1, len(values) // 60)
    return "".join("▁▂▃▄▅▆▇█"[min(7, value * 8 // top)] for value in values[::step])


def main() -> int:
    """Soak for as long as the command line says; 1 if something was violated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--report", type=Path)
    chosen = parser.parse_args()
    seen, samples = soak(chosen.seconds)
    text = report(seen, samples, chosen.seconds)
    print(text)
    if chosen.report:
        chosen.report.write_text(text)
    return int(bool(violations(seen, samples)))


if __name__ == "__main__":
    sys.exit(main())
