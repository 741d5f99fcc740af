"""``cache explain|purge|warm|list|stats``: stored responses, reasons for misses, and purging.

`list` and `stats` use SCAN, which reads the whole database even with a pattern. Each SCAN call and
each key that is read are billed.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from upstash_middleware import warming
from upstash_middleware.cli.invocation import Invocation, command
from upstash_middleware.cli.limits import RootPath, fields_of, make_request
from upstash_middleware.cli.output import (
    Answer,
    Exit,
    UsageError,
    duration,
    pairs,
    rows,
    size,
    text,
)
from upstash_middleware.core.cache.keys import Names
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from upstash_middleware.core.cache.explanation import CacheExplanation
    from upstash_middleware.runtime import Runtime

group: typer.Typer = typer.Typer(
    help="Stored responses, reasons for misses, and purging.", no_args_is_help=True
)

_SEE_MORE = (
    "This reads stored responses, and does not call the application. The field "
    "Upstash-Cache-Debug of a real response also explains its own Cache-Control: see the setting "
    "cache_debug."
)
_UNCHECKED = (
    "No cache rules are known here, so nothing was checked: not that the application uses this "
    "prefix, nor that its rules store these URLs in this form, nor that purge_directories is on, "
    "without which directories and rules have no effect. on_purge was not called. Name the "
    "application with --app MODULE:NAME."
)
_LARGEST_SHOWN = 5
_SPANS = ((60, "a minute"), (3600, "an hour"), (86400, "a day"))
_VARIANT = re.compile(r"#[0-9a-f]{32}$")
_ROOT_PATH = re.compile(r"^((?:[^/]+:)?)\[[/#][^\]]*\]")
"""The application's prefix in a key, in brackets before the origin."""


@command(group, "explain")
def explain(
    invocation: Invocation,
    url: Annotated[str, typer.Argument(help="The whole URL, or a path with -H 'Host: …'.")],
    *,
    method: Annotated[str, typer.Option("--method", "-X", help="GET or HEAD.")] = "GET",
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="A header field of the request, 'Name: value'."),
    ] = None,
    root_path: RootPath = "",
) -> Answer:
    """Show the stored response for a URL, its freshness, and why it missed (exit code 1)."""
    request = make_request(url, method, header or (), "127.0.0.1", root_path)
    if not request.host:
        raise UsageError(
            f"{url!r} has no host, and pages are stored per host: give the whole URL as "
            "clients use it, or add -H 'Host: shop.example'"
        )
    (runtime, *_) = invocation.caching()
    if not runtime.settings.cache:
        raise UsageError(
            "no cache rules are known, so it is unknown how a URL is stored; name the application "
            "with --app MODULE:NAME or its rules with --config FILE"
        )
    explanation = runtime.perform(runtime.cache.explain(request))
    if explanation.outcome == "hit":
        headline, code = text(f"hit: {explanation.why}", "bold green"), Exit.DONE
    else:
        words = f"no hit ({explanation.outcome}): {explanation.why}"
        headline, code = text(words, "bold yellow"), Exit.NO
    more = [text(_SEE_MORE, "dim")] * (code is Exit.NO and explanation.rule is not None)
    shown = pairs(_show(explanation))
    return Answer(structs.asdict(explanation), [headline, shown, *more], code)


def _show(explanation: CacheExplanation) -> dict[str, object]:
    shown: dict[str, object] = {
        "to change it": explanation.advice or None,
        "rule": explanation.rule,
        "purged as": explanation.url,
        "key": explanation.key,
        "varies by": explanation.vary,
        "variant": explanation.variant,
        "tags": explanation.tags,
        "groups": explanation.groups,
        "No-Vary-Search": explanation.no_vary_search,
        "CDN tags": explanation.cdn_tags,
    }
    if explanation.age is None or explanation.lifetime is None:
        return shown
    left = explanation.lifetime - explanation.age
    rest = f"{duration(left)} left" if left > 0 else f"expired {duration(-left)} ago"
    while_revalidate, if_error = explanation.while_revalidate, explanation.if_error
    return shown | {
        "status": explanation.status,
        "body": size(explanation.length or 0),
        "age": duration(explanation.age),
        "freshness": f"{duration(explanation.lifetime)}, {rest}",
        "while revalidate": duration(while_revalidate) if while_revalidate else None,
        "if error": duration(if_error) if if_error else None,
    }


