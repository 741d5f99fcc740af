"""Tables within pages that programs write, between ``<!-- made: NAME -->`` and ``<!-- /made -->``.

What a million requests cost is the commands as they were measured, times Upstash's price. Those of
this package are in a table below, which the tests count on the wire; those of the peers are what
`make bench` counted and docs/benchmarks.md says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from documentation.leases import lease_costs
from documentation.messages import LISTS
from documentation.pictures.limits import rows_of_algorithms
from documentation.site import ROOT, table
from upstash_middleware.core.cache.http.cookies import ANALYTICS_COOKIES
from upstash_middleware.core.cache.http.fields import (
    CLIENT_FIELDS,
    CREDENTIAL_FIELDS,
    REFLECTED_FIELDS,
)
from upstash_middleware.core.cache.http.vary import LIST_FIELDS
from upstash_middleware.core.identify import PLATFORMS
from upstash_middleware.local.billing import DOLLARS_PER_COMMAND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_OURS: Final = frozenset({"one limit", "three limits", "hit, 1 KB", "limit and hit"})
_COMPARED: Final = {
    "one limit, the request passes": (
        "Starlette: one limit",
        "Starlette: upstash_ratelimit",
        "Starlette: slowapi",
        "FastAPI: fastapi-limiter",
        "Flask: Flask-Limiter",
    ),
    "a page from the cache": (
        "Starlette: hit, 1 KB",
        "Starlette: upstash-redis cache, hit",
        "Starlette: hishel, hit",
        "FastAPI: fastapi-cache2, hit",
        "Flask: flask-caching, hit",
        "Django WSGI: cache middleware, hit",
    ),
}
_COSTS: Final = (
    ("allowed, one limit", "1", "3"),
    ("allowed, N limits", "1", "2 + N"),
    ("denied", "1", "2"),
    ("denied again, until it would pass, for at most a minute", "0", "0"),
    ("a cache hit", "1", "1"),
    ("a limit and a cache hit", "1", "4"),
    ("a limit, a session and a cache hit", "1", "5"),
    ("a cache miss: look up, and store", "2", "2 (3 with variants)"),
    ("a session; one that is bound to a user", "0 more", "1; 2"),
    ("a change of a session; binding it to a user, at a login", "1 more", "3; 6"),
    ("reading a value of your data; counting", "1", "1; 3"),
    ("loading a missing value with `get_or_set`; with `lock=False`", "3; 2", "3; 2"),
    ("a purge of URLs or of everything; of a tag", "1", "1; 2"),
)
_OVER_HTTP: Final = ("upstash_ratelimit", "upstash-redis")


def with_region(page: str, name: str, text: str) -> str:
    """Return the page with this text in its region. Raises ValueError where it has none."""
    pattern = rf"(<!-- made: {re.escape(name)} -->\n)(?:.*?\n)??(<!-- /made -->)"
    new, count = re.subn(
        pattern, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the page should have one region {name!r}, and has {count}")
    return new


def own_costs() -> str:
    """Return the table of this package's costs."""
    rows = [(what, trips, commands, _priced(commands)) for what, trips, commands in _COSTS]
    heading = ("request", ">HTTP requests to Upstash", ">billed commands", ">price of a million")
    return table(heading, rows)


def _priced(commands: str) -> str:
    if "N" in commands:
        return ""
    return re.sub(r"\d+", lambda found: _dollars(int(found[0])), commands)


def compared_costs() -> str:
    """Return the table of this package beside others, by docs/benchmarks.md."""
    report = (ROOT / "docs" / "benchmarks.md").read_text()
    lines = report.partition("\n| row |")[2].partition("\n\n")[0].splitlines()[2:]
    measured = [line.strip("| ").split(" | ") for line in lines]
    commands = {row[0]: float(row[-1]) for row in measured}
    rows = []
    for what, names in _COMPARED.items():
        for name in names:
            framework, _, row = name.partition(": ")
            ours, count = row in _OURS, commands[name]
            who = "**upstash-middleware**" if ours else row.removesuffix(", hit")
            over = "HTTP" if ours or row.startswith(_OVER_HTTP) else "Redis's TCP"
            rows.append((what, f"{who}, {framework}", over, f"{count:g}", _dollars(count)))
    return table(("", "with", "over", ">commands", ">a million of them"), rows)


def _dollars(commands: float) -> str:
    return f"${commands * 1_000_000 * DOLLARS_PER_COMMAND:.2f}"


def algorithms() -> str:
    """Return how many of the pictures' requests pass, for each algorithm."""
    heading = ("", ">requests that pass", ">most within any 10 s")
    return table(heading, rows_of_algorithms())


def _fields(reasons: Iterable[tuple[str, str]]) -> str:
    rows = [(f"`{name}`", reason) for name, reason in reasons]
    return table(("field", "what it is, and who sends or reads it"), rows)


def list_fields() -> str:
    """Return the fields whose value is a list."""
    said = {True: "no difference", False: "a difference"}
    rows = [
        (f"`{name.title()}`", said[field.case], said[field.order])
        for name, field in LIST_FIELDS.items()
    ]
    return table(("field", "case makes", "order makes"), rows)


def platforms() -> str:
    """Return the presets of ``client_ip``."""
    rows = []
    for name, preset in PLATFORMS.items():
        field = (
            preset.header.title().replace("-Ip", "-IP").replace("Cf-", "CF-").replace("Do-", "DO-")
        )
        which = {0: "the event", 1: "the last entry", 2: "the second entry from the right"}[
            preset.hops
        ]
        is_list = preset.header == "x-forwarded-for"
        read = f"{field}, {which}" if is_list else field or which
        known = " and ".join(f"`{variable}`" for variable in preset.variables)
        rows.append(
            (
                f"[{preset.title}]({preset.documentation})",
                f"`{name!r}`".replace("'", '"'),
                read,
                preset.says,
                known,
                "yes" if preset.automatic else "",
            )
        )
    heading = (
        "platform",
        "`client_ip=`",
        "what is read",
        "its documentation",
        "recognised by",
        "automatic",
    )
    return table(heading, rows)


def analytics_cookies() -> str:
    """Return the table of the cookies that are ignored by default."""
    rows = [(f"`{name}`", source) for name, source in ANALYTICS_COOKIES.items()]
    return table(("cookie", "what sets it, and where that is described"), rows)


REGIONS: Final[dict[tuple[str, str], Callable[[], str]]] = {
    ("behind-a-proxy.md", "platforms"): platforms,
    ("costs.md", "own"): own_costs,
    ("../README.md", "own"): own_costs,
    ("costs.md", "compared"): compared_costs,
    ("costs.md", "leases"): lease_costs,
    ("concepts/windows.md", "algorithms"): algorithms,
    ("reference/known-fields.md", "credentials"): lambda: _fields(CREDENTIAL_FIELDS.items()),
    ("reference/known-fields.md", "reflected"): lambda: _fields(
        (name, reason) for name, (_, reason) in REFLECTED_FIELDS.items()
    ),
    ("reference/known-fields.md", "clients"): lambda: _fields(CLIENT_FIELDS.items()),
    ("reference/known-fields.md", "cookies"): analytics_cookies,
    ("reference/known-fields.md", "lists"): list_fields,
    **{("messages.md", name): made for name, made in LISTS.items()},
}
"""By the page and the region's name, what it contains."""
