"""Lua scripts and functions, with Upstash's billing and key checks, which Valkey lacks.

Upstash bills each call inside a script, and with the flag ``allow-key-locking`` it rejects
undeclared keys. Therefore each script and library gets a prelude that counts calls and checks keys.
The reply contains the counts and the script's own result. A prelude is on the first line, before
the user's text, so that line numbers in error messages do not change.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from hashlib import sha1
from pkgutil import get_data
from typing import Final

from msgspec import Struct

from upstash_middleware.local.valkey import Reply, failure

READ_ONLY_ARGUMENT: Final = b"upstash-local: read-only"
"""The last argument of a function called by FCALL_RO; the prelude removes it."""

_KEY_LOCKING: Final = b"allow-key-locking"
_SHEBANG: Final = re.compile(rb"#![^\n]*")
_FLAGS: Final = re.compile(rb"\sflags=(\S*)")


class Script(Struct, frozen=True):
    """A script, in its original and its wrapped form."""

    sha: str
    """SHA-1 of the original text, in hexadecimal, as in EVALSHA."""
    wrapped: bytes
    wrapped_sha: str


@lru_cache(maxsize=1024)
def wrap(text: bytes) -> Script:
    """Add the prelude to a script, and remove Upstash's own flag, which Valkey rejects."""
    shebang, body, locking = b"", text, False
    if found := _SHEBANG.match(text):
        shebang, body = found.group(), text[found.end() + 1 :]
        flags = _FLAGS.search(shebang)
        names = [name for name in flags.group(1).split(b",") if name] if flags else []
        if flags and _KEY_LOCKING in names:
            locking = True
            names = [name for name in names if name != _KEY_LOCKING]
            kept = b" flags=" + b",".join(names) if names else b""
            shebang = shebang[: flags.start()] + kept + shebang[flags.end() :].rstrip()
        shebang += b"\n"
    # The suffix begins with a newline, in case the last line of the script is a comment.
    wrapped = shebang + _SCRIPT + b" " + body + _SCRIPT_ENDS[locking]
    return Script(
        sha=sha1(text, usedforsecurity=False).hexdigest(),
        wrapped=wrapped,
        wrapped_sha=sha1(wrapped, usedforsecurity=False).hexdigest(),
    )


def wrap_library(text: bytes) -> bytes:
    """Add the prelude to a library of functions."""
    shebang, newline, body = text.partition(b"\n")
    return shebang + newline + _LIBRARY + body if newline else text


def unwrap_library(reply: Reply) -> Reply:
    """The reply to FUNCTION LIST, with the original texts of the libraries."""
    match reply:
        case bytes():
            return reply.replace(_LIBRARY, b"")
        case list():
            return [unwrap_library(member) for member in reply]
        case _:
            return reply


def unwrap(reply: Reply, name: str, source: str) -> tuple[Reply, dict[str, int]]:
    """Split a wrapped script's reply into the script's own reply and its calls by command.

    Errors identify the script by `name` (a SHA, or a function's name) and `source`. A reply that
    is not from the prelude, because the script was not run, is returned unchanged.
    """
    match reply:
        case [[mark, *counts], *result] if mark == _MARK:
            pairs = zip(counts[::2], counts[1::2], strict=True)
            calls = {
                called.decode("utf-8", "replace"): count
                for called, count in pairs
                if isinstance(called, bytes) and isinstance(count, int)
            }
        case _:
            return reply, {}
    if len(result) < 2:
        return (result[0] if result else None), calls
    match result[1]:
        case [bytes() as text, *_] if text.startswith(_DYNAMIC_KEY):
            return failure(text), calls
        case [bytes() as text, bytes() as line]:
            position = b", on @%b:%b" % (source.encode(), line)
        case [bytes() as text, *_]:
            position = b""
        case _:  # Lua failed while describing the error
            text, position = b"ERR error in error handling", b""
    return failure(b"%b script: %b%b." % (text, name.encode(), position)), calls


def original_monitor_line(line: bytes) -> bytes:
    """A line of MONITOR with the original text of scripts and libraries."""
    line = line.replace(_quoted(_LIBRARY), b"")
    before, found, after = line.partition(_quoted(_SCRIPT + b" "))
    if not found:
        return line
    for end in _SCRIPT_ENDS.values():
        after = after.replace(_quoted(end) + b'"', b'"', 1)
    return before + after


def _quoted(text: bytes) -> bytes:
    return text.replace(b'"', b'\\"').replace(b"\n", b"\\n")


@cache
def lua(name: str) -> bytes:
    """The text of a Lua file of this package."""
    return get_data(__package__, f"lua/{name}.lua") or b""


def _prelude(name: str) -> bytes:
    """A prelude as one line, without comments and with its error messages inserted."""
    text = lua(name).replace(b"$CORE", lua("prelude"))
    lines = [line.strip() for line in text.splitlines() if not line.startswith(b"--")]
    text = b" ".join(filter(None, lines))
    for placeholder, value in {
        b"$MARK": _MARK,
        b"$READ_ONLY": READ_ONLY_ARGUMENT,
        b"$DYNAMIC_KEY": _DYNAMIC_KEY,
        b"$WHOLE_DATABASE": _WHOLE_DATABASE,
    }.items():
        text = text.replace(placeholder, value)
    return text


_MARK: Final = b"upstash-local"
"""The first word of a wrapped script's reply, which identifies it."""
_DYNAMIC_KEY: Final = (
    b"ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set."
)
_WHOLE_DATABASE: Final = b"is not allowed in Lua scripts when 'allow-key-locking' flag is set"

_SCRIPT: Final = _prelude("script_prelude")
_SCRIPT_ENDS: Final = {False: b"\nend, KEYS, false)", True: b"\nend, KEYS, true)"}
_LIBRARY: Final = _prelude("library_prelude") + b" "
