"""docs/messages.md has every message that a user may see."""

from __future__ import annotations

import re

import pytest

from documentation.messages import logged
from tests.docs.pages import ROOT
from upstash_middleware import errors, limiter

_PAGE = (ROOT / "docs" / "messages.md").read_text()
_DECISIONS = (ROOT / "src/upstash_middleware/core/ratelimit/decision.py").read_text()


@pytest.mark.parametrize("text", [message.text for message in logged()])
def test_every_log_line_is_listed(text: str) -> None:
    pattern = re.sub(r"%(\.\d)?[a-z]", "…", text).partition(" (observers get")[0]
    shown = re.sub(r"…(\W{0,2}…)+", "…", pattern).removesuffix("…").strip()
    listed = re.sub(r"…(\W{0,2}…)+", "…", _PAGE)
    assert shown.partition(" (further ones")[0] in listed, shown


@pytest.mark.parametrize(
    "name",
    sorted(
        each.__name__
        for each in (*vars(errors).values(), limiter.RateLimited)
        if isinstance(each, type)
        and issubclass(each, errors.UpstashMiddlewareError)
        and each not in (errors.UpstashMiddlewareError, errors.UpstashError)
    ),
)
def test_every_exception_is_listed(name: str) -> None:
    assert f"| `{name}` |" in _PAGE


def test_every_denial_is_listed() -> None:
    details = re.findall(r'detail = f?"([^{"]+)|"about:blank", "\w+", "([^"]+)"', _DECISIONS)
    assert len(details) >= 5
    for first, second in details:
        assert (first or second) in _PAGE
