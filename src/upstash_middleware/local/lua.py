"""The Lua that is put around users' scripts and functions: it counts calls and checks keys.

Only Lua text may live here.  Each prelude is one line, without a newline, and stands before the
user's own first line, so that the line numbers in error messages stay what they were.
"""

from __future__ import annotations

from typing import Final

MARK: Final = b"upstash-local"
"""The first word of what a wrapped script answers, to know it by."""

DYNAMIC_KEY: Final = (
    b"ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set."
)
WHOLE_DATABASE: Final = b"is not allowed in Lua scripts when 'allow-key-locking' flag is set"


def _on_one_line(text: bytes) -> bytes:
    return b" ".join(line.strip() for line in text.splitlines() if line.strip())


# `ask` is redis.pcall.  `raised` is the error that the wrapped redis.call is about to raise: the
# function that raised it is then the wrapper, and the line to report is one level further up.
_CORE: Final = (
    b"""
  local declared, counts, raised
  local whole = {FLUSHDB = 1, FLUSHALL = 1, SWAPDB = 1, KEYS = 1, SCAN = 1, RANDOMKEY = 1}
  local function refused(name, ...)
    if type(name) == 'string' then
      name = string.upper(name)
      counts[name] = (counts[name] or 0) + 1
    end
    if not declared or name == nil then return nil end
    if whole[name] then return {err = "ERR " .. name .. " """
    + WHOLE_DATABASE
    + b""""} end
    local keys = ask('COMMAND', 'GETKEYS', name, ...)
    if keys.err then return nil end
    for i = 1, #keys do
      if not declared[keys[i]] then
        return {err = \""""
    + DYNAMIC_KEY
    + b""" Key was: " .. keys[i]}
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
    local bill = {'"""
    + MARK
    + b"""'}
    for name, count in pairs(counts) do bill[#bill + 1] = name; bill[#bill + 1] = count end
    if done then return {bill, result} end
    return {bill, false, result}
  end
"""
)

_SCRIPT: Final = _on_one_line(
    b"local redis, server, __run = (function()\nlocal ask = redis.pcall\n"
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

# While a library is loaded, Lua has next to nothing: no metatables, no redis.call.  When one of its
# functions is called, the global `redis` is the whole interface.
LIBRARY: Final = (
    _on_one_line(
        b"local redis, server = (function()\n"
        b"local function ask(...) return redis.pcall(...) end\n"
        + _CORE
        + b"""
  local register = redis.register_function
  local api = {call = loud, pcall = quiet, log = redis.log}
  local function wrapped(callback, locking)
    return function(keys, args)
      setmetatable(api, {__index = redis})
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


def around_script(body: bytes, *, locking: bool) -> bytes:
    """The body of a script, wrapped.

    The end begins with a newline, so that a comment on the body's last line does not swallow it.
    """
    return _SCRIPT + b" " + body + _SCRIPT_ENDS[locking]


def shown_in_monitor(line: bytes) -> bytes:
    """A line of MONITOR that shows a wrapped script or library, with the text as it was sent."""
    line = line.replace(_quoted(LIBRARY), b"")
    before, found, after = line.partition(_quoted(_SCRIPT + b" "))
    if not found:
        return line
    for end in _SCRIPT_ENDS.values():
        after = after.replace(_quoted(end) + b'"', b'"', 1)
    return before + after


def _quoted(text: bytes) -> bytes:
    return text.replace(b'"', b'\\"').replace(b"\n", b"\\n")