@command(group, "purge")
def purge(  # noqa: PLR0913 - each is an option
    invocation: Invocation,
    urls: Annotated[
        list[str] | None,
        typer.Argument(help="Paths with their query, or whole URLs; with all variants."),
    ] = None,
    *,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", help="A tag; 'product' includes 'product:7'."),
    ] = None,
    directory: Annotated[
        list[str] | None,
        typer.Option("--directory", "-d", help="All URLs that begin with a path: '/products/'."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", "-r", help="All that a rule's path covers: '/products/{id}'."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All stored responses under the prefix.")
    ] = False,
    soft: Annotated[
        bool, typer.Option("--soft", help="Allow serving them stale where rules allow it.")
    ] = False,
) -> Answer:
    """Invalidate stored responses, at once and for all processes."""
    if not (urls or tag or directory or rule or everything):
        raise UsageError(
            "name what to purge: URLs, --tag TAG, --directory PATH, --rule PATH, or --everything"
        )
    runtimes = invocation.caching()
    prefixes = list(dict.fromkeys(runtime.settings.prefix for runtime in runtimes))
    scopes: dict[str, Any] = {
        "tags": tag or [],
        "directories": directory or [],
        "rules": rule or [],
        "everything": everything,
        "soft": soft,
    }
    try:
        for runtime in runtimes:
            runtime.purge(*urls or (), **scopes)
    except ValueError as error:
        if type(error) is not ValueError:  # a ConfigurationError
            raise
        raise UsageError(str(error)) from error
    named = [
        *(urls or ()),
        *(f"tag {each}" for each in tag or ()),
        *(f"directory {each}" for each in directory or ()),
        *(f"rule {each}" for each in rule or ()),
        *["everything"] * everything,
    ]
    is_checked = any(runtime.settings.cache for runtime in runtimes)
    how = "purged" if is_checked or everything else "recorded as purged"
    how += " softly" if soft else ""
    shown = [text(f"{how}: {', '.join(named)} (under {', '.join(prefixes)})", "green")]
    if not is_checked:
        shown.append(text(_UNCHECKED, "dim"))
    purged = {"urls": urls or [], **scopes}
    return Answer({"purged": purged, "prefixes": prefixes, "checked": is_checked}, shown)


