"""The bill as a page: what was spent, over time, and what a million such requests would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from upstash_middleware.local.bill import DOLLARS_PER_COMMAND
from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.chart import OTHERS, SERIES, bill_chart, series_class
from upstash_middleware.local.console.layout import form, page
from upstash_middleware.local.console.markup import Html, h
from upstash_middleware.local.console.wording import amount, dollars, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.local.bill import Bill
    from upstash_middleware.local.console.layout import Frame
    from upstash_middleware.local.history import History
    from upstash_middleware.local.messages import Answer

SPANS: Final = {"2 min": 120, "15 min": 900, "1 h": 3600, "6 h": 21_600}
"""Over what the chart may go, in seconds; the first when nothing is asked for."""


def bill_page(frame: Frame, history: History, now: float, span: int, said: str) -> Answer:
    """The page."""
    chart = bill_chart(history.read(), now, span)
    spans = [
        h(
            "a",
            name,
            href=f"{addresses.BILL}?span={length}",
            aria_current="true" if length == span else None,
        )
        for name, length in SPANS.items()
    ]
    live = h(
        "div",
        _figures(frame.bill, history.begun, now),
        h(
            "section",
            h("h2", "Commands over time"),
            h("nav", spans, class_="spans", aria_label="Length of time"),
            chart.picture,
            _legend(chart.names),
            class_="panel",
        ),
        _by_command(frame.bill),
        id="bill",
        data_live=True,
    )
    anew = form(frame, addresses.NEW_BILL, h("button", "Begin a new bill"), class_="aside")
    return page(frame, "Bill", addresses.BILL, h("h1", "Bill"), live, anew, said=said)


def _figures(bill: Bill, begun: float, now: float) -> Html:
    each = bill.commands / bill.requests if bill.requests else 0.0
    return h(
        "div",
        _figure(
            "A million such requests",
            dollars(bill.dollars_per_million_requests),
            "at Upstash's list price",
            "lead",
        ),
        _figure("Commands per request", f"{each:.2f}", "calls inside scripts count"),
        _figure("Requests", amount(bill.requests), f"in {duration(now - begun)}"),
        _figure(
            "Commands",
            amount(bill.commands),
            f"{dollars(bill.commands * DOLLARS_PER_COMMAND)} so far",
        ),
        class_="figures",
    )


def _figure(name: str, value: str, note: str, class_: str = "") -> Html:
    parts = (h("h2", name), h("p", value, class_="value"), h("p", note, class_="hint"))
    return h("section", *parts, class_=f"figure {class_}".strip())


def _legend(names: Sequence[str]) -> Html | None:
    if not names:
        return h("p", "Nothing was asked of the server in this time.", class_="nothing")
    items = [
        h("li", h("span", class_=f"swatch {_colour(name, place)}"), name)
        for place, name in enumerate(names)
    ]
    return h("ul", items, class_="legend")


def _colour(name: str, place: int) -> str:
    return series_class(SERIES if name == OTHERS else place)


def _by_command(bill: Bill) -> Html | None:
    if not bill.by_command:
        return None
    rows = [
        h(
            "tr",
            h("th", h("code", name), scope="row"),
            h("td", amount(count), class_="number"),
            h("td", f"{count / bill.commands:.0%}", class_="number"),
            h("td", dollars(count * DOLLARS_PER_COMMAND), class_="number"),
        )
        for name, count in sorted(bill.by_command.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    columns = ("Command", None), ("Billed", "number"), ("Share", "number"), ("Cost", "number")
    head = h("tr", *(h("th", name, scope="col", class_=class_) for name, class_ in columns))
    table = h(
        "table",
        h("caption", "Billed commands by name", class_="unseen"),
        h("thead", head),
        h("tbody", rows),
        class_="slim",
    )
    return h("section", h("h2", "By command"), table, class_="panel")
