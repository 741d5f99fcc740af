"""``upstash-middleware local -- COMMAND``: a command with a local Upstash, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import httpx
import pytest

from tests.local.test_server import is_alive, until

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = (str(Path(sys.executable).with_name("upstash-middleware")), "local")

WITH_UPSTASH = """
import os, signal, sys
import httpx

def run(*command):
    headers = {"Authorization": "Bearer " + os.environ["UPSTASH_REDIS_REST_TOKEN"]}
    answer = httpx.post(os.environ["UPSTASH_REDIS_REST_URL"], json=command, headers=headers)
    return answer.json()["result"]

SIGNALS = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # for sigwait
"""
"""How the commands of these tests begin."""


def python(program: str) -> tuple[str, str, str]:
    return (sys.executable, "-c", WITH_UPSTASH + program)


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOCAL, *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_uses_a_server_that_ends_with_it():
    """Standard output is the command's alone, and its exit status is passed on."""
    done = run(
        "--",
        *python("""
print(run("INCR", "n"), os.environ["UPSTASH_REDIS_REST_URL"])
for line in run("INFO", "server").split():
    if line.startswith(("process_id:", "config_file:")):
        print(line.partition(":")[2])
sys.exit(7)
"""),
        UPSTASH_REDIS_REST_URL="http://127.0.0.1:1",  # replaced
    )
    assert done.returncode == 7, done.stderr
    first, valkey, config = done.stdout.splitlines()
    number, _, url = first.partition(" ")
    assert number == "1"
    until(lambda: not is_alive(int(valkey)))
    assert not Path(config).parent.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_the_command_gets_its_own_options_and_the_server_its_own():
    done = run(
        "--token",
        "mine",
        "--",
        *python("print(os.environ['UPSTASH_REDIS_REST_TOKEN'], *sys.argv[1:])"),
        "--token",
        "--",
        "yours",
    )
    assert (done.returncode, done.stdout) == (0, "mine --token -- yours\n")


def test_two_commands_run_at_the_same_time():
    """Each has a free port, and not the port that the server has by itself."""
    program = python(f"""
import subprocess
sys.exit(subprocess.call([{LOCAL[0]!r}, "local", "--", sys.executable, "-c", "print('inside')"]))
""")
    done = run("--", *program)
    assert (done.returncode, done.stdout) == (0, "inside\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_to_the_command_which_decides(number: signal.Signals):
    program = python("""
print("ready", flush=True)
print(signal.sigwait(SIGNALS).name)
sys.exit(run("INCR", "n"))
""")
    with subprocess.Popen(
        [*LOCAL, "--", *program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # without a terminal, which would send SIGINT to both
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"{number.name}\n"
        assert process.wait(30) == 1


def test_a_command_that_a_signal_ends_has_the_status_that_a_shell_gives_it():
    done = run("--", *python("os.kill(os.getpid(), signal.SIGKILL)"))
    assert done.returncode == 128 + signal.SIGKILL


@contextmanager
def in_a_terminal(program: str) -> Iterator[tuple[subprocess.Popen[str], BinaryIO]]:
    """Run a program in a terminal of its own; gives the process and the keyboard.

    Standard output is a pipe, and the program has written "ready" to it.
    """
    takes_the_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    ours, theirs = os.openpty()
    with (
        os.fdopen(ours, "wb", buffering=0) as keyboard,
        subprocess.Popen(
            [sys.executable, "-c", takes_the_terminal, *LOCAL, "--", *python(program)],
            stdin=theirs,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process, keyboard


def test_ctrl_c_in_a_terminal_reaches_the_command_once_and_leaves_the_database():
    """The terminal sends it to each process of the group, the embedded Valkey included."""
    program = """
print("ready", flush=True)
print(signal.sigwait(SIGNALS).name, flush=True)
print(signal.sigwait(SIGNALS).name, run("PING"), flush=True)
"""
    with in_a_terminal(program) as (process, keyboard):
        assert process.stdout is not None
        process.send_signal(signal.SIGSTOP)  # what it would pass on then comes as a second one
        keyboard.write(b"\x03")
        assert process.stdout.readline() == "SIGINT\n"
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert process.stdout.read() == "SIGTERM PONG\n"
        assert process.wait(30) == 0


def test_a_terminal_that_is_closed_leaves_neither_processes_nor_files():
    """It ends the processes of the group by SIGHUP, which Valkey ignores."""
    program = """
print("ready", flush=True)
server = dict(line.split(":", 1) for line in run("INFO", "server").split() if ":" in line)
print(server["process_id"], server["config_file"], flush=True)
signal.sigwait(SIGNALS)
"""
    with in_a_terminal(program) as (process, keyboard):
        assert process.stdout is not None
        valkey, config = process.stdout.readline().split()
        keyboard.close()
        assert process.wait(30) == -signal.SIGHUP
    until(lambda: not is_alive(int(valkey)))
    until(lambda: not Path(config).parent.exists())


def test_a_command_that_cannot_be_run_has_the_status_that_a_shell_gives_it(tmp_path: Path):
    for words, status in (((str(tmp_path / "none"),), 127), ((str(tmp_path),), 126)):
        done = run("--", *words)
        assert (done.returncode, done.stdout) == (status, "")
        assert words[0] in done.stderr
        assert "Traceback" not in done.stderr


def test_a_command_without_its_dashes_and_dashes_without_a_command_are_explained():
    for words in (("pytest",), ("--",)):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "[-- COMMAND ...]" in done.stderr
