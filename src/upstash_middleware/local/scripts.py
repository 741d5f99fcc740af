"""Lua scripts and functions as Upstash runs them, on a Valkey that does neither.

Upstash bills each call that a script makes, and under the flag ``allow-key-locking`` it rejects
keys that were not declared.  So each script and library gets a prelude that counts calls and
checks keys; the counts come back beside the script's own result.  A prelude is one line without
a newline, before the user's own first line, so that line numbers in error messages stay correct.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha1
from typing import Final

from msgspec import Struct

from upstash_middleware.local.valkey import Reply, failure

READ_ONLY_ARGUMENT: Final = b"upstash-local: read-only"
"""The last argument of a function that is called by FCALL_RO; the prelude removes it."""

_KEY_LOCKING: Final = b"allow-key-locking"
_SHEBANG: Final = re.compile(rb"#![^\n]*")
_FLAGS: Final = re.compile(rb"\sflags=(\S*)")


class Script(Struct, frozen=True):
    """A script as it was sent, and as it is sent to Valkey."""

    sha: str
    """SHA-1 of the text as sent, in hexadecimal, as EVALSHA uses it."""
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
    # The end begins with a newline, so that a comment on the last line does not swallow it.
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
    """The reply to FUNCTION LIST, with the libraries' texts as they were sent."""
    match reply:
        case bytes():
            return reply.replace(_LIBRARY, b"")
        case list():
            return [unwrap_library(member) for member in reply]
        case _:
            return reply


def unwrap(reply: Reply, name: str, source: str) -> tuple[Reply, dict[str, int]]:
    """Split a wrapped script's reply into the script's own reply and its calls by command.

    Errors name the script by `name` (a SHA, or a function's name) and `source`.  A reply that
    does not come from the prelude (the script was not run) is returned unchanged.
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
        case _:  # Lua gave up before the error could be described
            text, position = b"ERR error in error handling", b""
    return failure(b"%b script: %b%b." % (text, name.encode(), position)), calls


def original_monitor_line(line: bytes) -> bytes:
    """A line of MONITOR with the text of scripts and libraries as it was sent."""
    line = line.replace(_quoted(_LIBRARY), b"")
    before, found, after = line.partition(_quoted(_SCRIPT + b" "))
    if not found:
        return line
    for end in _SCRIPT_ENDS.values():
        after = after.replace(_quoted(end) + b'"', b'"', 1)
    return before + after


def _quoted(text: bytes) -> bytes:
    return text.replace(b'"', b'\\"').replace(b"\n", b"\\n")


def _prelude(lua: bytes) -> bytes:
    """Lua on one line, with its error messages filled in."""
    line = b" ".join(line.strip() for line in lua.splitlines() if line.strip())
    for name, text in {
        b"$MARK": _MARK,
        b"$READ_ONLY": READ_ONLY_ARGUMENT,
        b"$DYNAMIC_KEY": _DYNAMIC_KEY,
        b"$WHOLE_DATABASE": _WHOLE_DATABASE,
    }.items():
        line = line.replace(name, text)
    return line


_MARK: Final = b"upstash-local"
"""The first word of a wrapped script's reply, to recognise it."""
_DYNAMIC_KEY: Final = (
    b"ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set."
)
_WHOLE_DATABASE: Final = b"is not allowed in Lua scripts when 'allow-key-locking' flag is set"

# `ask` is redis.pcall.  `raised` is the error that the wrapped redis.call is about to raise: it is
# then raised by the wrapper, and the line to report is one level further up.
_CORE: Final = b"""
  local declared, counts, raised, reading
  local whole = {FLUSHDB = 1, FLUSHALL = 1, SWAPDB = 1, KEYS = 1, SCAN = 1, RANDOMKEY = 1}
  local function refused(name, ...)
    if type(name) == 'string' then
      name = string.upper(name)
      counts[name] = (counts[name] or 0) + 1
    end
    if reading and type(name) == 'string' then
      local info = ask('COMMAND', 'INFO', name)
      for _, flag in ipairs(info[1] and info[1][3] or {}) do
        if flag.ok == 'write' then
          return {err = 'ERR Write commands are not allowed from read-only scripts.'}
        end
      end
    end
    if not declared or name == nil then return nil end
    if whole[name] then return {err = "ERR " .. name .. " $WHOLE_DATABASE"} end
    local keys = ask('COMMAND', 'GETKEYS', name, ...)
    if keys.err then return nil end
    for i = 1, #keys do
      if not declared[keys[i]] then
        return {err = "$DYNAMIC_KEY Key was: " .. keys[i]}
      end
    end
  end
  local function quiet(...) return refused(...) or ask(...) end
  local function loud(...)
    local reply = refused(...) or ask(...)
    if type(reply) == 'table' and reply.err then raised = reply; error(reply) end
    return reply
  end
  local function line(first, last)
    for level = first, last do
      local _, where = pcall(error, '', level)
      where = string.match(where, ':(%d+):')
      if where then return where end
    end
    return false
  end
  local function describe(problem)
    local at
    if problem ~= nil and problem == raised then at = line(6, 6) else at = line(4, 5) end
    if type(problem) == 'table' then
      return {type(problem.err) == 'string' and problem.err or 'ERR unknown error', at}
    end
    return {'ERR ' .. tostring(problem), at}
  end
  local function run(body, keys, locking)
    counts, raised, declared = {}, nil, nil
    if locking then
      declared = {}
      for i = 1, #keys do declared[keys[i]] = true end
    end
    local done, result = xpcall(body, describe)
    local calls = {'$MARK'}
    for name, count in pairs(counts) do calls[#calls + 1] = name; calls[#calls + 1] = count end
    if done then return {calls, result} end
    return {calls, false, result}
  end
"""

_SCRIPT: Final = _prelude(
    b"local redis, server, __run = (function() local ask = redis.pcall"
    + _CORE
    + b"""
  local own = setmetatable({call = loud, pcall = quiet}, {__index = redis})
  local function protect() error('Attempt to modify a readonly table', 2) end
  local api = setmetatable({}, {__index = own, __newindex = protect})
  return api, api, run
end)()
return __run(function(...)
"""
)
_SCRIPT_ENDS: Final = {False: b"\nend, KEYS, false)", True: b"\nend, KEYS, true)"}

# While a library is loaded there are no metatables and no redis.call.  While one of its functions
# runs, the global `redis` is the complete interface.
_LIBRARY: Final = (
    _prelude(
        b"local redis, server = (function() local function ask(...) return redis.pcall(...) end"
        + _CORE
        + b"""
  local register = redis.register_function
  local api = {call = loud, pcall = quiet, log = redis.log}
  local function wrapped(callback, locking)
    return function(keys, args)
      setmetatable(api, {__index = redis})
      reading = args[#args] == '$READ_ONLY'
      if reading then args[#args] = nil end
      return run(function() return callback(keys, args) end, keys, locking)
    end
  end
  api.register_function = function(name, callback)
    if callback then return register(name, wrapped(callback, false)) end
    local flags, locking = {}, false
    for i = 1, #(name.flags or {}) do
      if name.flags[i] == 'allow-key-locking' then locking = true
      else flags[#flags + 1] = name.flags[i] end
    end
    return register({function_name = name.function_name, description = name.description,
      callback = name.callback and wrapped(name.callback, locking), flags = flags})
  end
  return api, api
end)()
"""
    )
    + b" "
)
