"""Lua scripts and functions as Upstash runs them, on a Valkey that knows neither its flag nor bill.

Only the wrapping of texts and the unwrapping of replies may live here.  The wrapper (in `lua`)
counts the calls that a script makes, for Upstash bills each, and under ``allow-key-locking``
refuses keys that were not declared.  The counts travel back beside the script's own result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha1
from typing import Final

from upstash_middleware.local.lua import DYNAMIC_KEY, LIBRARY, MARK, around_script
from upstash_middleware.local.resp import Failure, Reply, failure

KEY_LOCKING: Final = b"allow-key-locking"

_SHEBANG: Final = re.compile(rb"#![^\n]*")
_FLAGS: Final = re.compile(rb"\sflags=(\S*)")


@dataclass(frozen=True, slots=True)
class Script:
    """A script as it was sent, and as Valkey gets it."""

    sha: str
    """SHA-1 of the text as sent, in hexadecimal: what EVALSHA asks for."""
    wrapped: bytes
    wrapped_sha: str


@lru_cache(maxsize=1024)
def wrap(text: bytes) -> Script:
    """The script that counts and checks, made of this one."""
    shebang, body, locking = _split(text)
    wrapped = shebang + around_script(body, locking=locking)
    return Script(
        sha=sha1(text, usedforsecurity=False).hexdigest(),
        wrapped=wrapped,
        wrapped_sha=sha1(wrapped, usedforsecurity=False).hexdigest(),
    )


def wrap_library(text: bytes) -> bytes:
    """The library of functions that count and check, made of this one."""
    shebang, newline, body = text.partition(b"\n")
    return shebang + newline + LIBRARY + body if newline else text


def unwrap_library(reply: Reply) -> Reply:
    """The reply to FUNCTION LIST, with the libraries' texts as they were sent."""
    match reply:
        case bytes():
            return reply.replace(LIBRARY, b"")
        case list():
            return [unwrap_library(member) for member in reply]
        case _:
            return reply


def _split(text: bytes) -> tuple[bytes, bytes, bool]:
    """The shebang line without Upstash's own flag, the rest, and whether the flag was there."""
    found = _SHEBANG.match(text)
    if found is None:
        return b"", text, False
    line, body = found.group(), text[found.end() + 1 :]
    flags = _FLAGS.search(line)
    if flags is None:
        return line + b"\n", body, False
    names = [name for name in flags.group(1).split(b",") if name]
    if KEY_LOCKING not in names:
        return line + b"\n", body, False
    kept = b",".join(name for name in names if name != KEY_LOCKING)
    flags_kept = b" flags=" + kept if kept else b""
    return line[: flags.start()] + flags_kept + line[flags.end() :].rstrip() + b"\n", body, True


def unwrap(reply: Reply, name: str, source: str) -> tuple[Reply, dict[str, int]]:
    """A wrapper's reply, taken apart: the script's own reply, and its calls by command.

    `name` (a SHA, or a function's name) and `source` are how an error names the script.  A reply
    that does not come from the wrapper (the script was never run) is given back as it is.
    """
    match reply:
        case [[mark, *counts], *result] if mark == MARK:
            calls = _calls(counts)
        case _:
            return reply, {}
    if len(result) < 2:
        return (result[0] if result else None), calls
    return _raised(result[1], name, source), calls


def _raised(problem: Reply, name: str, source: str) -> Failure:
    """The error that a script raised, as Redis words it: what, in which script, on which line."""
    match problem:
        case [bytes() as text, *_] if text.startswith(DYNAMIC_KEY):
            return failure(text)
        case [bytes() as text, bytes() as line]:
            position = b", on @%b:%b" % (source.encode(), line)
        case [bytes() as text, *_]:
            position = b""
        case _:  # Lua gave up before the error could be described
            text, position = b"ERR error in error handling", b""
    return failure(b"%b script: %b%b." % (text, name.encode(), position))


def _calls(counts: list[Reply]) -> dict[str, int]:
    calls: dict[str, int] = {}
    for name, count in zip(counts[::2], counts[1::2], strict=True):
        if isinstance(name, bytes) and isinstance(count, int):
            calls[name.decode("utf-8", "replace")] = count
    return calls
