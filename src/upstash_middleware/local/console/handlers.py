"""The console's pages, and the routing of requests to them.

A request that changes data is a POST from one of the console's own forms. Its response redirects to
a page.
"""

from __future__ import annotations

import datetime as dt
import math
import shlex
from functools import partial
from pkgutil import get_data
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote_to_bytes, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache.entries import split_tags_and_groups
from upstash_middleware.core.cache.http.reuse import current_age
from upstash_middleware.local.billing import DOLLARS_PER_COMMAND
from upstash_middleware.local.console import auth, formats, keys
from upstash_middleware.local.console.activity import Watcher
from upstash_middleware.local.console.auth import CONSOLE, ConsoleAuth
from upstash_middleware.local.faults import EFFECTS, NO_FAULTS, Fault, parse_faults, plain_faults
from upstash_middleware.local.http1 import Answer, Stream
from upstash_middleware.local.service import read_parameters
from upstash_middleware.local.valkey import Failure, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from upstash_middleware.local.console.activity import Event
    from upstash_middleware.local.faults import Faults
    from upstash_middleware.local.http1 import Request, Response
    from upstash_middleware.local.service import Service

OVERVIEW: Final = CONSOLE
KEYS: Final = f"{CONSOLE}/keys"
SESSIONS: Final = f"{CONSOLE}/sessions"
DATA: Final = f"{CONSOLE}/data"
DELETE: Final = f"{CONSOLE}/delete"
KEY: Final = f"{CONSOLE}/key"
SET: Final = f"{CONSOLE}/key/set"
EXPIRE: Final = f"{CONSOLE}/key/expire"
COMMANDS: Final = f"{CONSOLE}/commands"
EVENTS: Final = f"{CONSOLE}/commands/events"
FAULTS: Final = f"{CONSOLE}/faults"
FLUSH: Final = f"{CONSOLE}/flush"
RESET: Final = f"{CONSOLE}/reset"
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
    b"set": "The value is set.",
    b"expiry": "The expiry is changed.",
    b"emptied": "The database is empty.",
    b"reset": "The counts, the bill and the history are reset.",
    b"faults": "The faults are changed.",
}
"""By the parameter ``notice`` of a redirect; a number is the number of deleted keys."""
_SPANS: Final = {"2 min": 120, "15 min": 900, "1 h": 3600, "6 h": 21_600}
"""The time spans of the bill's chart in seconds; the first is the default."""
_REFUSE_SECONDS: Final = 5.0
"""Default time for refusing connections: the console's connections are refused too."""
_TOP: Final = 10
_MAX_TTL: Final = 10**9


class Visit(Struct, frozen=True):
    """A request to one of the pages."""

    service: Service
    path: str
    fields: dict[bytes, bytes]
    """The parameters of the query, overridden by those of the form."""
    selected: Sequence[bytes]
    """The keys that are selected in the form."""
    may_change: bool
    """Whether the request comes from this machine."""

    def text(self, name: bytes) -> str:
        return self.fields.get(name, b"").decode("utf-8", "replace").strip()

    def page(
        self,
        template: str,
        *,
        status: int = 200,
        message: str = "",
        problem: str = "",
        **values: Any,
    ) -> Answer:
        """A page with the navigation."""
        notice = self.fields.get(b"notice", b"")
        if notice.isdigit() and len(notice) < 12:
            message = "1 key is deleted." if notice == b"1" else f"{int(notice)} keys are deleted."
        html = render(
            template,
            path=self.path,
            may_change=self.may_change,
            bill=self.service.meter.read(),
            current=self.service.faults.current,
            form_secret=ConsoleAuth(self.service.tokens.full).form,
            message=message or _MESSAGES.get(notice, ""),
            problem=problem,
            now=SystemClock.wall(),
            **values,
        )
        return _html(html, status)


async def answer_console(service: Service, request: Request) -> Response:
    """Return the response to a request for the console."""
    if not auth.has_safe_host(request):
        text = "Open the console by an IP address or as localhost."
        return _notice(403, "The console does not answer to this host name", text)
    if not auth.comes_from_own_page(request):
        text = "A page of another site has sent this request."
        return _notice(403, "Only the console's own pages may do this", text)
    path = request.path.decode("latin-1")
    if path in _STATIC:
        body = get_data(__package__, path.rpartition("/")[2]) or b""
        headers = ((b"Cache-Control", b"max-age=60"), (b"X-Content-Type-Options", b"nosniff"))
        return Answer(200, body, _STATIC[path], headers)
    try:
        return await _answer_own_page(service, request, path)
    except StoreUnreachable as error:
        return _notice(500, "The database cannot be reached", str(error))


