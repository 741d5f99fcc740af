"""Markup that cannot be broken out of: whatever is not made here is text, and is escaped.

No page may be described here.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

_VOID: Final = frozenset({"br", "input", "link", "meta", "hr", "wbr"})


class Html(str):
    """Finished markup."""

    __slots__ = ()


Child: TypeAlias = "str | int | Sequence[Html] | None"
Attribute: TypeAlias = str | float | bool | None


def h(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element: ``h("a", "text", href="/x", class_="y", aria_label="z")``.

    An attribute that is True stands without a value, one that is None or False not at all.
    """
    start = f"<{name}{''.join(_attribute(*pair) for pair in attributes.items())}>"
    return Html(start if name in _VOID else f"{start}{all_of(*children)}</{name}>")


def all_of(*children: Child) -> Html:
    """Several pieces after one another."""
    return Html("".join(map(_markup, children)))


def _markup(child: Child) -> str:
    match child:
        case None:
            return ""
        case Html():
            return child
        case list() | tuple():
            return "".join(map(_markup, child))
        case _:
            return escape(str(child))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    # The trailing underscore is for names that are Python's own; SVG's have capitals and stay.
    written = name.removesuffix("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{escape(str(value))}"'
