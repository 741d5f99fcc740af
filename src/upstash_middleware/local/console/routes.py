"""The console's way in: which request gets which page, after the door has let it pass.

Only the way from requests to pages may live here.  Whatever changes something is a POST from one
of the console's own forms, and is answered by the way to a page.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pkgutil import get_data
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.bill_page import SPANS, bill_page
from upstash_middleware.local.console.door import Door, names_this_machine, sent_by_another_page
from upstash_middleware.local.console.entries import Entry, epoch_keys, read_kept, verdict
from upstash_middleware.local.console.kept_views import kept_view
from upstash_middleware.local.console.key_list import key_list
from upstash_middleware.local.console.key_page import key_page, no_key
from upstash_middleware.local.console.keys import (
    count_keys,
    delete_key,
    find_keys,
    read_texts,
    read_value,
)
from upstash_middleware.local.console.layout import SECURED, Frame, notice
from upstash_middleware.local.console.limit_views import limit_view
from upstash_middleware.local.console.limits import read_limit
from upstash_middleware.local.console.live_page import events, live_page
from upstash_middleware.local.console.markup import h
from upstash_middleware.local.console.weather_page import weather_of, weather_page
from upstash_middleware.local.messages import Answer, Stream
from upstash_middleware.local.reading import read_parameters
from upstash_middleware.local.store import StoreUnreachable
from upstash_middleware.local.weather import Fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from upstash_middleware.local.console.keys import Value
    from upstash_middleware.local.console.markup import Html
    from upstash_middleware.local.messages import Request, Response
    from upstash_middleware.local.service import Service

_STATIC: Final = {
    addresses.STYLE: b"text/css; charset=utf-8",
    addresses.SCRIPT: b"text/javascript; charset=utf-8",
}
_SAID: Final = {
    b"deleted": "The key is deleted.",
    b"gone": "The key was gone already.",
    b"emptied": "The database is empty.",
    b"bill": "A new bill has begun.",
    b"weather": "The weather has changed.",
}


async def answer_console(service: Service, request: Request) -> Response:
    """The answer to a request for the console."""
    if not names_this_machine(request):
        words = (
            "It is for this machine: open it by an IP address or as localhost, not by another name."
        )
        return notice("The console is not at this name", h("p", words), status=403)
    path = request.path.decode("latin-1")
    if path in _STATIC:
        return _static(path)
    if sent_by_another_page(request):
        return notice(
            "Not for other pages", h("p", "Another web page has sent this request."), status=403
        )
    try:
        return await _admit(service, request, path)
    except StoreUnreachable as error:
        return notice("The database cannot be reached", h("p", str(error)), status=500)


async def _admit(service: Service, request: Request, path: str) -> Response:
    """Let in who has the key or the cookie; all others are asked for the token."""
    door = Door.of(service.tokens.full)
    query, body = dict(read_parameters(request.query)), {}
    if request.method == "POST":
        body = dict(read_parameters(request.body))
    secret = query.get(b"key", b"") if path == addresses.KEYS else body.get(b"token", b"")
    if secret and path in (addresses.KEYS, addresses.ENTER):
        return _enter(door, request, secret)
    if not door.knows(request):
        return _sign_in()
    head_of_page = request.method == "HEAD" and path != addresses.EVENTS  # a stream has no end
    handler = _ROUTES.get(("GET" if head_of_page else request.method, path))
    if handler is None:
        back = h("p", h("a", "All keys", href=addresses.KEYS, class_="button"))
        return notice("There is no such page", back, status=404)
    if request.method == "POST" and not door.trusts(body.get(b"form", b"")):
        return notice(
            "Not one of the console's forms",
            h("p", "Load the page again, then try once more."),
            status=403,
        )
    return await handler(service, query | body)


def _enter(door: Door, request: Request, secret: bytes) -> Answer:
    if not door.opens(secret):
        return _sign_in("That is not this server's token.")
    return _see(addresses.KEYS, (b"Set-Cookie", door.cookie_for(request, addresses.KEYS)))


def _sign_in(problem: str = "") -> Answer:
    field = h(
        "input",
        type="password",
        name="token",
        id="token",
        autocomplete="current-password",
        required=True,
        aria_describedby="problem" if problem else None,
    )
    ask = h(
        "form",
        h("label", "Token", for_="token"),
        h("div", field, h("button", "Open", class_="main"), class_="field"),
        method="post",
        action=addresses.ENTER,
    )
    words = h(
        "p",
        "The server printed the console's whole address when it started. Or give its token, ",
        h("code", "UPSTASH_REDIS_REST_TOKEN"),
        ".",
    )
    told = h("p", problem, class_="said warn", id="problem", role="alert") if problem else None
    return notice("Open the console", told, words, ask, status=401)


def _static(path: str) -> Answer:
    body = get_data(__package__, path.rpartition("/")[2]) or b""
    headers = ((b"Cache-Control", b"max-age=60"), (b"X-Content-Type-Options", b"nosniff"))
    return Answer(200, body, _STATIC[path], headers)


def _see(address: str, *headers: tuple[bytes, bytes], said: str = "") -> Answer:
    """The way to another page, with a word about what was done."""
    target = address + (f"?said={said}" if said else "")
    return Answer(303, b"", b"text/plain", (*SECURED, *headers, (b"Location", target.encode())))


Fields = dict[bytes, bytes]


async def _frame(service: Service) -> Frame:
    return Frame(
        keys=await count_keys(service.store),
        bill=service.meter.read(),
        weather=service.weather.look(),
        form_secret=Door.of(service.tokens.full).form,
    )


def _said(fields: Fields) -> str:
    return _SAID.get(fields.get(b"said", b""), "")


async def _keys(service: Service, fields: Fields) -> Answer:
    cursor = fields.get(b"cursor", b"")
    start = int(cursor) if cursor.isdigit() and len(cursor) < 20 else 0
    search = fields.get(b"q", b"")
    found = await find_keys(service.store, search, start)
    frame = await _frame(service)
    return key_list(frame, search, found, _now_ms(), _said(fields))


async def _key(service: Service, fields: Fields) -> Answer:
    key = fields.get(b"key", b"")
    value = await read_value(service.store, key)
    if value is None:
        return no_key(key)
    now_ms = _now_ms()
    known = await _known(service, value, now_ms)
    return key_page(await _frame(service), value, known, now_ms)


async def _known(service: Service, value: Value, now_ms: int) -> Html | None:
    """The view of what the middleware keeps there, if it is that."""
    fact = value.fact
    if fact.type != "string" or len(value.data) != value.length:
        return None
    name = fact.key.decode("utf-8", "replace")
    kept = read_kept(name, value.data)
    if kept is not None:
        purged = ""
        if isinstance(kept, Entry):
            purged = verdict(kept.epochs, await read_texts(service.store, epoch_keys(kept)))
        ttl = None if fact.ttl_ms is None else fact.ttl_ms / 1000
        return kept_view(kept, name, purged, now_ms / 1000, ttl)
    limit = read_limit(name, value.data, now_ms, -1 if fact.ttl_ms is None else fact.ttl_ms)
    return limit_view(limit, now_ms) if limit is not None else None


async def _delete(service: Service, fields: Fields) -> Answer:
    deleted = await delete_key(service.store, fields.get(b"key", b""))
    return _see(addresses.KEYS, said="deleted" if deleted else "gone")


async def _flush(service: Service, _: Fields) -> Answer:
    await service.flush()
    return _see(addresses.KEYS, said="emptied")


async def _bill(service: Service, fields: Fields) -> Answer:
    service.history.take(service.meter.read())
    asked = {b"%d" % span: span for span in SPANS.values()}
    span = asked.get(fields.get(b"span", b""), next(iter(SPANS.values())))
    return bill_page(await _frame(service), service.history, time.time(), span, _said(fields))


async def _new_bill(service: Service, _: Fields) -> Answer:
    service.reset_bill()
    return _see(addresses.BILL, said="bill")


async def _live(service: Service, _: Fields) -> Answer:
    return live_page(await _frame(service))


async def _events(service: Service, _: Fields) -> Stream:
    watcher = service.live.watch()
    return Stream(events(watcher), lambda: service.live.leave(watcher))


async def _weather(service: Service, fields: Fields) -> Answer:
    return weather_page(await _frame(service), _said(fields))


async def _change_weather(service: Service, fields: Fields) -> Answer:
    given = {
        name.decode("latin-1"): text.decode("utf-8", "replace") for name, text in fields.items()
    }
    try:
        weather = weather_of(given)
    except ValueError as error:
        return weather_page(await _frame(service), str(error), status=400)
    service.change_weather(weather)
    if weather.fault is not Fault.REFUSE or weather.seconds is None:
        return _see(addresses.WEATHER, said="weather")
    # The next page would be refused with everything else: this one is the answer, and comes again.
    words = f"Connections are refused for {weather.seconds:g} s. This page comes back by itself."
    answer = weather_page(await _frame(service), words)
    again = f"{weather.seconds + 1:g}; url={addresses.WEATHER}".encode()
    return replace(answer, headers=(*answer.headers, (b"Refresh", again)))


def _now_ms() -> int:
    return int(time.time() * 1000)


_ROUTES: Final[dict[tuple[str, str], Callable[[Service, Fields], Awaitable[Response]]]] = {
    ("GET", addresses.KEYS): _keys,
    ("GET", addresses.KEY): _key,
    ("POST", addresses.DELETE): _delete,
    ("POST", addresses.FLUSH): _flush,
    ("GET", addresses.BILL): _bill,
    ("POST", addresses.NEW_BILL): _new_bill,
    ("GET", addresses.LIVE): _live,
    ("GET", addresses.EVENTS): _events,
    ("GET", addresses.WEATHER): _weather,
    ("POST", addresses.WEATHER): _change_weather,
}
