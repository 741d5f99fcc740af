"""Rate limits, shown for what they are.  Only markup may be made here."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from upstash_middleware.local.console.chart import Stretch, marks_line, time_line
from upstash_middleware.local.console.layout import facts
from upstash_middleware.local.console.limits import (
    Bucket,
    Level,
    LimitState,
    Log,
    Slots,
    WindowCounter,
)
from upstash_middleware.local.console.markup import Html, all_of, h
from upstash_middleware.local.console.wording import ago, amount, duration, moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.local.console.limits import Subject
    from upstash_middleware.local.console.markup import Child


def limit_view(state: LimitState, now_ms: int) -> Html:
    """The state of a limit; what the quota is, only the application knows."""
    match state:
        case WindowCounter():
            shown = _counter(state, now_ms)
        case Bucket():
            shown = _bucket(state, now_ms)
        case Level():
            shown = _level(state, now_ms)
        case Log():
            shown = _log(state, now_ms)
        case Slots():
            shown = _slots(state, now_ms)
        case _:
            assert_never(state)
    return h("section", h("h2", "Rate limit"), _subject(state.subject), shown, class_="panel")


def _subject(subject: Subject) -> Html:
    who = "a hash" if subject.identifier.startswith("#") else subject.identifier
    return facts(
        {
            "Rule": h("code", subject.rule) if subject.rule else None,
            "Identifier": h("code", who),
            "Identified by": subject.kind,
            "Prefix": h("code", subject.prefix) if subject.prefix else None,
        }
    )


def _counter(state: WindowCounter, now_ms: int) -> Html:
    window, start = state.window_ms / 1000, state.starts_ms / 1000
    passed = now_ms / 1000 - start
    sliding = state.algorithm == "sliding window"
    stretches = [Stretch(window, "fresh")]
    if sliding:
        stretches.append(Stretch(window, "stale"))
    end = start + window
    told: dict[str, Child] = {
        "Used": _big(amount(state.used)),
        "Window": duration(window),
        "Began": _when(state.starts_ms, now_ms),
        "Ends" if passed < window else "Ended": _when(int(end * 1000), now_ms),
    }
    if sliding and passed >= window:
        weight = max(0.0, 1 - (passed - window) / window)
        told["Still weighs"] = f"{weight:.0%}, that is {amount(int(state.used * weight))}"
    legend = [("fresh", "this window")] + (
        [("stale", "weighs less and less in the next")] if sliding else []
    )
    return all_of(
        facts(told),
        time_line(stretches, passed, f"{duration(max(0.0, passed))} since the window began"),
        keys_of(legend),
    )


def _bucket(state: Bucket, now_ms: int) -> Html:
    passed = max(0, now_ms - state.refilled_ms) // state.interval_ms
    return facts(
        {
            "Tokens": _big(amount(state.tokens))
            if state.tokens >= 0
            else _big(f"\N{MINUS SIGN}{amount(-state.tokens)}"),
            "Counted": _when(state.refilled_ms, now_ms),
            "Refilled every": duration(state.interval_ms / 1000),
            "Refills since then": amount(passed),
        }
    )


def _level(state: Level, now_ms: int) -> Html:
    return facts(
        {
            "In the bucket": _big(f"{state.units_at(now_ms):.2f}"),
            "Drains": f"{amount(state.limit)} in {duration(state.window_ms / 1000)}",
            "Written": _when(state.at_ms, now_ms),
            "Empty": _when(state.empty_ms, now_ms),
        }
    )


def _log(state: Log, now_ms: int) -> Html:
    begin = now_ms - state.window_ms
    marks = (
        [(time - begin) / state.window_ms for time, _ in state.entries] if state.window_ms else []
    )
    used = state.used_at(now_ms)
    return all_of(
        facts(
            {
                "Used": _big(amount(used)),
                "Window": duration(state.window_ms / 1000),
                "Entries": amount(len(state.entries)),
            }
        ),
        marks_line(marks, f"{amount(used)} units in the last {duration(state.window_ms / 1000)}"),
        keys_of([("mark", "a request"), ("now", "now")]),
    )


def _slots(state: Slots, now_ms: int) -> Html:
    rows = [
        h("tr", h("td", h("code", str(token))), h("td", _when(expiry, now_ms)))
        for expiry, token in state.entries[:100]
    ]
    head = h("tr", h("th", "Holder", scope="col"), h("th", "Expires", scope="col"))
    table = h(
        "table",
        h("caption", "Slots", class_="unseen"),
        h("thead", head),
        h("tbody", rows),
        class_="slim",
    )
    return all_of(
        facts({"In flight": _big(amount(state.held_at(now_ms)))}), table if rows else None
    )


def _big(value: str) -> Html:
    return h("strong", value, class_="big")


def _when(at_ms: int, now_ms: int) -> Html:
    return when(at_ms / 1000, now_ms / 1000)


def when(at: float, now: float) -> Html:
    """A time: how far from now, and its date."""
    return h("span", ago(at, now), " ", h("small", f"{moment(at)} UTC"))


def keys_of(pairs: Sequence[tuple[str, Child]]) -> Html:
    """What the colours of a time line mean."""
    items = [h("li", h("span", class_=f"swatch {kind}"), words) for kind, words in pairs]
    return h("ul", items, class_="legend")