async def _answer_own_page(  # noqa: PLR0911 - a table of cases
    service: Service, request: Request, path: str
) -> Response:
    """Log in with the printed key or the token; handle requests that are logged in."""
    secrets = ConsoleAuth(service.tokens.full)
    query = read_parameters(request.query)
    form = read_parameters(request.body) if request.method == "POST" else []
    fields = dict(query + form)
    secret = dict(query).get(b"key") if path == OVERVIEW else dict(form).get(b"token")
    if secret and path in (OVERVIEW, LOGIN):
        if secrets.accepts_login(secret):
            return _redirect(OVERVIEW, (b"Set-Cookie", secrets.set_cookie(request)))
        return _notice(401, "Log in to the console", "This is not the server's token.", login=True)
    if not secrets.accepts_cookie(request):
        return _notice(401, "Log in to the console", login=True)
    is_head = request.method == "HEAD" and path != EVENTS  # a stream does not end
    handler = _ROUTES.get(("GET" if is_head else request.method, path))
    if handler is None:
        return _notice(404, "This page does not exist")
    may_change = auth.is_on_this_machine(request)
    if request.method == "POST" and not secrets.accepts_form(fields.get(b"form", b"")):
        return _notice(403, "This form is not the console's", "Reload the page and try again.")
    if request.method == "POST" and not may_change:
        text = "Open the console on the machine that the server runs on, as localhost."
        return _notice(403, "Changes need the server's own machine", text)
    selected = [unquote_to_bytes(value) for name, value in form if name == b"selected"]
    return await handler(Visit(service, path, fields, selected, may_change))


# Pages, in the order of the navigation.


async def _overview(visit: Visit) -> Answer:
    service, activity, now = visit.service, visit.service.activity, SystemClock.wall()
    spans = {b"%d" % span: span for span in _SPANS.values()}
    span = spans.get(visit.fields.get(b"span", b""), next(iter(_SPANS.values())))
    lookups = activity.lookups
    identifiers = sorted(activity.identifiers.items(), key=lambda item: -item[1].requests)
    seen = sorted(activity.latencies)
    parts = quantiles(seen, n=100, method="inclusive") if len(seen) > 1 else seen * 99
    return visit.page(
        "overview.html",
        rules=sorted(activity.rules.items()),
        identifiers=identifiers[:_TOP],
        more_identifiers=len(identifiers) - _TOP,
        lookups=lookups,
        fresh_share=lookups["fresh"] / lookups.total() if lookups else None,
        latency={"median": parts[49], "95th": parts[94], "longest": seen[-1]} if seen else None,
        errors=[(name, formats.amount(count)) for name, count in activity.errors.most_common(_TOP)],
        error_count=activity.errors.total(),
        key_count=await keys.count_keys(service.store),
        spans=_SPANS,
        span=span,
        seconds=now - service.meter.started_at,
        chart=formats.bill_chart(service.meter.history, now, span),
    )


async def _reset(visit: Visit) -> Answer:
    visit.service.reset_bill()
    return _redirect(f"{OVERVIEW}?notice=reset")


async def _list(visit: Visit) -> Answer:
    """The keys of a namespace, or all sessions, or all values of the application."""
    fields, store, now_ms = visit.fields, visit.service.store, int(SystemClock.wall() * 1000)
    under, search = fields.get(b"under", b""), fields.get(b"q", b"")
    matching, complete = await keys.find_names(store, search)
    names = _select(visit.path, matching, under)
    sort = visit.text(b"sort")
    if sort.strip("-") in _SORTS and len(names) <= keys.MAX_SORTED:
        read = sorted(await keys.read_keys(store, names), key=_SORTS[sort.strip("-")])
        names = [key.name for key in read]
    else:
        sort = "-name" if sort == "-name" else "name"
    if sort.startswith("-"):
        names.reverse()
    last_page = max(0, len(names) - 1) // keys.PAGE
    number = visit.text(b"page")
    page = min(int(number), last_page) if number.isdecimal() and len(number) < 9 else 0
    found = await keys.read_keys(store, names[page * keys.PAGE : (page + 1) * keys.PAGE])
    rows = [
        (
            key,
            keys.kind_of(key, now_ms),
            "" if visit.path == KEYS else await keys.describe(store, key.name),
        )
        for key in found
    ]
    return visit.page(
        "keys.html",
        under=under,
        search=search,
        tree=keys.tree_of(matching, under) if visit.path == KEYS else [],
        rows=rows,
        count=len(names),
        complete=complete,
        sort=sort,
        sortable=len(names) <= keys.MAX_SORTED,
        page=page,
        last_page=last_page,
        here=partial(_address, visit.path, under=under, q=search, sort=sort),
    )


