"""Who may come into the console, and who may change anything there.

Only decisions about requests may live here.  The console shows every key, so it asks for a secret;
and it is open in a browser, where other people's pages are open too.  Four things keep those out:
the request must name this machine by an address or as localhost (a name in DNS can be pointed here
by whoever owns it); it must not have been sent by another page, by what the browser says of it;
it must carry the cookie, which no other page can read; and what changes something must carry a
second secret, which only the console's own forms hold.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from upstash_middleware.local.messages import Request

_AUTHORITY: Final = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::([0-9]{1,5}))?$")
_COOKIE_SECONDS: Final = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Door:
    """The console's secrets: made of the server's token, which none of them gives away.

    A server that is started again with the same token knows who was in already.
    """

    token: str
    key: str
    """In the address that the server prints."""
    cookie: str
    form: str
    """In every form, and nowhere else."""

    @classmethod
    def of(cls, token: str) -> Self:
        """The door of a server with this token."""
        return cls(token, *(_derived(token, use) for use in ("key", "cookie", "form")))

    def opens(self, secret: bytes) -> bool:
        """Whether this is the printed key, or the server's token."""
        known = (self.key.encode(), self.token.encode())
        return any(hmac.compare_digest(secret, each) for each in known)

    def knows(self, request: Request) -> bool:
        """Whether the request carries the cookie."""
        name = cookie_name(request)
        cookies = (pair.partition(b"=") for pair in request.headers.get(b"cookie", b"").split(b";"))
        return any(
            hmac.compare_digest(value.strip(), self.cookie.encode())
            for given, _, value in cookies
            if given.strip() == name
        )

    def trusts(self, form_secret: bytes) -> bool:
        """Whether a form is one of the console's own."""
        return hmac.compare_digest(form_secret, self.form.encode())

    def cookie_for(self, request: Request, path: str) -> bytes:
        """The Set-Cookie that lets this browser in."""
        attributes = f"Path={path}; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
        return cookie_name(request) + f"={self.cookie}; {attributes}".encode()


def _derived(token: str, use: str) -> str:
    return hmac.digest(token.encode(), f"console {use}".encode(), "sha256").hex()[:32]


def cookie_name(request: Request) -> bytes:
    """Cookies do not know ports, so servers on several of them have several names."""
    found = _AUTHORITY.match(_host(request))
    return f"upstash-console-{(found and found[3]) or 80}".encode()


def _host(request: Request) -> str:
    return request.headers.get(b"host", b"").decode("latin-1")


def names_this_machine(request: Request) -> bool:
    """Whether Host is an IP address or localhost, which nobody's DNS can lend to a web page."""
    found = _AUTHORITY.match(_host(request))
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
    """Whether a page that is not the console's has sent this, by Origin and Fetch Metadata.

    To follow a link to the console is no such thing: that shows it to the person alone.
    """
    origin = request.headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != request.headers.get(b"host"):
        return True
    site = request.headers.get(b"sec-fetch-site", b"none")
    if site in (b"none", b"same-origin"):
        return False
    followed = (
        request.headers.get(b"sec-fetch-mode") == b"navigate"
        and request.headers.get(b"sec-fetch-dest") == b"document"
    )
    return request.method not in ("GET", "HEAD") or not followed
