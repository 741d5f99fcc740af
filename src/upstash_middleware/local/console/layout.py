"""The frame of every page, and how a page is sent.  No single page may be described here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.markup import Html, all_of, h
from upstash_middleware.local.console.wording import amount, dollars
from upstash_middleware.local.messages import Answer
from upstash_middleware.local.weather import CLEAR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from upstash_middleware.local.bill import Bill
    from upstash_middleware.local.console.markup import Child
    from upstash_middleware.local.weather import Weather

_POLICY: Final = (
    b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    b"img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
SECURED: Final = (
    (b"Content-Security-Policy", _POLICY),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Referrer-Policy", b"same-origin"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Cache-Control", b"no-store"),
)
_PAGES: Final = (
    ("Keys", addresses.KEYS),
    ("Bill", addresses.BILL),
    ("Live", addresses.LIVE),
    ("Weather", addresses.WEATHER),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What every page shows around its own matter."""

    keys: int
    bill: Bill
    weather: Weather
    form_secret: str


def page(
    frame: Frame, title: str, here: str, *main: Child, said: str = "", status: int = 200
) -> Answer:
    """A whole page; `here` is the address of the part that it belongs to."""
    links = [
        h("a", name, href=address, aria_current="page" if address == here else None)
        for name, address in _PAGES
    ]
    header = h(
        "header",
        h("p", h("span", "local", class_="local"), " Upstash", class_="name"),
        h("nav", links, aria_label="Console"),
        class_="top",
    )
    content = h(
        "main", h("p", said, class_="said", role="status") if said else None, *main, id="main"
    )
    return document(title, header, _strip(frame), content, status=status)


def _strip(frame: Frame) -> Html:
    """How things stand, in a line."""
    bill = frame.bill
    return h(
        "ul",
        _standing("Keys", amount(frame.keys), addresses.KEYS),
        _standing("Requests", amount(bill.requests), addresses.BILL),
        _standing("Commands", amount(bill.commands), addresses.BILL),
        _standing("A million requests", dollars(bill.dollars_per_million_requests), addresses.BILL),
        _standing(
            "Weather",
            weather_in_short(frame.weather),
            addresses.WEATHER,
            "" if frame.weather == CLEAR else "stormy",
        ),
        class_="strip",
        aria_label="How things stand",
        id="strip",
        data_live=True,
    )


def _standing(name: str, value: str, address: str, class_: str = "") -> Html:
    link = h(
        "a", h("span", name, class_="what"), " ", h("span", value, class_="value"), href=address
    )
    return h("li", link, class_=class_ or None)


def weather_in_short(weather: Weather) -> str:
    """The weather in a few words."""
    if weather == CLEAR:
        return "clear"
    parts = []
    if weather.fault:
        share = f" {weather.probability * 100:g} %" if weather.probability < 1 else ""
        parts.append(weather.fault.value + share)
    if weather.latency_ms or weather.jitter_ms:
        jitter = f"+{weather.jitter_ms:g}" if weather.jitter_ms else ""
        parts.append(f"{weather.latency_ms:g}{jitter} ms late")
    return ", ".join(parts) or "clear"


def form(frame: Frame, action: str, *children: Child, class_: str | None = None) -> Html:
    """A form that changes something, with the secret that says it is the console's own."""
    secret = h("input", type="hidden", name="form", value=frame.form_secret)
    return h("form", secret, *children, method="post", action=action, class_=class_)


def facts(pairs: Mapping[str, Child]) -> Html:
    """Names and values; those without a value are left out."""
    items = [
        h("div", h("dt", name), h("dd", value))
        for name, value in pairs.items()
        if value not in ("", None)
    ]
    return h("dl", items, class_="facts")


def document(title: str, *body: Child, status: int = 200) -> Answer:
    """A whole HTML document as an answer."""
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", f"{title} · local Upstash"),
        h("link", rel="icon", href="data:,"),
        h("link", rel="stylesheet", href=addresses.STYLE),
        h("script", src=addresses.SCRIPT, defer=True),
    )
    skip = h("a", "Skip to the content", href="#main", class_="skip")
    whole = all_of(Html("<!doctype html>"), h("html", head, h("body", skip, *body), lang="en"))
    return Answer(status, whole.encode("utf-8", "replace"), b"text/html; charset=utf-8", SECURED)


def notice(title: str, *children: Child, status: int) -> Answer:
    """A page for who is not in, or has gone astray: without the frame."""
    name = h("p", h("span", "local", class_="local"), " Upstash", class_="name")
    return document(
        title, h("main", name, h("h1", title), *children, id="main", class_="notice"), status=status
    )
