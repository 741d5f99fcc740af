"""Options that Upstash takes of commands which Valkey has, but without these options.

Each is done by a small script in the command's place; it is billed as the one command that it
stands for.  Nothing else may live here.
"""

from __future__ import annotations

from typing import Final

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
    return command
