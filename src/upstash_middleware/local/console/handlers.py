"""The console's pages: which request is answered with which page.

A request that changes something is a POST from one of the console's own forms; its answer
redirects to a page.
"""

from __future__ import annotations

import datetime as dt
import math
from functools import partial
from pkgutil import get_data
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec.structs import replace

from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache.entries import tags_and_groups
from upstash_middleware.core.cache.http.reuse import current_age
from upstash_middleware.local.billing import DOLLARS_PER_COMMAND
from upstash_middleware.local.console import auth, formats, keys
from upstash_middleware.local.console.auth import CONSOLE, ConsoleAuth
from upstash_middleware.local.faults import EFFECTS, NO_FAULTS, Fault, parse_faults, plain_faults
from upstash_middleware.local.http1 import Answer, Stream
from upstash_middleware.local.service import Watcher, read_parameters
from upstash_middleware.local.valkey import Failure, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from upstash_middleware.local.faults import Faults
    from upstash_middleware.local.http1 import Request, Response
    from upstash_middleware.local.service import LiveEvent, Service

    Fields = Mapping[bytes, bytes]

KEYS: Final = CONSOLE
KEY: Final = f"{CONSOLE}/key"
DELETE: Final = f"{CONSOLE}/key/delete"
FLUSH: Final = f"{CONSOLE}/flush"
BILL: Final = f"{CONSOLE}/bill"
RESET_BILL: Final = f"{CONSOLE}/bill/reset"
LIVE: Final = f"{CONSOLE}/live"
EVENTS: Final = f"{CONSOLE}/live/events"
FAULTS: Final = f"{CONSOLE}/faults"
LOGIN: Final = f"{CONSOLE}/enter"
SCRIPT: Final = f"{CONSOLE}/console.js"
_STATIC: Final = {
    f"{CONSOLE}/console.css": b"text/css; charset=utf-8",
    SCRIPT: b"text/javascript; charset=utf-8",
}
_CONTENT_SECURITY_POLICY: Final = (
    b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    b"img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_SECURITY_HEADERS: Final = (
    (b"Content-Security-Policy", _CONTENT_SECURITY_POLICY),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Referrer-Policy", b"same-origin"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Cache-Control", b"no-store"),
)
_MESSAGES: Final = {
    b"deleted": "The key is deleted.",
    b"gone": "The key was gone already.",
    b"emptied": "The database is empty.",
    b"bill": "A new bill has begun.",
    b"faults": "The faults have changed.",
}
"""By the parameter ``notice`` of a redirect."""
_SPANS: Final = {"2 min": 120, "15 min": 900, "1 h": 3600, "6 h": 21_600}
"""The lengths of the bill's chart in seconds, of which the first is the default."""
_REFUSE_SECONDS: Final = 5.0
"""How long connections are refused by default: the console is refused as well."""


async def answer_console(service: Service, request: Request) -> Response:
    """The answer to a request for the console."""
    if not auth.addresses_this_machine(request):
        text = "It is for this machine only: open it by an IP address or as localhost."
        return _notice(403, "The console is not at this name", text)
    path = request.path.decode("latin-1")
    if path in _STATIC:
        body = get_data(__package__, path.rpartition("/")[2]) or b""
        headers = ((b"Cache-Control", b"max-age=60"), (b"X-Content-Type-Options", b"nosniff"))
        return Answer(200, body, _STATIC[path], headers)
    if auth.sent_by_another_page(request):
        return _notice(403, "Not for other pages", "Another web page has sent this request.")
    try:
        return await _answer_own_page(service, request, path)
    except StoreUnreachable as error:
        return _notice(500, "The database cannot be reached", str(error))


