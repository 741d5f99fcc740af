"""A page followed to the letter by a reader with a shell: files, commands, and what they print.

A block whose first line names a file, ``# shop.py``, is that file; ``, at the end`` adds to it. A
``shell`` block is run; one that ends with a server stays running, as in a terminal of its own, and
what it exports holds from there on. In a ``console`` block the lines after ``$`` are commands, and
what they print has to be what stands below. Taken otherwise than printed are only the ports, which
are free ones, the deadlines, since a machine under load is no outage, and ``pip install``.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from examples.demo.servers import free_port
from tests.docs.pages import ROOT, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docs.pages import Block

PATIENCE: Final = 120.0
UPSTASH, APPLICATION = 8079, 8000
"""The ports that every page names."""

_SERVES = re.compile(r"^(upstash-middleware local|uvicorn|flask .*run|python manage\.py runserver)")
_VARIES = re.compile(
    r"(?<=\bt=)\d+|(?<=ttl=)\d+|(?<=retry-after: )\d+|(?<=age: )\d+", re.IGNORECASE
)
_PATIENT: Final = "deadline=20, cache_deadline=20,"
_MADE = (
    (re.compile(r"(add_middleware\(\s*\w*Middleware,)"), rf"\1 {_PATIENT}"),
    (re.compile(r"(?<!\.)(\b\w*Middleware\(\s*app,)"), rf"\1 {_PATIENT}"),
    (
        re.compile(r"^(UPSTASH_MIDDLEWARE = \{)", re.MULTILINE),
        r'\1 "deadline": 20, "cache_deadline": 20,',
    ),
)


def patient(text: str) -> str:
    """Return an application's code with deadlines that a busy machine keeps."""
    for pattern, replacement in _MADE:
        text = pattern.sub(replacement, text)
    return text


def write(block: Block, folder: Path) -> None:
    """Write the file that a block is."""
    assert block.file is not None
    path = folder / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if block.continues else "w") as file:
        file.write(patient(block.text) + "\n")


@dataclass(slots=True)
class Reader:
    """Somebody who does what a page says, in a folder of their own."""

    folder: Path
    running: ExitStack
    ports: dict[int, int] = field(
        default_factory=lambda: {UPSTASH: free_port(), APPLICATION: free_port()}
    )
    exports: list[str] = field(default_factory=list)
    last: str = ""
    """What the latest server has printed, for whoever asks why."""

    def do(self, block: Block) -> None:
        """Do what a block says."""
        if block.file is not None:
            write(block, self.folder)
        elif block.language == "shell":
            self._run(block)
        elif block.language == "console":
            self._converse(block)

    def _run(self, block: Block) -> None:
        lines = [line for line in block.text.splitlines() if not line.startswith("pip install")]
        if not lines:
            return
        serves = _SERVES.match(lines[-1]) is not None
        self.exports += [line for line in lines if line.startswith("export ")]
        if serves:
            self._serve("\n".join(lines))
        else:
            done = self._shell("\n".join(lines))
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"

    def _converse(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, printed = _command(part)
            done = self._shell(command)
            got, expected = (_VARIES.sub("N", text.strip()) for text in (done.stdout, printed))
            assert got == expected, f"{block}: {command}\n{got}\n{done.stderr}\n{self._log()}"

    def _shell(self, script: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-ec", self._here("\n".join([*self.exports, script]))]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def _serve(self, script: str) -> None:
        own = self.ports[UPSTASH]
        script = script.replace(
            "upstash-middleware local", f"upstash-middleware local --port {own}"
        )
        log = self.running.enter_context((self.folder / f"log{len(self.exports)}").open("w+"))
        self.last = log.name
        shell = subprocess.Popen(
            ["bash", "-c", self._here("\n".join([*self.exports, script]))],
            cwd=self.folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.running.callback(_stop, shell)
        port = UPSTASH if "upstash-middleware local" in script else APPLICATION
        _wait_until_it_listens(self.ports[port], shell, self._log)

    def _here(self, script: str) -> str:
        for printed, own in self.ports.items():
            script = re.sub(rf"\b{printed}\b", str(own), script)
        return script

    def _log(self) -> str:
        return Path(self.last).read_text() if self.last else ""


def _command(part: str) -> tuple[str, str]:
    """Return the command, over as many lines as end with a backslash, and what it prints."""
    lines = part.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
    return "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])


def environment() -> dict[str, str]:
    """Return a shell's, in which this environment's commands are found and nothing is set."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("UPSTASH", "DJANGO", "COV"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return mine | {"PATH": path, "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}


def _stop(shell: subprocess.Popen[bytes]) -> None:
    os.killpg(shell.pid, signal.SIGTERM)
    shell.wait(PATIENCE)


def _wait_until_it_listens(port: int, shell: subprocess.Popen[bytes], log: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and shell.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    assert callable(log)
    raise AssertionError(f"nothing listens on port {port}: {log()}")


@contextmanager
def following(folder: Path) -> Iterator[Reader]:
    """Give a reader, whose servers end with the block."""
    with ExitStack() as running:
        yield Reader(folder, running)


def followed() -> list[Path]:
    """Return the pages that are to be followed: with files, and what is seen of them."""
    return [
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if any(block.file for block in blocks(page))
        and any(block.language == "console" for block in blocks(page))
    ]
