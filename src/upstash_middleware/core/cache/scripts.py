"""The cache's scripts as commands; what they do stands in the ``.lua`` files beside this."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from pkgutil import get_data
from typing import TYPE_CHECKING

from upstash_middleware.core.effects import Command, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.effects import Argument


@cache
def script(name: str) -> Script:
    """Return a script by its file's name."""
    text = get_data(__package__, f"lua/{name}.lua") or b""
    return Script(text.decode(), sha1(text, usedforsecurity=False).hexdigest())


def script_call(name: str, keys: Sequence[str], *arguments: Argument) -> Command:
    """Return the command that runs a script over these keys."""
    chosen = script(name)
    return Command(("EVALSHA", chosen.sha, len(keys), *keys, *arguments), script=chosen)