async def _answer_own_page(service: Service, request: Request, path: str) -> Response:
    """Log in by the printed key or the token; answer requests that are logged in."""
    secrets = ConsoleAuth(service.tokens.full)
    query = dict(read_parameters(request.query))
    form = dict(read_parameters(request.body)) if request.method == "POST" else {}
    secret = query.get(b"key") if path == KEYS else form.get(b"token")
    if secret and path in (KEYS, LOGIN):
        if secrets.accepts_login(secret):
            return _redirect(KEYS, (b"Set-Cookie", secrets.set_cookie(request)))
        return _notice(401, "Open the console", "That is not this server's token.", login=True)
    if not secrets.accepts_cookie(request):
        return _notice(401, "Open the console", login=True)
    is_head = request.method == "HEAD" and path != EVENTS  # a stream does not end
    handler = _ROUTES.get(("GET" if is_head else request.method, path))
    if handler is None:
        return _notice(404, "There is no such page")
    if request.method == "POST" and not secrets.accepts_form(form.get(b"form", b"")):
        return _notice(403, "Not one of the console's forms", "Reload the page, and try again.")
    return await handler(service, query | form)


# Pages, in the order of the navigation.


async def _keys(service: Service, fields: Fields) -> Answer:
    cursor = fields.get(b"cursor", b"")
    start = int(cursor) if cursor.isdigit() and len(cursor) < 20 else 0
    search = fields.get(b"q", b"")
    page = await keys.find_keys(service.store, search, start)
    return await _page(service, "keys.html", fields, search=search, page=page)


async def _key(service: Service, fields: Fields) -> Answer:
    name = fields.get(b"key", b"")
    value = await keys.read_value(service.store, name)
    if value is None:
        return _notice(404, "This key is gone", formats.text(name))
    now = SystemClock.wall()
    cached, limit, purges = None, None, ""
    if value.key.type == "string" and len(value.data) == value.length:
        text = name.decode("utf-8", "replace")
        cached = keys.read_cached(text, value.data)
        if cached is None:
            limit = keys.read_limit(text, value.data, int(now * 1000), value.key.ttl_ms)
        elif (stored := cached.response) is not None:
            found = await keys.read_purges(service.store, cached.prefix, cached.url, stored)
            purges = found.name
    return await _page(
        service,
        "key.html",
        key=value.key,
        value=value,
        cached=cached,
        limit=limit,
        session=await keys.read_session(service.store, value),
        purges=purges,
    )


async def _delete(service: Service, fields: Fields) -> Answer:
    deleted = await keys.delete_key(service.store, fields.get(b"key", b""))
    return _redirect(f"{KEYS}?notice={'deleted' if deleted else 'gone'}")


async def _flush(service: Service, _: Fields) -> Answer:
    await service.flush()
    return _redirect(f"{KEYS}?notice=emptied")


async def _bill(service: Service, fields: Fields) -> Answer:
    spans = {b"%d" % span: span for span in _SPANS.values()}
    span = spans.get(fields.get(b"span", b""), next(iter(_SPANS.values())))
    chart = formats.bill_chart(service.meter.history, SystemClock.wall(), span)
    seconds = SystemClock.wall() - service.meter.started_at
    return await _page(
        service, "bill.html", fields, spans=_SPANS, span=span, seconds=seconds, chart=chart
    )


async def _reset_bill(service: Service, _: Fields) -> Answer:
    service.meter.reset()
    return _redirect(f"{BILL}?notice=bill")


async def _live(service: Service, _: Fields) -> Answer:
    return await _page(service, "live.html")


async def _events(service: Service, _: Fields) -> Stream:
    watcher = Watcher()
    service.watchers.add(watcher)
    return Stream(_stream_events(watcher), lambda: service.watchers.discard(watcher))


async def _stream_events(watcher: Watcher) -> AsyncIterator[bytes]:
    """Server-sent events of markup, one list item for each live event."""
    yield b": watching\n\n"
    while True:
        items = "".join(map(render_event, await watcher.take()))
        yield f"data: {items}\n\n".encode("utf-8", "replace")


def render_event(event: LiveEvent) -> str:
    """A live event as a list item, on one line."""
    time = dt.datetime.fromtimestamp(event.at, dt.UTC)
    failed = isinstance(event.reply, Failure)
    reserved = keys.units_reserved(event.command, event.reply)
    markup = render("event.html", event=event, time=time, failed=failed, reserved=reserved)
    return markup.replace("\n", "")


async def _faults(
    service: Service, fields: Fields, *, status: int = 200, message: str = ""
) -> Answer:
    return await _page(
        service,
        "faults.html",
        fields,
        status=status,
        message=message,
        effects=EFFECTS,
        refuse_seconds=_REFUSE_SECONDS,
    )