@command(group, "warm")
def warm(  # noqa: PLR0913 - each is an option
    invocation: Invocation,
    urls: Annotated[
        list[str] | None, typer.Argument(help="Whole URLs, as the application receives them.")
    ] = None,
    *,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="A file with one URL a line; '-' is standard input."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="A header field of each request, 'Name: value'."),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="The number of concurrent requests.", min=1)] = 8,
    root_path: RootPath = "",
) -> Answer:
    """Store pages by requesting them from the application, in this process."""
    invocation.caching()
    subject = invocation.subject
    app = subject.app
    if subject.is_django:
        from django.core.wsgi import get_wsgi_application  # noqa: PLC0415 - in a Django project

        app = get_wsgi_application()
    if app is None:
        raise UsageError("name the application that renders the pages, with --app MODULE:NAME")
    every = [*(urls or ()), *(_lines(file) if file is not None else ())]
    if not every:
        raise UsageError("name what to warm: URLs, or --file FILE")
    try:
        warmed = warming.warm(
            app,
            every,
            headers=dict(fields_of(header or ())),
            concurrency=concurrency,
            root_path=root_path,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:  # the lifespan failed
        raise ConfigurationError(f"--app {invocation.app!r}: {error}") from error
    table = rows(
        ("url", "status", "outcome", "why"),
        [(each.url, each.status, each.outcome, each.why or None) for each in warmed],
    )
    stored = sum(each.is_stored for each in warmed)
    summary = text(f"{stored} of {len(warmed)} are stored", "green" if stored else "yellow")
    code = Exit.DONE if stored == len(warmed) else Exit.NO
    return Answer({"warmed": [structs.asdict(each) for each in warmed]}, [table, summary], code)


def _lines(file: str) -> list[str]:
    try:
        content = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--file {file!r} cannot be read: {error}") from error
    return [line.strip() for line in content.splitlines() if line.strip()]


@command(group, "list")
def list_(
    invocation: Invocation,
    *,
    containing: Annotated[str, typer.Option(help="Only URLs that contain this text.")] = "",
    limit: Annotated[int, typer.Option(help="The most entries to list.", min=1)] = 1000,
) -> Answer:
    """List stored responses with URL, bytes and expiry. Scans the whole database."""
    (runtime, *_) = invocation.caching()
    prefix = runtime.settings.prefix
    entries = sorted(
        _scan(invocation, runtime, containing), key=lambda entry: (entry.url, entry.key)
    )
    table = rows(
        ("url", "variant", "size", "expires in"),
        [
            (
                entry.url,
                entry.key[-8:] if entry.is_variant else None,
                size(entry.size),
                "never" if entry.expires_in is None else duration(entry.expires_in),
            )
            for entry in entries[:limit]
        ],
    )
    count = {0: "nothing is", 1: "1 entry is"}.get(len(entries), f"{len(entries)} entries are")
    cut = f", the first {limit} listed" if len(entries) > limit else ""
    summary = f"{count} stored under {prefix}{cut}; {invocation.billed} commands were billed"
    data = {
        "prefix": prefix,
        "count": len(entries),
        "entries": [asdict(entry) for entry in entries[:limit]],
        "billed_commands": invocation.billed,
    }
    return Answer(data, [*[table] * bool(entries), text(summary, "dim")])


@command(group, "stats")
def stats(invocation: Invocation) -> Answer:
    """Count stored responses, their bytes and expiry. Scans the whole database."""
    (runtime, *_) = invocation.caching()
    entries = _scan(invocation, runtime)
    total = sum(entry.size for entry in entries)
    lifetimes = [entry.expires_in for entry in entries if entry.expires_in is not None]
    largest = sorted(entries, key=lambda entry: entry.size, reverse=True)[:_LARGEST_SHOWN]
    data: dict[str, Any] = {
        "prefix": runtime.settings.prefix,
        "entries": len(entries),
        "urls": len({entry.url for entry in entries}),
        "variants": sum(entry.is_variant for entry in entries),
        "bytes": total,
        "mean_bytes": total // len(entries) if entries else 0,
        "expiring": {
            word: sum(lifetime <= seconds for lifetime in lifetimes) for seconds, word in _SPANS
        },
        "largest": [{"url": each.url, "key": each.key, "size": each.size} for each in largest],
        "billed_commands": invocation.billed,
    }
    shown = {
        "prefix": data["prefix"],
        "URLs": data["urls"],
        "entries": f"{data['entries']}, {data['variants']} of them variants",
        "stored": f"{size(total)}, {size(data['mean_bytes'])} on average",
        **{f"expires within {word}": count for word, count in data["expiring"].items()},
        "billed": f"{invocation.billed} commands for this",
    }
    table = rows(("largest", "size"), [(each.url, size(each.size)) for each in largest])
    return Answer(data, [pairs(shown), *[table] * bool(entries)])


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key of the cache, without its value."""

    key: str
    url: str
    """Origin, path and query."""
    is_variant: bool
    size: int
    """Bytes, as stored."""
    expires_in: float | None
    """Seconds; None for a key without an expiry. This package sets one on every key."""


def _scan(invocation: Invocation, runtime: Runtime, containing: str = "") -> list[_Entry]:
    """The cache's entries whose URL contains a text. Raises UpstashError."""
    start = Names(runtime.settings.prefix).resource("", "")
    total = invocation.count_keys(runtime)
    found = []
    for read in invocation.read_each(runtime, start, "STRLEN", total=total, containing=containing):
        for key, length, left in read:
            if isinstance(length, int):
                url = _ROOT_PATH.sub(r"\1", _VARIANT.sub("", key.removeprefix(start)))
                found.append(_Entry(key, url, _VARIANT.search(key) is not None, length, left))
    return found
