"""Authentication of the console.

The console shows every key, so it requires a secret. The same browser may show other sites' pages,
which four checks keep from using the console. Host must be an IP address or localhost, because
anyone can point a DNS name at this address (DNS rebinding). Origin and the Fetch Metadata fields
must not name another site's page. The request must have the cookie, which other pages cannot read.
To change data, it must also have an Origin and a second secret, which only the console's forms
contain (CSRF), and it must come from this machine.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from upstash_middleware.local.http1 import Request

CONSOLE: Final = "/-/console"

_HOST: Final = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::([0-9]{1,5}))?$")
_COOKIE_SECONDS: Final = 30 * 86_400


class ConsoleAuth:
    """The console's secrets, derived from the server's token, which they do not reveal.

    After a restart with the same token, cookies remain valid.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self.key: str = self._derive("key")
        """The secret in the URL that the server prints."""
        self.form: str = self._derive("form")
        """The secret in every form of the console."""

    def _derive(self, use: str) -> str:
        return hmac.digest(self._token.encode(), f"console {use}".encode(), "sha256").hex()[:32]

    def accepts_login(self, secret: bytes) -> bool:
        """Whether this is the printed key or the server's token."""
        known = (self.key.encode(), self._token.encode())
        return any(hmac.compare_digest(secret, each) for each in known)

    def accepts_cookie(self, request: Request) -> bool:
        """Whether the request contains the cookie."""
        cookie = self._derive("cookie").encode()
        pairs = (pair.partition(b"=") for pair in request.headers.get(b"cookie", b"").split(b";"))
        return any(
            hmac.compare_digest(value.strip(), cookie)
            for name, _, value in pairs
            if name.strip() == _cookie_name(request)
        )

    def accepts_form(self, secret: bytes) -> bool:
        """Whether a form was sent by the console's own page."""
        return hmac.compare_digest(secret, self.form.encode())

    def set_cookie(self, request: Request) -> bytes:
        """The Set-Cookie value that logs this browser in."""
        attributes = f"Path={CONSOLE}; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
        return _cookie_name(request) + f"={self._derive('cookie')}; {attributes}".encode()


def has_safe_host(request: Request) -> bool:
    """Whether Host is an IP address or localhost."""
    name, _ = _host(request)
    return _is_localhost(name) or _address(name) is not None


def is_on_this_machine(request: Request) -> bool:
    """Whether both the connection and Host have a loopback address."""
    name, _ = _host(request)
    addresses = [_address(request.client)] + [_address(name)] * (not _is_localhost(name))
    return all(address is not None and address.is_loopback for address in addresses)


def comes_from_own_page(request: Request) -> bool:
    """Whether Origin and Fetch Metadata name the console itself, or the user opens it.

    Following a link to the console is allowed, because only the user sees the page.
    """
    reads = request.method in ("GET", "HEAD")
    origin = request.headers.get(b"origin")
    if origin is None and not reads:
        return False
    if origin is not None and origin.partition(b"://")[2] != request.headers.get(b"host"):
        return False
    if request.headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin"):
        return True
    return (
        reads
        and request.headers.get(b"sec-fetch-mode") == b"navigate"
        and request.headers.get(b"sec-fetch-dest") == b"document"
    )


def _is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _host(request: Request) -> tuple[str, str]:
    """The name in Host in lower case, and its port; an empty name if Host is malformed."""
    found = _HOST.match(request.headers.get(b"host", b"").decode("latin-1"))
    return ((found[1] or found[2]).lower(), found[3] or "80") if found else ("", "80")


def _cookie_name(request: Request) -> bytes:
    """The name contains the port, because a host's ports share cookies."""
    return f"upstash-console-{_host(request)[1]}".encode()
