"""The page of keys: what a search finds, and the way on.  Only markup may be made here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.kinds import badge, kind_of
from upstash_middleware.local.console.layout import form, page
from upstash_middleware.local.console.markup import Html, h
from upstash_middleware.local.console.wording import amount, duration, size, text

if TYPE_CHECKING:
    from upstash_middleware.local.console.keys import Fact, Found
    from upstash_middleware.local.console.layout import Frame
    from upstash_middleware.local.messages import Answer

_MOST_GROUPS: Final = 12


def key_list(frame: Frame, search: bytes, found: Found, now_ms: int, said: str) -> Answer:
    """The page for one step of a search."""
    return page(
        frame,
        "Keys",
        addresses.KEYS,
        h("h1", "Keys"),
        _search_form(search),
        _groups(search, found),
        _table(found, now_ms) if found.facts else _nothing(frame, search, found),
        _ways_on(search, found),
        _empty_all(frame),
        said=said,
    )


def _search_form(search: bytes) -> Html:
    field = h(
        "input",
        type="search",
        name="q",
        id="q",
        value=search.decode("utf-8", "replace"),
        autocomplete="off",
        autocapitalize="off",
        spellcheck="false",
        aria_describedby="q-hint",
    )
    return h(
        "form",
        h("label", "Keys beginning with", for_="q"),
        h("div", field, h("button", "Search"), class_="field"),
        h(
            "p",
            "Or a pattern: ",
            h("code", "*:cache:*"),
            ", ",
            h("code", "user:?"),
            id="q-hint",
            class_="hint",
        ),
        role="search",
        action=addresses.KEYS,
    )


def _groups(search: bytes, found: Found) -> Html | None:
    """How the keys found go on after the beginning that was searched for, up to the next colon."""
    if any(special in search for special in b"*?["):
        return None
    counts: Counter[bytes] = Counter()
    for fact in found.facts:
        part, colon, _ = fact.key.removeprefix(search).partition(b":")
        if colon:
            counts[search + part + colon] += 1
    groups = [(group, count) for group, count in counts.most_common(_MOST_GROUPS) if count > 1]
    if not groups or (len(groups) == 1 and groups[0][1] == len(found.facts) and not found.cursor):
        groups = [pair for pair in groups if pair[0] != search]
    if not groups:
        return None
    links = [
        h(
            "li",
            h(
                "a",
                h("code", text(group)),
                " ",
                h("span", amount(count), class_="count"),
                href=addresses.of_search(q=group),
            ),
        )
        for group, count in sorted(groups)
    ]
    return h("nav", h("ul", links), class_="groups", aria_label="Narrow down by beginning")


def _table(found: Found, now_ms: int) -> Html:
    head = h("tr", *(h("th", name, scope="col", class_=class_) for name, class_ in _COLUMNS))
    return h(
        "table",
        h("caption", "The keys found", class_="unseen"),
        h("thead", head),
        h("tbody", [_row(fact, now_ms) for fact in found.facts]),
        class_="keys",
    )


_COLUMNS: Final = (("Key", None), ("Kind", None), ("Expires in", "number"), ("Memory", "number"))


def _row(fact: Fact, now_ms: int) -> Html:
    link = h("a", h("code", text(fact.key)), href=addresses.of_key(addresses.KEY, fact.key))
    never = h("span", "never", class_="warn", title="nothing removes this key by itself")
    return h(
        "tr",
        h("th", link, scope="row"),
        h("td", badge(kind_of(fact, now_ms))),
        h("td", never if fact.ttl_ms is None else duration(fact.ttl_ms / 1000), class_="number"),
        h("td", size(fact.size), class_="number"),
    )


def _nothing(frame: Frame, search: bytes, found: Found) -> Html:
    if found.cursor:
        words = "Nothing yet: there are many other keys to pass over."
    elif search:
        words = "No key matches."
    elif frame.keys:
        words = "No key here."
    else:
        words = "The database is empty. Send it something, and look again."
    return h("p", words, class_="nothing")


def _ways_on(search: bytes, found: Found) -> Html | None:
    links = []
    if found.start:
        links.append(
            h("a", "From the beginning", href=addresses.of_search(q=search), class_="button")
        )
    if found.cursor:
        onward = addresses.of_search(q=search, cursor=found.cursor)
        links.append(h("a", "More keys", href=onward, class_="button", rel="next"))
    return h("nav", links, class_="onward", aria_label="Pages") if links else None


def _empty_all(frame: Frame) -> Html:
    sure = form(
        frame,
        addresses.FLUSH,
        h("p", "All keys, scripts and functions are gone then. The bill stays."),
        h("button", "Empty it", class_="danger"),
    )
    return h("details", h("summary", "Empty the database…"), sure, class_="aside")
