"""Lua scripts as values: their text is read from the package's files, once each."""

from __future__ import annotations

import sys
from functools import cache
from hashlib import sha1
from os.path import dirname, join
from typing import Any

from upstash_middleware.core.effects import Script


@cache
def script(package: str, *names: str, first_line: str = "") -> Script:
    """Return the script made of a package's files ``lua/NAME.lua``, one after the other."""
    spec: Any = sys.modules[package].__spec__
    folder = join(dirname(spec.origin), "lua")  # noqa: PTH118, PTH120 - it may be in an archive
    parts = [spec.loader.get_data(join(folder, f"{name}.lua")) for name in names]  # noqa: PTH118
    text = first_line.encode() + b"\n".join(parts)
    # Not for secrecy: a server knows scripts by this digest.
    return Script(text.decode(), sha1(text, usedforsecurity=False).hexdigest())