def _select(path: str, names: Sequence[bytes], under: bytes) -> list[bytes]:
    """The names in a list."""
    if path == KEYS:
        return [name for name in names if name.startswith(under)]
    wanted = "session" if path == SESSIONS else "data"
    return [name for name in names if keys.kind_by_name(name) == wanted]


_SORTS: Final[dict[str, Callable[[keys.Key], Any]]] = {
    "expires": lambda key: math.inf if key.ttl_ms is None else key.ttl_ms,
    "memory": lambda key: key.size,
}


async def _delete(visit: Visit) -> Answer:
    """Delete the selected keys, or all keys of a list."""
    names, back = visit.selected, visit.text(b"list")
    back = back if back in (KEYS, SESSIONS, DATA) else KEYS
    under, search = visit.fields.get(b"under", b""), visit.fields.get(b"q", b"")
    if b"all" in visit.fields:
        found, _ = await keys.find_names(visit.service.store, search)
        names = _select(back, found, under)
    deleted = await keys.delete_keys(visit.service.store, names)
    return _redirect(_address(back, under=under, q=search, notice=str(deleted)))


async def _key(visit: Visit, status: int = 200, problem: str = "") -> Answer:
    name, store = visit.fields.get(b"key", b""), visit.service.store
    value = await keys.read_value(store, name)
    if value is None:
        return _notice(404, "This key does not exist", formats.text(name))
    now, text = SystemClock.wall(), name.decode("utf-8", "replace")
    cached, data, limit, leased, quota, purges = None, None, None, None, None, ""
    if value.key.type == "string" and len(value.data) == value.length:
        data = keys.read_data(text, value.data)
        cached = None if data else keys.read_cached(text, value.data)
        if not (data or cached):
            limit = keys.read_limit(text, value.data, int(now * 1000), value.key.ttl_ms)
        if limit and (leased := visit.service.activity.limits.get(text)):
            quota = await keys.read_quota(visit.service, leased.limit, int(now * 1000))
        if cached is not None and (stored := cached.response) is not None:
            found = await keys.read_purges(store, cached.prefix, cached.url, stored)
            purges = found.name
    return visit.page(
        "key.html",
        status=status,
        problem=problem,
        key=value.key,
        kind=keys.kind_of(value.key, int(now * 1000)),
        value=value,
        cached=cached,
        data=data,
        limit=limit,
        leased=leased,
        quota=quota,
        session=await keys.read_session(store, value),
        purges=purges,
        editable=keys.editable(value),
        type=keys.TYPES.get(value.key.type),
    )


async def _set(visit: Visit) -> Answer:
    """Set the value of a string, or a member of a collection."""
    name = visit.fields.get(b"key", b"")
    found = await keys.read_keys(visit.service.store, [name])
    kind = keys.TYPES.get(found[0].type) if found else None
    if kind is None or not kind.set:
        return _notice(404, "This key does not exist", formats.text(name))
    # Browsers send CR LF line ends in text areas.
    arguments = [
        visit.fields.get(label.encode(), b"").replace(b"\r\n", b"\n") for label in kind.columns
    ]
    keep = [b"KEEPTTL"] if kind.set == b"SET" else []
    (reply,) = await visit.service.store.run([[kind.set, name, *arguments, *keep]])
    if isinstance(reply, Failure):
        return await _key(visit, 400, formats.summarize_reply(reply))
    return _redirect(_address(KEY, key=name, notice="set"))


async def _expire(visit: Visit) -> Answer:
    """Change a key's expiry; without seconds, the key never expires."""
    name, text = visit.fields.get(b"key", b""), visit.text(b"seconds")
    try:
        seconds = float(text or 1)
    except ValueError:
        seconds = math.nan
    if not 0.001 <= seconds <= _MAX_TTL:
        problem = f"{text!r} is not a number of seconds above 0: give for instance 60."
        return await _key(visit, 400, problem)
    command = [b"PEXPIRE", name, b"%d" % (seconds * 1000)] if text else [b"PERSIST", name]
    await visit.service.store.run([command])
    return _redirect(_address(KEY, key=name, notice="expiry"))


async def _flush(visit: Visit) -> Answer:
    await visit.service.flush()
    return _redirect(f"{KEYS}?notice=emptied")


