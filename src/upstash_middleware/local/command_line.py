"""The command line of ``python -m upstash_middleware.local``.

Only options and what is printed may live here.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from upstash_middleware.local.errors import LocalUpstashError
from upstash_middleware.local.server import LocalUpstash
from upstash_middleware.local.weather import Fault, Weather

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until interrupted; returns the exit status (2 when the server cannot start).

    `program` is the command's name in the help text.
    """
    options = _parser(program or "python -m upstash_middleware.local").parse_args(arguments)
    with _told_to_end() as end:
        try:
            upstash = _server(options)
            upstash.start()
        except (LocalUpstashError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        try:
            for name, value in upstash.env.items():
                sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
            sys.stdout.flush()
            # Not for the shell that takes the lines above, and a comment where it gets there.
            sys.stderr.write(f"# console: {upstash.console_url}\n")
            sys.stderr.flush()
            end.wait()
        finally:
            upstash.stop()
    return 0


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """An event that is set by SIGINT and SIGTERM, from before the server starts."""
    end = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: end.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _server(options: argparse.Namespace) -> LocalUpstash:
    return LocalUpstash(
        host=options.host,
        port=options.port,
        token=options.token,
        read_only_token=options.read_only_token,
        redis=options.redis,
        data=options.data,
        weather=Weather(
            latency_ms=options.latency_ms,
            jitter_ms=options.jitter_ms,
            fault=None if options.fault is None else Fault(options.fault),
            probability=options.probability,
            times=options.times,
            seconds=options.seconds,
        ),
    )


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description="Upstash Redis's HTTP interface on this machine."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8079, help="port, 0 for a free one (%(default)s)"
    )
    parser.add_argument("--token", help="the token to ask for; made up when not given")
    parser.add_argument("--read-only-token", help="a token that may only read")
    parser.add_argument("--redis", metavar="URL", help="use the Redis server at redis://HOST:PORT")
    parser.add_argument("--data", metavar="DIR", help="keep the data in this directory")
    weather = parser.add_argument_group("weather", "to be changed while running at /-/weather")
    weather.add_argument("--latency-ms", type=float, default=0.0, help="every answer is this late")
    weather.add_argument("--jitter-ms", type=float, default=0.0, help="and up to this much more")
    weather.add_argument("--fault", choices=[fault.value for fault in Fault], help="what happens")
    weather.add_argument(
        "--probability", type=float, default=1.0, help="to which share of requests (%(default)s)"
    )
    weather.add_argument("--times", type=int, help="how many requests the fault hits")
    weather.add_argument("--seconds", type=float, help="when the whole weather is over")
    return parser
