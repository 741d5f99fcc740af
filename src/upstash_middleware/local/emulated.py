"""What Upstash takes and Valkey does not: options of commands, and two commands of streams.

Each is done by a small script in the command's place; it is billed as the one command that it
stands for.  Nothing else may live here.
"""

from __future__ import annotations

from typing import Final

EMULATED_WRITES: Final = frozenset({"XACKDEL", "XDELEX"})
"""Commands of which Valkey knows nothing, that change the database."""

_BIT_OPERATIONS: Final = frozenset({b"DIFF", b"DIFF1", b"ANDOR", b"ONE"})

# KEYS: the destination, then the sources.  Missing bytes of shorter strings count as zero.
_BITOP: Final = b"""
local operation, texts, longest = ARGV[1], {}, 0
if operation ~= 'ONE' and #KEYS < 3 then
  return {err = 'ERR BITOP ' .. operation .. ' must be called with multiple source keys.'}
end
for i = 2, #KEYS do
  local text = redis.pcall('GET', KEYS[i])
  if type(text) == 'table' then return text end
  texts[i - 1] = text or ''
  longest = math.max(longest, #texts[i - 1])
end
local bytes = {}
for at = 1, longest do
  local first = texts[1]:byte(at) or 0
  local others, once, twice = 0, 0, 0
  for i = 1, #texts do
    local byte = texts[i]:byte(at) or 0
    if i > 1 then others = bit.bor(others, byte) end
    twice = bit.bor(twice, bit.band(once, byte))
    once = bit.bor(once, byte)
  end
  local result = {
    DIFF = bit.band(first, bit.bnot(others)),
    DIFF1 = bit.band(others, bit.bnot(first)),
    ANDOR = bit.band(first, others),
    ONE = bit.band(once, bit.bnot(twice)),
  }
  bytes[at] = string.char(result[operation])
end
if longest == 0 then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], table.concat(bytes)) end
return longest
"""

# ARGV: what comes after SCAN.  Each key in the answer is followed by its type.
_SCAN: Final = b"""
local answer = redis.pcall('SCAN', unpack(ARGV))
if answer.err then return answer end
local found = {}
for _, key in ipairs(answer[2]) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('TYPE', key).ok
end
return {answer[1], found}
"""

# KEYS: the stream.  ARGV: the group, empty for XDELEX; then what comes after it.  For each ID the
# answer is 1 when it was deleted, 2 when a group has yet to acknowledge it, -1 when it is absent.
_DELETE_ENTRIES: Final = b"""
local key, group, at, policy = KEYS[1], ARGV[1], 2, 'KEEPREF'
local policies = {KEEPREF = true, DELREF = true, ACKED = true}
if policies[ARGV[at]:upper()] then policy = ARGV[at]:upper(); at = at + 1 end
if ARGV[at]:upper() ~= 'IDS' then return {err = 'ERR syntax error'} end
if tonumber(ARGV[at + 1]) ~= #ARGV - at - 1 or at + 1 == #ARGV then
  return {err = 'ERR The `numids` parameter must match the number of arguments'}
end
local ids = {unpack(ARGV, at + 2)}
for i, id in ipairs(ids) do
  local entry = redis.pcall('XRANGE', key, id, id)
  if entry.err then return entry end
  if not id:find('-', 1, true) then ids[i] = id .. '-0' end
end
local groups = {}
if redis.call('EXISTS', key) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do groups[info[2]] = info[8] end
end
local function comparable(id)
  local time, sequence = id:match('^(%d+)%-(%d+)$')
  return ('0'):rep(20 - #time) .. time .. ('0'):rep(20 - #sequence) .. sequence
end
local function referenced(id)
  for name, delivered in pairs(groups) do
    if comparable(delivered) < comparable(id) then return true end
    if #redis.call('XPENDING', key, name, id, id, 1) > 0 then return true end
  end
  return false
end
local answer = {}
for i, id in ipairs(ids) do
  local found
  if group == '' then found = #redis.call('XRANGE', key, id, id) > 0
  else found = redis.call('XACK', key, group, id) > 0 end
  if not found then answer[i] = -1
  elseif policy == 'ACKED' and referenced(id) then answer[i] = 2
  else
    if policy == 'DELREF' then
      for name in pairs(groups) do redis.call('XACK', key, name, id) end
    end
    redis.call('XDEL', key, id)
    answer[i] = 1
  end
end
return answer
"""
_FAIL: Final = b"return {err = ARGV[1]}"


def emulate(name: str, command: list[bytes]) -> list[bytes]:
    """The command as it is, or the script that stands for it."""
    match name:
        case "BITOP" if len(command) > 3 and command[1].upper() in _BIT_OPERATIONS:
            keys = command[2:]
            return [b"EVAL", _BITOP, b"%d" % len(keys), *keys, command[1].upper()]
        case "SCAN":
            rest = [word for word in command[1:] if word.upper() != b"WITHTYPE"]
            if len(rest) < len(command) - 1:
                return [b"EVAL", _SCAN, b"0", *rest]
        case "XDELEX" if len(command) > 4:
            return [b"EVAL", _DELETE_ENTRIES, b"1", command[1], b"", *command[2:]]
        case "XACKDEL" if len(command) > 5:
            return [b"EVAL", _DELETE_ENTRIES, b"1", *command[1:]]
        case "XDELEX" | "XACKDEL":
            text = f"ERR wrong number of arguments for '{name.lower()}' command"
            return [b"EVAL", _FAIL, b"0", text.encode()]
    return command
