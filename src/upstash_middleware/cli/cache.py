"""``cache explain|purge|list|stats``: what is stored, why a page missed, and away with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upstash_middleware.cli.exits import Exit, UsageError
from upstash_middleware.cli.limits import request_for
from upstash_middleware.cli.scanning import scan
from upstash_middleware.cli.session import Session, command
from upstash_middleware.cli.showing import Answer, duration, pairs, rows, size, text

if TYPE_CHECKING:
    from upstash_middleware.cli.scanning import Kept
    from upstash_middleware.core.cache.explaining import CacheExplanation

group: typer.Typer = typer.Typer(
    help="What is stored, why a page missed, and how to be rid of it.", no_args_is_help=True
)

_LARGEST = 5
_SOON = ((60, "a minute"), (3600, "an hour"), (86400, "a day"))


@command(group, "explain")
def explain(
    session: Session,
    url: Annotated[str, typer.Argument(help="The whole URL, host included, or with -H 'Host: …'.")],
    *,
    method: Annotated[str, typer.Option("--method", "-X", help="GET or HEAD.")] = "GET",
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="A header field of the request, 'Name: value'."),
    ] = None,
) -> Answer:
    """Tell what is stored for a URL, how fresh it is, and why it missed; exit code 1 if it does."""
    request = request_for(url, method, header or (), "127.0.0.1")
    if not request.host:
        raise UsageError(
            f"{url!r} names no host, and each host's pages are stored by themselves: give the "
            "whole URL as clients ask for it, or add -H 'Host: shop.example'"
        )
    (gateway, *_) = session.caching()
    if not gateway.settings.cache:
        raise UsageError(
            "no cache rules are known, which say how a URL is stored; name the application with "
            "--app MODULE:NAME or its rules with --config FILE"
        )
    told = gateway.perform(gateway.cache.explain(request))
    hit = told.outcome == "hit"
    shown = [_headline(told, hit=hit), pairs(_shown(told))]
    return Answer(asdict(told), shown, Exit.DONE if hit else Exit.NO)


@command(group, "purge")
def purge(
    session: Session,
    urls: Annotated[
        list[str] | None,
        typer.Argument(help="Paths with their query, or whole URLs; with all variants."),
    ] = None,
    *,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", help="A tag; 'product' takes 'product:7' along."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All that is stored under the prefix.")
    ] = False,
    soft: Annotated[
        bool, typer.Option("--soft", help="Leave it to be served stale where rules allow it.")
    ] = False,
) -> Answer:
    """Make stored responses unusable, at once and for all processes."""
    if not (urls or tag or everything):
        raise UsageError("name what to purge: URLs, --tag TAG, or --everything")
    gateways = session.caching()
    prefixes = list(dict.fromkeys(gateway.settings.prefix for gateway in gateways))
    try:
        for gateway in gateways:
            gateway.purge(*urls or (), tags=tuple(tag or ()), everything=everything, soft=soft)
    except ValueError as error:
        if type(error) is not ValueError:  # a ConfigurationError, which is told elsewhere
            raise
        raise UsageError(str(error)) from error
    purged = {"urls": urls or [], "tags": tag or [], "everything": everything, "soft": soft}
    named = [*(urls or ()), *(f"tag {each}" for each in tag or ()), *["everything"] * everything]
    how = "purged softly" if soft else "purged"
    shown = text(f"{how}: {', '.join(named)} (under {', '.join(prefixes)})", "green")
    return Answer({"purged": purged, "prefixes": prefixes}, [shown])


@command(group, "list")
def list_(
    session: Session,
    *,
    containing: Annotated[str, typer.Option(help="Only URLs that contain this text.")] = "",
    limit: Annotated[int, typer.Option(help="How many to list at most.", min=1)] = 1000,
) -> Answer:
    """List what is stored: URL, bytes, and when it expires. Scans the whole database."""
    (gateway, *_) = session.caching()
    found = scan(gateway, containing)
    kept = sorted(found.kept, key=lambda one: (one.url, one.key))
    data = {
        "prefix": gateway.settings.prefix,
        "count": len(kept),
        "entries": [asdict(one) for one in kept[:limit]],
        "billed_commands": found.commands,
    }
    listed = rows(
        ("url", "variant", "size", "expires in"),
        [
            (
                one.url,
                one.key[-8:] if one.is_variant else None,
                size(one.size),
                "never" if one.expires_in is None else duration(one.expires_in),
            )
            for one in kept[:limit]
        ],
    )
    count = {0: "nothing is", 1: "1 entry is"}.get(len(kept), f"{len(kept)} entries are")
    left_out = f", the first {limit} listed" if len(kept) > limit else ""
    summary = f"{count} stored under {gateway.settings.prefix}{left_out}; "
    summary += f"{found.commands} commands were billed"
    return Answer(data, [*[listed] * bool(kept), text(summary, "dim")])


@command(group, "stats")
def stats(session: Session) -> Answer:
    """Count what is stored, its bytes, and when it expires. Scans the whole database."""
    (gateway, *_) = session.caching()
    found = scan(gateway)
    data = {"prefix": gateway.settings.prefix, **_counts(found.kept)}
    data["billed_commands"] = found.commands
    shown = {
        "prefix": data["prefix"],
        "URLs": data["urls"],
        "entries": f"{data['entries']}, {data['variants']} of them variants",
        "stored": f"{size(data['bytes'])}, {size(data['mean_bytes'])} on average",
        **{f"gone within {word}": data["expiring"][word] for _, word in _SOON},
        "billed": f"{found.commands} commands for this",
    }
    largest = rows(
        ("largest", "size"), [(one["url"], size(one["size"])) for one in data["largest"]]
    )
    return Answer(data, [pairs(shown), *[largest] * bool(found.kept)])


def _counts(kept: tuple[Kept, ...]) -> dict[str, Any]:
    total = sum(one.size for one in kept)
    largest = sorted(kept, key=lambda one: one.size, reverse=True)[:_LARGEST]
    return {
        "entries": len(kept),
        "urls": len({one.url for one in kept}),
        "variants": sum(one.is_variant for one in kept),
        "bytes": total,
        "mean_bytes": total // len(kept) if kept else 0,
        "expiring": {
            word: sum(1 for one in kept if one.expires_in is not None and one.expires_in <= seconds)
            for seconds, word in _SOON
        },
        "largest": [{"url": one.url, "key": one.key, "size": one.size} for one in largest],
    }


def _headline(told: CacheExplanation, *, hit: bool) -> Any:
    word = "hit" if hit else f"no hit ({told.outcome})"
    return text(f"{word}: {told.why}", "bold green" if hit else "bold yellow")


def _shown(told: CacheExplanation) -> dict[str, object]:
    shown: dict[str, object] = {
        "rule": told.rule,
        "purged as": told.url,
        "key": told.key,
        "varies by": told.vary,
        "variant": told.variant,
        "tags": told.tags,
    }
    if told.age is None or told.lifetime is None:
        return shown
    left = told.lifetime - told.age
    return shown | {
        "status": told.status,
        "body": size(told.length or 0),
        "age": duration(told.age),
        "freshness": f"{duration(told.lifetime)}, of which "
        + (f"{duration(left)} are left" if left > 0 else f"none is left since {duration(-left)}"),
        "while revalidate": _seconds(told.while_revalidate),
        "if error": _seconds(told.if_error),
    }


def _seconds(seconds: float) -> str | None:
    return duration(seconds) if seconds else None
