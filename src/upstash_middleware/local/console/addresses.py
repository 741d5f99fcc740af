"""The console's own addresses, which its pages link to.  Nothing else may live here."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

CONSOLE: Final = b"/-/console"

KEYS: Final = "/-/console"
KEY: Final = "/-/console/key"
DELETE: Final = "/-/console/key/delete"
FLUSH: Final = "/-/console/flush"
BILL: Final = "/-/console/bill"
NEW_BILL: Final = "/-/console/bill/reset"
LIVE: Final = "/-/console/live"
EVENTS: Final = "/-/console/live/events"
WEATHER: Final = "/-/console/weather"
ENTER: Final = "/-/console/enter"
STYLE: Final = "/-/console/console.css"
SCRIPT: Final = "/-/console/console.js"


def of_key(address: str, key: bytes) -> str:
    """An address about one key, whatever bytes the key is made of."""
    return f"{address}?key={quote(key, safe='')}"


def of_search(**parameters: str | bytes | int) -> str:
    """The address of the keys that a search finds; empty parameters are left out."""
    given = {name: value for name, value in parameters.items() if value}
    return f"{KEYS}?{urlencode(given)}" if given else KEYS
