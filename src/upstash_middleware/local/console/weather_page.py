"""The weather as switches: each fault is one, beside what goes for all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console import addresses
from upstash_middleware.local.console.layout import form, page, weather_in_short
from upstash_middleware.local.console.markup import Html, h
from upstash_middleware.local.weather import CLEAR, Fault, Weather, parse_weather

if TYPE_CHECKING:
    from collections.abc import Mapping

    from upstash_middleware.local.console.layout import Frame
    from upstash_middleware.local.messages import Answer

REFUSE_SECONDS: Final = 5.0
"""How long connections are refused when nothing is said: the console is refused as well."""

_FAULTS: Final = {
    Fault.SERVER_ERROR: ("500 with an error in JSON", False),
    Fault.BAD_GATEWAY: ("502 with a page of HTML", False),
    Fault.UNAUTHORIZED: ("401, as after the token was changed", False),
    Fault.QUOTA: ("400, the plan's request limit is exceeded", False),
    Fault.NOSCRIPT: ("all scripts are forgotten", True),
    Fault.REFUSE: (
        f"no connection, this page included, for {REFUSE_SECONDS:g} s or as long as you say",
        False,
    ),
    Fault.DROP_BEFORE: ("the connection ends without an answer", False),
    Fault.DROP_AFTER: ("the connection ends without an answer", True),
    Fault.TRUNCATE: ("half of the answer, then the end", True),
    Fault.TRICKLE: ("the answer, a byte every 20 ms", True),
    Fault.STALL: ("half of the answer, and nothing more", True),
}
_NUMBERS: Final = (
    ("latency_ms", "Latency", "ms", "0"),
    ("jitter_ms", "Jitter", "ms", "0"),
    ("probability", "Probability", "0 to 1", "1"),
    ("times", "Hits at most", "requests", "all"),
    ("seconds", "Over after", "s", "never"),
)


def weather_page(frame: Frame, said: str = "", status: int = 200) -> Answer:
    """The page."""
    weather = frame.weather
    switches = [_switch(fault, *told, on=weather.fault is fault) for fault, told in _FAULTS.items()]
    # The first button of a form is the one that Enter in a field presses.
    set_it = h(
        "button",
        "Set",
        name="fault",
        value=weather.fault.value if weather.fault else "",
        class_="main",
    )
    controls = form(
        frame,
        addresses.WEATHER,
        h(
            "fieldset",
            h("legend", "How, how often, how long"),
            h("div", [_number(weather, *each) for each in _NUMBERS], class_="numbers"),
            set_it,
            class_="panel",
        ),
        h("fieldset", h("legend", "Faults"), h("ul", switches, class_="switches"), class_="panel"),
        class_="weather",
    )
    now = h(
        "div",
        h("p", "Now: ", h("strong", weather_in_short(weather)), _until(weather), class_="now-is"),
        form(frame, addresses.WEATHER, h("button", "Clear the weather"))
        if weather != CLEAR
        else None,
        class_="controls",
    )
    return page(
        frame,
        "Weather",
        addresses.WEATHER,
        h("h1", "Weather"),
        now,
        controls,
        said=said,
        status=status,
    )


def _until(weather: Weather) -> str:
    parts = []
    if weather.times is not None:
        parts.append(f"{weather.times} times")
    if weather.seconds is not None:
        parts.append(f"for {weather.seconds:g} s from when it was set")
    return f", {', '.join(parts)}" if parts else ""


def _switch(fault: Fault, sight: str, runs: bool, *, on: bool) -> Html:
    words = h(
        "span",
        h("strong", fault.value),
        h("span", sight, class_="hint"),
        h(
            "span",
            "is run" if runs else "is not run",
            class_=f"badge {'limit' if runs else 'other'}",
        ),
        class_="told",
    )
    button = h(
        "button",
        h("span", class_="knob", aria_hidden="true"),
        words,
        name="fault",
        value="" if on else fault.value,
        role="switch",
        aria_checked="true" if on else "false",
        class_="switch",
    )
    return h("li", button)


def _number(weather: Weather, name: str, label: str, unit: str, empty: str) -> Html:
    value = getattr(weather, name)
    field = h(
        "input",
        name=name,
        id=name,
        inputmode="decimal",
        autocomplete="off",
        value="" if value == getattr(CLEAR, name) else f"{value:g}",
        placeholder=empty,
        aria_describedby=f"{name}-unit",
    )
    unit_ = h("span", unit, id=f"{name}-unit", class_="hint")
    return h("div", h("label", label, for_=name), h("div", field, unit_, class_="field"))


def weather_of(fields: Mapping[str, str]) -> Weather:
    """The weather that a form asks for.  Raises ValueError, naming the setting."""
    settings: dict[str, object] = {"fault": fields.get("fault") or None}
    for name, *_ in _NUMBERS:
        if given := fields.get(name, "").strip():
            settings[name] = _read_number(name, given)
    if settings["fault"] == Fault.REFUSE.value:
        settings = {
            name: settings[name] for name in settings if name not in ("times", "probability")
        }
        settings.setdefault("seconds", REFUSE_SECONDS)
    return parse_weather(settings)


def _read_number(name: str, text: str) -> float | int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"weather: {name} should be a number, not {text!r}")
    return int(number) if number.is_integer() else number
