"""``python -m upstash_middleware.local``: the local Upstash as a command."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final, Self

from upstash_middleware.local import Fault, LocalUpstash, LocalUpstashError
from upstash_middleware.local.faults import NO_FAULTS, parse_faults, plain_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PORT: Final = 8079
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until interrupted, or until the command after ``--`` ends.

    Returns the exit status: the command's if there is one, or 2 if the server cannot start.
    `program` is the name in the help text.
    """
    words = sys.argv[1:] if arguments is None else arguments
    end = words.index("--") if "--" in words else len(words)
    command = words[end + 1 :]
    parser = _parser(program or "python -m upstash_middleware.local")
    options = vars(parser.parse_args(words[:end]))
    if end < len(words) and not command:
        parser.error("give the command after --, such as: -- pytest")
    if options["port"] is None:
        options["port"] = 0 if command else _PORT
    with _Signals() as signals:
        try:
            faults = parse_faults({name: options.pop(name) for name in plain_faults(NO_FAULTS)})
            upstash = LocalUpstash(**options, faults=faults)
            upstash.start()
        except (LocalUpstashError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        try:
            if not command:
                for name, value in upstash.env.items():
                    sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
                sys.stdout.flush()
            # A comment on standard error, because shells evaluate the standard output.
            sys.stderr.write(f"# console: {upstash.console_url}\n")
            sys.stderr.flush()
            if command:
                return signals.run(command, upstash.env)
            signals.wait()
        finally:
            upstash.stop()
    return 0


class _Signals:
    """Handles SIGINT and SIGTERM, also while the server starts.

    They end `wait`, or are passed on to the running command.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._early: list[int] = []
        self._command: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self) -> None:
        """Wait for a signal."""
        self._received.wait()

    def run(self, command: Sequence[str], environ: Mapping[str, str]) -> int:
        """Run a command with additional environment variables, and return its exit status.

        As in a shell, the status is 128 plus the signal's number if a signal ended it, 127 if it
        was not found, and 126 if it cannot be executed.
        """
        if self._early:
            return 128 + self._early[0]
        try:
            running = subprocess.Popen(command, env={**os.environ, **environ})  # noqa: S603 - the user's
        except OSError as error:
            sys.stderr.write(f"{command[0]}: {error.strerror}\n")
            return 127 if isinstance(error, FileNotFoundError) else 126
        self._command = running
        for number in self._early:  # received while the command was starting
            self._pass_on(running, number)
        status = running.wait()
        return status if status >= 0 else 128 - status

    def _handle(self, number: int, _: object) -> None:
        self._received.set()
        if self._command is None:
            self._early.append(number)
        else:
            self._pass_on(self._command, number)

    def _pass_on(self, command: subprocess.Popen[bytes], number: int) -> None:
        # A terminal sends Ctrl-C to the command too, and a second one often means "at once".
        if number != signal.SIGINT or not _is_in_foreground():
            command.send_signal(number)


def _is_in_foreground() -> bool:
    """Whether the terminal's Ctrl-C reaches this process and its child processes."""
    if sys.platform == "win32":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


_FAULT_OPTIONS: Final = (
    ("--latency-ms", float, "latency of every response, in milliseconds"),
    ("--jitter-ms", float, "additional random latency, up to this many milliseconds"),
    ("--probability", float, "the share of requests that the fault affects (%(default)s)"),
    ("--times", int, "the number of requests after which the fault ends"),
    ("--seconds", float, "the time after which all faults end"),
)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [options] [-- COMMAND ...]",
        description="Serves Upstash Redis's HTTP interface on this machine until interrupted. "
        "With a COMMAND, runs it with both environment variables set, until it ends.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, help=f"port, 0 for a free one ({_PORT}; a free one with a COMMAND)"
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
