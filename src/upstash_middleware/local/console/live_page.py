"""Commands as they come: the page, and the lines that are sent to it."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Final, assert_never

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.layout import page
from upstash_middleware.local.console.markup import Html, all_of, h
from upstash_middleware.local.console.wording import amount, text
from upstash_middleware.local.live import Missed, SeenCommand, SeenFault
from upstash_middleware.local.resp import Failure, NullArray, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from upstash_middleware.local.console.layout import Frame
    from upstash_middleware.local.live import Sight, Watcher
    from upstash_middleware.local.messages import Answer
    from upstash_middleware.local.resp import Reply

_MOST_WORDS: Final = 12
_LONGEST_WORD: Final = 120
_SHA: Final = re.compile(rb"[0-9a-f]{40}")


def live_page(frame: Frame) -> Answer:
    """The page; its lines come over `events`."""
    controls = h(
        "div",
        h("button", "Pause", id="pause", type="button"),
        h("button", "Clear", id="clear", type="button", class_="quiet"),
        h("p", "Connecting…", id="state", role="status"),
        class_="controls",
        id="controls",
        hidden=True,
    )
    # Not a noscript element: this is also for a script that did not load.
    without = h(
        "p",
        "Live commands need the page's script. In a terminal they are at ",
        h("code", "/monitor"),
        ".",
        class_="nothing",
        id="without",
    )
    lines = h(
        "ol",
        id="lines",
        class_="lines",
        data_events=addresses.EVENTS,
        aria_label="Commands, the newest first",
    )
    words = "Nothing has come yet. Send the server a command."
    waiting = h("p", words, class_="nothing", id="waiting", hidden=True)
    return page(frame, "Live", addresses.LIVE, h("h1", "Live"), controls, without, lines, waiting)


async def events(watcher: Watcher) -> AsyncIterator[bytes]:
    """What is seen, as server-sent events of markup: one list item for each sight."""
    yield b": watching\n\n"
    while True:
        lines = all_of(*(line(sight) for sight in await watcher.look()))
        yield f"data: {lines}\n\n".encode("utf-8", "replace")


def line(sight: Sight) -> Html:
    """One sight as a list item; there is no line end in it."""
    match sight:
        case SeenCommand():
            name, *words = sight.words
            failed = isinstance(sight.reply, Failure)
            return h(
                "li",
                _time(sight.at),
                h("b", text(name[:_LONGEST_WORD]).upper()),
                h("code", _words(words), class_="words"),
                _calls(sight.calls),
                h("span", _reply(sight.reply), class_="reply"),
                class_="failed" if failed else None,
            )
        case SeenFault():
            return h(
                "li",
                _time(sight.at),
                h("b", "weather"),
                h("span", sight.fault.value, class_="words"),
                class_="fault",
            )
        case Missed():
            return h("li", f"{amount(sight.count)} more, too fast to be shown", class_="missed")
        case _:
            assert_never(sight)


def _time(at: float) -> Html:
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    return h("time", moment.strftime("%H:%M:%S.%f")[:-3], datetime=moment.isoformat())


def _words(words: Sequence[bytes]) -> str:
    shown = [_word(word) for word in words[:_MOST_WORDS]]
    if len(words) > _MOST_WORDS:
        shown.append(f"… {len(words) - _MOST_WORDS} more")
    return " ".join(shown)


def _word(word: bytes) -> str:
    if _SHA.fullmatch(word):
        return f"{word[:8].decode()}…"
    if len(word) <= _LONGEST_WORD:
        return text(word) or '""'
    return f"{text(word[:_LONGEST_WORD])}…"


def _calls(calls: Mapping[str, int]) -> Html | None:
    if not calls:
        return None
    told = ", ".join(name if times == 1 else f"{times} {name}" for name, times in calls.items())
    return h("span", f"calls {told}", class_="calls")


def _reply(reply: Reply) -> str:
    match reply:
        case None | NullArray():
            return "nil"
        case bytes():
            return _word(reply)
        case Status() | Failure():
            return _word(reply.text)
        case list():
            return f"[{len(reply)}]"
        case _:
            return str(reply)
