"""What the cache keeps, shown for what it is.  Only markup may be made here."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, assert_never

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.chart import Stretch, time_line
from upstash_middleware.local.console.entries import Entry, Epoch, Lock, Stub
from upstash_middleware.local.console.key_page import MOST_SHOWN, bytes_view
from upstash_middleware.local.console.layout import facts
from upstash_middleware.local.console.limit_views import keys_of, when
from upstash_middleware.local.console.markup import Html, h
from upstash_middleware.local.console.wording import duration, size

if TYPE_CHECKING:
    from upstash_middleware.local.console.entries import Kept, Resource
    from upstash_middleware.local.console.markup import Child

_AUTO_GZIP: Final = 47
_GZIPPED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_VERDICTS: Final = {
    "alive": "no purge has met it",
    "stale": "softly purged: used only where a stale response may be",
    "purged": "purged: it is not used any more",
}


def kept_view(kept: Kept, key: str, purged: str, now: float, ttl: float | None) -> Html:
    """What the cache keeps; `purged` is the verdict on an entry's epochs, `ttl` in seconds."""
    match kept:
        case Entry():
            return _entry(kept, purged, now, ttl)
        case Stub():
            return _stub(kept, key, now)
        case Epoch():
            return _epoch(kept)
        case Lock():
            return _lock(kept)
        case _:
            assert_never(kept)


def _resource(resource: Resource) -> dict[str, Child]:
    digest = resource.url.startswith("#")
    return {
        "URL": h("code", "too long to be written, a digest" if digest else resource.url),
        "Origin": h("code", resource.origin) if resource.origin else None,
        "Version": resource.version,
        "Variant": "for some requests only, by Vary or cookies" if resource.is_variant else None,
    }


def _entry(entry: Entry, purged: str, now: float, ttl: float | None) -> Html:
    age = max(0.0, entry.initial_age + now - entry.stored_at)
    fresh = entry.lifetime > age
    left = (
        f"for {duration(entry.lifetime - age)} more"
        if fresh
        else f"since {duration(age - entry.lifetime)}"
    )
    state = h(
        "span", "fresh" if fresh else "stale", class_=f"badge {'cache' if fresh else 'warned'}"
    )
    told = facts(
        {
            "Status": h("strong", entry.status, class_="big"),
            "State": h("span", state, " ", left),
            "Purges": _VERDICTS[purged],
            **_resource(entry.resource),
            "Stored": when(entry.stored_at, now),
            "Age": duration(age)
            + (
                f", {duration(entry.initial_age)} of them before it was stored"
                if entry.initial_age >= 0.1
                else ""
            ),
            "Lifetime": duration(entry.lifetime),
            "While revalidating": duration(entry.while_revalidate)
            if entry.while_revalidate
            else None,
            "If the application fails": duration(entry.if_error) if entry.if_error else None,
            "Never stale": "yes, it must be revalidated" if entry.stale_forbidden else None,
            "Body": size(entry.length)
            + (f", {size(len(entry.packed))} packed" if entry.compressed else ""),
            "Tags": _tags(entry) if entry.tags else None,
        }
    )
    return h(
        "section",
        h("h2", "Cached response"),
        _life(entry, now, ttl),
        told,
        h("h3", "Header fields"),
        _fields(entry),
        h("h3", "Body"),
        _body(entry),
        class_="panel",
    )


def _life(entry: Entry, now: float, ttl: float | None) -> Html:
    fresh = max(0.0, entry.lifetime - entry.initial_age)
    grace = 0.0 if entry.stale_forbidden else max(entry.while_revalidate, entry.if_error)
    passed = max(0.0, now - entry.stored_at)
    rest = max(0.0, passed + (ttl or 0.0) - fresh - grace)
    words = [("fresh", f"fresh, {duration(fresh)}")]
    if grace:
        words.append(("stale", f"stale but usable, {duration(grace)}"))
    if rest * 50 > passed + (ttl or 0.0):
        words.append(("rest", "kept for revalidation"))
    line = time_line(
        [Stretch(fresh, "fresh"), Stretch(grace, "stale"), Stretch(rest, "rest")],
        passed,
        f"Stored {duration(passed)} ago; fresh for {duration(fresh)}",
    )
    return h("div", line, keys_of([*words, ("now", "now")]), class_="life")


def _tags(entry: Entry) -> Html:
    start = f"{entry.resource.prefix}:cache:epoch:tag:"
    links = [
        h("a", tag, class_="tag", href=addresses.of_search(q=f"{start}{tag}")) for tag in entry.tags
    ]
    return h("span", links, class_="tags")


def _fields(entry: Entry) -> Html:
    rows = [
        h("tr", h("th", h("code", name), scope="row"), h("td", h("code", value)))
        for name, value in entry.fields
    ]
    return h(
        "table",
        h("caption", "Header fields", class_="unseen"),
        h("tbody", rows),
        class_="slim fields",
    )


def _body(entry: Entry) -> Html:
    body = entry.body(4 * MOST_SHOWN)
    if body is None:
        return h("p", "It is compressed and does not open.", class_="nothing")
    coding = entry.header("content-encoding").lower()
    if coding in _GZIPPED:
        try:
            body = zlib.decompressobj(_AUTO_GZIP).decompress(body, 4 * MOST_SHOWN)
        except zlib.error:
            coding = ""
        else:
            return h("div", h("p", f"{coding}, opened", class_="hint"), bytes_view(body, len(body)))
    return bytes_view(body, entry.length)


def _stub(stub: Stub, key: str, now: float) -> Html:
    rows = [
        h(
            "tr",
            h("td", h("a", h("code", f"…{end}"), href=addresses.of_search(q=_pattern(key, end)))),
            h("td", when(until, now)),
        )
        for end, until in list(stub.variants.items())[:100]
    ]
    head = h("tr", h("th", "Variant", scope="col"), h("th", "Gone", scope="col"))
    told = _resource(stub.resource) | {
        "Selected by": h("code", ", ".join(stub.vary)),
        "Tags": ", ".join(stub.tags),
    }
    table = h(
        "table",
        h("caption", "Variants", class_="unseen"),
        h("thead", head),
        h("tbody", rows),
        class_="slim",
    )
    return h("section", h("h2", "Variants of a response"), facts(told), table, class_="panel")


def _pattern(key: str, end: str) -> str:
    """What finds a variant, of whose key the stub knows the beginning and the end."""
    escaped = "".join(f"\\{each}" if each in "\\*?[]" else each for each in key)
    return f"{escaped}#*{end}"


def _epoch(epoch: Epoch) -> Html:
    kind, _, name = epoch.of.partition(":")
    what = {"all": "everything", "tags": "any tag", "url": "a URL", "tag": "a tag"}.get(kind, kind)
    told: dict[str, Child] = {
        "Purged": what,
        "Which": h("code", name) if name else None,
        "Last purge": h("code", epoch.hard) if epoch.hard else "none",
        "Last soft purge": h("code", epoch.soft) if epoch.soft else None,
    }
    words = h(
        "p",
        "A purge puts a new value here; stored responses that recorded another are not used.",
        class_="hint",
    )
    return h("section", h("h2", "Epoch of the cache"), facts(told), words, class_="panel")


def _lock(lock: Lock) -> Html:
    if lock.kept_out:
        words = "What was rendered may not be stored, so nobody waits for it."
    else:
        words = "One process renders this, and the others wait for it or for the lock to expire."
    told = _resource(lock.resource) | {"Token": None if lock.kept_out else h("code", lock.token)}
    return h(
        "section",
        h("h2", "Lock of the cache"),
        facts(told),
        h("p", words, class_="hint"),
        class_="panel",
    )
