"""The cache's scripts as commands; what they do stands in the ``.lua`` files beside this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.effects import Command, Script
from upstash_middleware.core.lua import script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.effects import Argument


def cache_script(name: str) -> Script:
    """Return a script of the cache by its file's name."""
    return script(__package__, name)


def script_call(name: str, keys: Sequence[str], *arguments: Argument) -> Command:
    """Return the command that runs a script over these keys."""
    chosen = cache_script(name)
    return Command(("EVALSHA", chosen.sha, len(keys), *keys, *arguments), script=chosen)
