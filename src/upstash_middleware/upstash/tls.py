"""TLS as bytes in, bytes out: whom a client trusts, and one connection's state. No I/O of its own.

Importing it imports ssl, so it is imported where a URL is https.
"""

from __future__ import annotations

import functools
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from upstash_middleware.errors import NotConnected

if TYPE_CHECKING:
    from collections.abc import Generator

_PIECE: Final = 65_536


@functools.cache
def context() -> ssl.SSLContext:
    """Return what all connections of a process trust: the system's authorities.

    SSL_CERT_FILE and SSL_CERT_DIR name others. Where there are none, those of certifi.
    """
    made = ssl.create_default_context(cafile=None if _system_knows_any() else _of_certifi())
    made.set_alpn_protocols(["http/1.1"])
    return made


def _system_knows_any() -> bool:
    if sys.platform == "win32":
        return True  # in stores of its own
    paths = ssl.get_default_verify_paths()
    directory = paths.capath
    return bool(paths.cafile or (directory and any(Path(directory).iterdir())))


def _of_certifi() -> str:
    import certifi  # noqa: PLC0415 - nearly never

    return certifi.where()


class Resumption:
    """The latest session with one server: with it the next handshake is shorter (RFC 8446 §2.2)."""

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: ssl.SSLSession | None = None


class Tls:
    """The client's side of one connection."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_resumption", "ready")

    def __init__(self, host: str, resumption: Resumption) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context().wrap_bio(
            self._incoming, self._outgoing, server_hostname=host, session=resumption.session
        )
        self._resumption: Resumption | None = resumption
        """None once it has this connection's session."""
        self.ready: bool = False
        """Whether the handshake is over."""

    def handshake(self) -> Generator[bytes, bytes]:
        """Yield what to send, and be sent what was received, until both sides agree.

        The last that is to be sent stays for ``sealed``. Raises NotConnected, also for an OSError
        that is thrown in.
        """
        try:
            while not self.ready:
                try:
                    self._object.do_handshake()
                    self.ready = True
                except ssl.SSLWantReadError:
                    self._take((yield self._outgoing.read()))
        except OSError as error:
            raise NotConnected(f"no connection to Upstash: {_said(error)}") from error

    def sealed(self, data: bytes) -> bytes:
        """Return what to send for the data."""
        written = self._object.write(data)
        while written < len(data):
            written += self._object.write(memoryview(data)[written:])
        return self._outgoing.read()

    def opened(self, received: bytes) -> tuple[bytes, bool]:
        """Return the data in what was received, maybe none yet, and whether they end there.

        Raises EOFError for an end that was not announced, which somebody else may have made.
        """
        self._take(received)
        pieces = []
        try:
            while piece := self._object.read(_PIECE):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            if pieces and self._resumption is not None:
                self._keep_session(self._resumption)
            return b"".join(pieces), False
        except ssl.SSLEOFError:
            raise EOFError("the connection was closed without a word of TLS") from None
        return b"".join(pieces), True

    def _keep_session(self, resumption: Resumption) -> None:
        """Keep the session, which TLS 1.3 has whole when the first answer is here."""
        session, self._resumption = self._object.session, None
        if session is not None and session.has_ticket:
            resumption.session = session

    def _take(self, received: bytes) -> None:
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()


def _said(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "it was closed during the TLS handshake"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason or error}"
    return f"the TLS handshake failed: {error}"
