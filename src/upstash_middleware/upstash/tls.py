"""TLS from bytes to bytes: the trusted authorities, and the state of a connection. No I/O.

This module imports ssl, so it is imported only for https URLs.
"""

from __future__ import annotations

import functools
import ssl
import sys
from pathlib import Path

from upstash_middleware.errors import NotConnected


@functools.cache
def context() -> ssl.SSLContext:
    """Return the TLS settings of all connections of a process, with the system's authorities.

    SSL_CERT_FILE and SSL_CERT_DIR override them. If the system has none, certifi's are trusted.
    """
    made = ssl.create_default_context(cafile=None if _has_system_authorities() else _certifi())
    made.set_alpn_protocols(["http/1.1"])
    return made


def _has_system_authorities() -> bool:
    if sys.platform == "win32":
        return True  # in the system's certificate stores
    paths = ssl.get_default_verify_paths()
    directory = paths.capath
    return bool(paths.cafile or (directory and any(Path(directory).iterdir())))


def _certifi() -> str:
    import certifi  # noqa: PLC0415 - rarely needed

    return certifi.where()


class Resumption:
    """The latest TLS session with a server, which shortens the next handshake (RFC 8446 §2.2)."""

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: ssl.SSLSession | None = None


class Tls:
    """The client's side of one TLS connection."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_request", "_resumption", "ready")

    def __init__(self, host: str, resumption: Resumption) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context().wrap_bio(
            self._incoming, self._outgoing, server_hostname=host, session=resumption.session
        )
        self._resumption: Resumption | None = resumption
        """None after it has received this connection's session."""
        self._request = b""
        self.ready: bool = False
        """Whether the handshake is complete."""

    def begin(self, request: bytes) -> bytes:
        """Return the first bytes to send: the start of the handshake, or the request."""
        self._request = request
        return self._encrypt() if self.ready else self._handshake()

    def receive(self, received: bytes) -> tuple[bytes, bytes, bool]:
        """Return bytes to send, decrypted bytes, and whether the server has announced the end.

        Raises NotConnected if the handshake fails, and EOFError if the connection ends without
        close_notify, which an attacker may have caused.
        """
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()
        if not self.ready:
            return self._handshake(), b"", False
        pieces = []
        try:
            while piece := self._object.read(65_536):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            if pieces and self._resumption is not None:
                self._keep_session(self._resumption)
            return b"", b"".join(pieces), False
        except ssl.SSLEOFError:
            raise EOFError("the connection was closed without close_notify") from None
        return b"", b"".join(pieces), True

    def _handshake(self) -> bytes:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        except OSError as error:
            raise handshake_error(error) from error
        self.ready = True
        return self._encrypt()  # in one packet with the end of the handshake

    def _encrypt(self) -> bytes:
        data, self._request = self._request, b""
        written = 0
        while written < len(data):
            written += self._object.write(memoryview(data)[written:])
        return self._outgoing.read()

    def _keep_session(self, resumption: Resumption) -> None:
        """Keep the session, which TLS 1.3 sends before the first response."""
        session, self._resumption = self._object.session, None
        if session is not None and session.has_ticket:
            resumption.session = session


def handshake_error(error: OSError) -> NotConnected:
    """Return the error to raise for a failed handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate is not to be trusted: {error.verify_message}"
    elif isinstance(error, ssl.SSLEOFError):
        reason = "it was closed during the TLS handshake"
    else:
        what = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
        reason = f"the TLS handshake failed: {what}"
    return NotConnected(f"no connection to Upstash: {reason}")