async def _change_faults(service: Service, fields: Fields) -> Answer:
    try:
        faults = _read_faults_form(fields)
    except ValueError as error:
        return await _faults(service, fields, status=400, message=str(error))
    service.faults.change(faults)
    if faults.fault is not Fault.REFUSE or faults.seconds is None:
        return _redirect(f"{FAULTS}?notice=faults")
    # The page after a redirect would be refused too: this one is the answer, and reloads itself.
    message = f"Connections are refused for {faults.seconds:g} s. This page reloads itself."
    answer = await _faults(service, fields, message=message)
    refresh = f"{faults.seconds + 1:g}; url={FAULTS}".encode()
    return replace(answer, headers=(*answer.headers, (b"Refresh", refresh)))


def _read_faults_form(fields: Fields) -> Faults:
    """The faults that a form sets.  Raises ValueError, naming the setting."""
    settings: dict[str, object] = {}
    for name in plain_faults(NO_FAULTS):
        text = fields.get(name.encode(), b"").decode("utf-8", "replace").strip()
        if text and name != "fault":
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise ValueError(f"faults: {name} should be a number, not {text!r}")
            settings[name] = int(number) if number.is_integer() else number
        elif text:
            settings[name] = text
    if settings.get("fault") == Fault.REFUSE.value:
        settings = {"seconds": _REFUSE_SECONDS, **settings}
        settings.pop("times", None)
        settings.pop("probability", None)
    return parse_faults(settings)


_ROUTES: Final[dict[tuple[str, str], Callable[[Service, Fields], Awaitable[Response]]]] = {
    ("GET", KEYS): _keys,
    ("GET", KEY): _key,
    ("POST", DELETE): _delete,
    ("POST", FLUSH): _flush,
    ("GET", BILL): _bill,
    ("POST", RESET_BILL): _reset_bill,
    ("GET", LIVE): _live,
    ("GET", EVENTS): _events,
    ("GET", FAULTS): _faults,
    ("POST", FAULTS): _change_faults,
}


# How pages are made.


async def _page(
    service: Service,
    template: str,
    fields: Fields | None = None,
    *,
    status: int = 200,
    message: str = "",
    **values: Any,
) -> Answer:
    """A page with the navigation and the current figures."""
    html = render(
        template,
        keys=await keys.count_keys(service.store),
        bill=service.meter.read(),
        current=service.faults.current,
        form_secret=ConsoleAuth(service.tokens.full).form,
        message=message or _MESSAGES.get((fields or {}).get(b"notice", b""), ""),
        now=SystemClock.wall(),
        **values,
    )
    return _html(html, status)


def _notice(status: int, title: str, text: str = "", *, login: bool = False) -> Answer:
    """A page without navigation: with a link to the keys, or with the login."""
    return _html(render("notice.html", title=title, text=text, login=login), status)


def _html(html: str, status: int) -> Answer:
    body = html.encode("utf-8", "replace")
    return Answer(status, body, b"text/html; charset=utf-8", _SECURITY_HEADERS)


def _redirect(address: str, *headers: tuple[bytes, bytes]) -> Answer:
    location = (b"Location", address.encode())
    return Answer(303, b"", b"text/plain", (*_SECURITY_HEADERS, *headers, location))


def render(template: str, **values: Any) -> str:
    """Render a template; every value is escaped."""
    return _ENVIRONMENT.get_template(template).render(values)


_ENVIRONMENT: Final = Environment(
    loader=PackageLoader("upstash_middleware.local.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    amount=formats.amount,
    dollars=formats.dollars,
    duration=formats.duration,
    faults=formats.summarize_faults,
    moment=formats.moment,
    quote=partial(quote, safe=""),
    reply=formats.summarize_reply,
    shorten=formats.shorten,
    text=formats.text,
    word=formats.word,
)
_ENVIRONMENT.globals.update(
    DOLLARS_PER_COMMAND=DOLLARS_PER_COMMAND,
    ago=formats.ago,
    current_age=current_age,
    kind_of=keys.kind_of,
    no_faults=NO_FAULTS,
    read_body=keys.read_body,
    tags_and_groups=tags_and_groups,
    view_bytes=formats.view_bytes,
)
