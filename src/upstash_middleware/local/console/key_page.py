"""The page of one key: what is known of it, what it holds, and how to be rid of it.

Values of any type are shown here; what the middleware keeps is shown by `kept_views` and
`limit_views` besides.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.kinds import badge, kind_of
from upstash_middleware.local.console.layout import facts, form, notice, page
from upstash_middleware.local.console.markup import Html, h
from upstash_middleware.local.console.wording import (
    amount,
    block,
    dump,
    duration,
    is_text,
    moment,
    size,
    text,
)

if TYPE_CHECKING:
    from upstash_middleware.local.console.keys import Fact, Value
    from upstash_middleware.local.console.layout import Frame
    from upstash_middleware.local.messages import Answer

MOST_SHOWN: Final = 16 * 1024
_COLUMNS: Final = {
    "list": ("Place", "Member"),
    "set": ("Member",),
    "hash": ("Field", "Value"),
    "zset": ("Score", "Member"),
    "stream": ("Entry", "Fields"),
}


def key_page(frame: Frame, value: Value, known: Html | None, now_ms: int) -> Answer:
    """The page; `known` is the view of what the middleware keeps there, if it is that."""
    fact = value.fact
    raw = _raw(value)
    shown = [known, h("details", h("summary", "As it stands on Redis"), raw)] if known else [raw]
    delete = form(
        frame,
        addresses.of_key(addresses.DELETE, fact.key),
        h("button", "Delete this key", class_="danger"),
        class_="aside",
    )
    return page(
        frame,
        text(fact.key[:80]),
        addresses.KEYS,
        h("p", h("a", "Keys", href=addresses.KEYS), _beginnings(fact.key), class_="crumbs"),
        h("h1", h("code", text(fact.key)), class_="key"),
        _facts(fact, value.length, now_ms),
        *shown,
        delete,
    )


def no_key(key: bytes) -> Answer:
    """The page when nothing is there, or not any more."""
    back = h("p", h("a", "All keys", href=addresses.KEYS, class_="button"))
    return notice("This key is gone", h("p", h("code", text(key))), back, status=404)


def _beginnings(key: bytes) -> list[Html]:
    """Links to the keys that begin alike, one for each of the first few colons."""
    parts = key.split(b":")[:4]
    links = []
    for place in range(1, len(parts)):
        beginning = b":".join(parts[:place]) + b":"
        links.append(
            h(
                "span",
                " / ",
                h("a", h("code", text(parts[place - 1])), href=addresses.of_search(q=beginning)),
            )
        )
    return links


def _facts(fact: Fact, length: int, now_ms: int) -> Html:
    counted = size(length) if fact.type == "string" else f"{amount(length)} members"
    if fact.ttl_ms is None:
        expires = h("span", "never", class_="warn")
    else:
        until = moment((now_ms + fact.ttl_ms) / 1000)
        expires = h("span", f"in {duration(fact.ttl_ms / 1000)}", " ", h("small", f"{until} UTC"))
    return facts(
        {
            "Kind": badge(kind_of(fact, now_ms)),
            "Type on Redis": fact.type,
            "Expires": expires,
            "Length": counted,
            "Memory": size(fact.size),
        }
    )


def _raw(value: Value) -> Html:
    if value.fact.type == "string":
        return bytes_view(value.data, value.length)
    columns = _COLUMNS.get(value.fact.type)
    if columns is None:
        return h("p", f"There is no view of the type {value.fact.type}.", class_="nothing")
    head = h("tr", *(h("th", name, scope="col") for name in columns))
    body = [h("tr", *(h("td", h("code", _cell(cell))) for cell in row)) for row in value.rows]
    rest = value.length - len(value.rows)
    return h(
        "section",
        h(
            "table",
            h("caption", "Members", class_="unseen"),
            h("thead", head),
            h("tbody", body),
            class_="slim",
        ),
        h("p", f"and {amount(rest)} more", class_="hint") if rest > 0 else None,
        class_="panel",
    )


def _cell(cell: bytes) -> str:
    return text(cell) if len(cell) <= 1024 else f"{text(cell[:1024])}… ({size(len(cell))})"


def bytes_view(data: bytes, length: int) -> Html:
    """A string: JSON laid out, text as it is, and else in hexadecimal; the first part of it."""
    if not data:
        return h("p", "An empty string.", class_="nothing")
    pretty = _as_json(data)
    if pretty is not None:
        shown, note = pretty[:MOST_SHOWN], "JSON, laid out"
        cut = len(pretty) > MOST_SHOWN
    elif is_text(data):
        shown, note = block(data[:MOST_SHOWN]), ""
        cut = length > MOST_SHOWN
    else:
        shown, note = dump(data[: MOST_SHOWN // 8]), "no text, so in hexadecimal"
        cut = length > MOST_SHOWN // 8
    notes = [note] if note else []
    if cut:
        notes.append("the first part")
    hint = h("p", ", ".join(notes), class_="hint") if notes else None
    # What scrolls must be reachable by keyboard.
    return h(
        "div", hint, h("pre", shown, tabindex=0, aria_label="Value", role="region"), class_="value"
    )


def _as_json(data: bytes) -> str | None:
    if len(data) > 64 * MOST_SHOWN or data[:1] not in (b"{", b"["):
        return None
    try:
        laid_out = json.dumps(json.loads(data), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return block(laid_out.encode("utf-8", "backslashreplace"))
