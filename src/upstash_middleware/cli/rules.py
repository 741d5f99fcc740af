"""``rules check``: what is wrong with the rules, and which routes none of them names."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upstash_middleware.cli.exits import Exit, UsageError
from upstash_middleware.cli.linting import Finding, coverage, findings
from upstash_middleware.cli.session import Session, command
from upstash_middleware.cli.showing import Answer, rows, text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from upstash_middleware.cli.application import Subject
    from upstash_middleware.cli.linting import Covered

group: typer.Typer = typer.Typer(help="Whether the rules are right.", no_args_is_help=True)

_STYLES = {"error": "bold red", "warning": "yellow"}


@group.callback()
def _group() -> None:
    """Whether the rules are right."""


@command(group, "check")
def check(
    session: Session,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for warnings and unnamed routes too.")
    ] = False,
) -> Answer:
    """Check the settings, and list the application's routes that no rule names."""
    subject = session.subject
    if not any(gateway.halves for gateway in subject.gateways):
        raise UsageError(
            f"{subject.name} sets no rules; name the application with --app MODULE:NAME or its "
            "rules with --config FILE"
        )
    found = [*findings(subject.gateways, subject.routes), *_of_django(subject)]
    covered = coverage(subject.gateways, subject.routes or ())
    unnamed = [one for one in covered if not one.named]
    wrong = [one for one in found if strict or one.level == "error"]
    code = Exit.NO if wrong or (strict and unnamed) else Exit.DONE
    data = {
        "subject": subject.name,
        "findings": [asdict(one) for one in found],
        "routes": None if subject.routes is None else [_data(one) for one in covered],
        "unnamed": None if subject.routes is None else [one.route.path for one in unnamed],
    }
    return Answer(data, _shown(subject, found, covered), code)


def _of_django(subject: Subject) -> list[Finding]:
    """Return what this package's system checks say."""
    if not subject.is_django:
        return []
    from django.core.checks import ERROR  # noqa: PLC0415 - only where it is there

    from upstash_middleware.django.checks import check_middleware  # noqa: PLC0415 - likewise

    return [
        Finding(
            "error" if message.level >= ERROR else "warning", message.id or "", str(message.msg)
        )
        for message in check_middleware()
    ]


def _data(one: Covered) -> dict[str, Any]:
    return {
        "path": one.route.path,
        "methods": list(one.route.methods),
        "limits": list(one.limits),
        "handler_limits": list(one.route.limits),
        "cache": one.caches[0] if one.caches else None,
        "named": one.named,
    }


def _shown(subject: Subject, found: list[Finding], covered: list[Covered]) -> list[RenderableType]:
    shown: list[RenderableType] = [
        text(f"{one.level}: {one.where}: {one.what}", _STYLES[one.level]) for one in found
    ]
    if not found:
        shown.append(text(f"{subject.name}: nothing wrong with its rules", "green"))
    if subject.routes is None:
        return [*shown, text("routes are listed for an application, by --app MODULE:NAME", "dim")]
    table = [
        (
            " ".join(one.route.methods) or "any",
            one.route.path,
            " and ".join(filter(None, (" or ".join(one.limits), *one.route.limits))) or "none",
            one.caches[0] if one.caches else None,
            None if one.named else "no rule names it",
        )
        for one in covered
    ]
    return [*shown, text(""), rows(("methods", "route", "limit", "cache", ""), table)]
