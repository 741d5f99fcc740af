"""``python -m upstash_middleware.local``: the local Upstash as a command."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from upstash_middleware.local import Fault, LocalUpstash, LocalUpstashError
from upstash_middleware.local.faults import NO_FAULTS, parse_faults, plain_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until interrupted; returns the exit status (2 when the server cannot start).

    `program` is the command's name in the help text.
    """
    parser = _parser(program or "python -m upstash_middleware.local")
    options = vars(parser.parse_args(arguments))
    with _stop_signal() as stop:
        try:
            faults = parse_faults({name: options.pop(name) for name in plain_faults(NO_FAULTS)})
            upstash = LocalUpstash(**options, faults=faults)
            upstash.start()
        except (LocalUpstashError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        try:
            for name, value in upstash.env.items():
                sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
            sys.stdout.flush()
            # A comment on standard error, because a shell evaluates standard output.
            sys.stderr.write(f"# console: {upstash.console_url}\n")
            sys.stderr.flush()
            stop.wait()
        finally:
            upstash.stop()
    return 0


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, from before the server starts."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_FAULT_OPTIONS: Final = (
    ("--latency-ms", float, "latency of every answer"),
    ("--jitter-ms", float, "and up to this much more, at random"),
    ("--probability", float, "the share of requests that the fault hits (%(default)s)"),
    ("--times", int, "how many requests the fault hits at most"),
    ("--seconds", float, "after how long all of this is over"),
)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description="Upstash Redis's HTTP interface on this machine."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8079, help="port, 0 for a free one (%(default)s)"
    )
    parser.add_argument("--token", help="the token to require; random if not given")
    parser.add_argument("--read-only-token", help="a token that may only read")
    parser.add_argument("--redis", metavar="URL", help="use the Redis server at redis://HOST:PORT")
    parser.add_argument("--data", metavar="DIR", help="keep the data in this directory")
    faults = parser.add_argument_group("faults", "can be changed while running, at /-/faults")
    for option, kind, meaning in _FAULT_OPTIONS:
        name = option.removeprefix("--").replace("-", "_")
        faults.add_argument(option, type=kind, default=getattr(NO_FAULTS, name), help=meaning)
    names = [fault.value for fault in Fault]
    faults.add_argument("--fault", choices=names, help="what happens to requests")
    return parser


if __name__ == "__main__":
    sys.exit(main())