async def _commands(visit: Visit) -> Answer:
    """The command box with the last reply, and the last commands; a POST runs a command."""
    text, reply, billed, problem = visit.text(b"command"), None, 0, ""
    if text:
        try:
            words = [word.encode() for word in shlex.split(text)]
        except ValueError as error:
            problem = f"The command cannot be read: {str(error).lower()}."
        else:
            if words:
                answer, billed = await visit.service.run_command(words)
                reply = formats.reply_lines(answer)
    events = [render_event(event) for event in reversed(visit.service.activity.history)]
    return visit.page(
        "commands.html",
        status=400 if problem else 200,
        command=text,
        reply=reply,
        billed=billed,
        problem=problem,
        events=events,
    )


async def _events(visit: Visit) -> Stream:
    watcher = Watcher()
    watchers = visit.service.activity.watchers
    watchers.add(watcher)
    return Stream(_stream_events(watcher), lambda: watchers.discard(watcher))


async def _stream_events(watcher: Watcher) -> AsyncIterator[bytes]:
    """Server-sent events with markup, one list item per event."""
    yield b": watching\n\n"
    while True:
        items = "".join(map(render_event, await watcher.take()))
        yield f"data: {items}\n\n".encode("utf-8", "replace")


def render_event(event: Event) -> str:
    """An event as a list item, on one line."""
    time = dt.datetime.fromtimestamp(event.at, dt.UTC)
    return Markup(render("event.html", event=event, time=time).replace("\n", ""))  # noqa: S704


async def _faults(visit: Visit, **values: Any) -> Answer:
    return visit.page("faults.html", effects=EFFECTS, refuse_seconds=_REFUSE_SECONDS, **values)


async def _change_faults(visit: Visit) -> Answer:
    try:
        faults = _read_faults_form(visit)
    except ValueError as error:
        return await _faults(visit, status=400, problem=str(error))
    visit.service.faults.change(faults)
    if faults.fault is not Fault.REFUSE or faults.seconds is None:
        return _redirect(f"{FAULTS}?notice=faults")
    # A page after a redirect would be refused too, so this response is the page, which reloads.
    message = f"Connections are refused for {faults.seconds:g} s. Then this page reloads."
    answer = await _faults(visit, message=message)
    refresh = f"{faults.seconds + 1:g}; url={FAULTS}".encode()
    return replace(answer, headers=(*answer.headers, (b"Refresh", refresh)))


def _read_faults_form(visit: Visit) -> Faults:
    """The faults from a form. Raises ValueError, naming the setting."""
    settings: dict[str, object] = {}
    for name in plain_faults(NO_FAULTS):
        text = visit.text(name.encode())
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


_ROUTES: Final[dict[tuple[str, str], Callable[[Visit], Awaitable[Response]]]] = {
    ("GET", OVERVIEW): _overview,
    ("POST", RESET): _reset,
    ("GET", KEYS): _list,
    ("GET", SESSIONS): _list,
    ("GET", DATA): _list,
    ("POST", DELETE): _delete,
    ("GET", KEY): _key,
    ("POST", SET): _set,
    ("POST", EXPIRE): _expire,
    ("POST", FLUSH): _flush,
    ("GET", COMMANDS): _commands,
    ("POST", COMMANDS): _commands,
    ("GET", EVENTS): _events,
    ("GET", FAULTS): _faults,
    ("POST", FAULTS): _change_faults,
}
_NAVIGATION: Final = {
    "Overview": OVERVIEW,
    "Keys": KEYS,
    "Sessions": SESSIONS,
    "Data": DATA,
    "Commands": COMMANDS,
    "Faults": FAULTS,
}


# How pages are made.


def _address(path: str, **fields: str | bytes) -> str:
    """The URL of a page, with the fields that are not empty in the query."""
    given = {name: value for name, value in fields.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


def _notice(status: int, title: str, text: str = "", *, login: bool = False) -> Answer:
    """A page without navigation, with a link to the overview or with the login form."""
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
    share=formats.share,
    shorten=formats.shorten,
    text=formats.text,
    word=formats.word,
)
_ENVIRONMENT.globals.update(
    DOLLARS_PER_COMMAND=DOLLARS_PER_COMMAND,
    ago=formats.ago,
    current_age=current_age,
    navigation=_NAVIGATION,
    no_faults=NO_FAULTS,
    read_body=keys.read_body,
    split_tags_and_groups=split_tags_and_groups,
    address=_address,
    rule_address=lambda prefix, rule: _address(KEYS, under=f"{prefix}:{quote(rule, safe='')}:"),
    view_bytes=formats.view_bytes,
)
_ENVIRONMENT.globals["m"] = _ENVIRONMENT.get_template("macros.html").module
