"""Authentication of the console.

The console shows every key, so it requires a secret.  It is open in a browser that also shows other
sites' pages, and four checks keep those out.  The request must address this machine by IP address
or as localhost, because anyone can point a DNS name at this address.  By the browser's
Origin and Fetch Metadata fields, it must not come from a page of another site.  It must carry the
cookie, which no other page can read.  And to change something, it must carry a second secret, which
only the console's own forms contain.
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
    """The console's secrets, derived from the server's token, which none of them reveals.

    After a restart with the same token, cookies remain valid.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self.key: str = self._derive("key")
        """In the address that the server prints."""
        self.form: str = self._derive("form")
        """In every form of the console, and nowhere else."""

    def _derive(self, use: str) -> str:
        return hmac.digest(self._token.encode(), f"console {use}".encode(), "sha256").hex()[:32]

    def accepts_login(self, secret: bytes) -> bool:
        """Whether this is the printed key, or the server's token."""
        known = (self.key.encode(), self._token.encode())
        return any(hmac.compare_digest(secret, each) for each in known)

    def accepts_cookie(self, request: Request) -> bool:
        """Whether the request carries the cookie."""
        cookie = self._derive("cookie").encode()
        pairs = (pair.partition(b"=") for pair in request.headers.get(b"cookie", b"").split(b";"))
        return any(
            hmac.compare_digest(value.strip(), cookie)
            for name, _, value in pairs
            if name.strip() == _cookie_name(request)
        )

    def accepts_form(self, secret: bytes) -> bool:
        """Whether a form is one of the console's own."""
        return hmac.compare_digest(secret, self.form.encode())

    def set_cookie(self, request: Request) -> bytes:
        """The Set-Cookie that logs this browser in."""
        attributes = f"Path={CONSOLE}; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
        return _cookie_name(request) + f"={self._derive('cookie')}; {attributes}".encode()


def addresses_this_machine(request: Request) -> bool:
    """Whether Host is an IP address or localhost."""
    found = _host(request)
    if found is None:
        return False
    name = (found[1] or found[2]).lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def sent_by_another_page(request: Request) -> bool:
    """Whether a page of another site sent this, by Origin and Fetch Metadata.

    Following a link to the console is allowed: only the user sees the page.
    """
    origin = request.headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != request.headers.get(b"host"):
        return True
    if request.headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin"):
        return False
    is_link = (
        request.method in ("GET", "HEAD")
        and request.headers.get(b"sec-fetch-mode") == b"navigate"
        and request.headers.get(b"sec-fetch-dest") == b"document"
    )
    return not is_link


def _host(request: Request) -> re.Match[str] | None:
    return _HOST.match(request.headers.get(b"host", b"").decode("latin-1"))


def _cookie_name(request: Request) -> bytes:
    """With the port, because cookies are shared between a host's ports."""
    found = _host(request)
    return f"upstash-console-{(found and found[3]) or 80}".encode()
