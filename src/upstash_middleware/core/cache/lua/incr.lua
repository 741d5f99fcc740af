#!lua flags=allow-key-locking
-- Add to a stored integer, and keep its time to live.
-- KEYS: the value; the epoch of everything of its kind.
-- ARGV: what to add; the time to live in milliseconds of a new counter, empty to make none.
-- Returns the sum as text; nothing where there is no value; 0 where the value is no integer, has
-- tags, or may be stale, so that the caller has to look; 1 where the sum is too large.
local found = redis.call('MGET', KEYS[1], KEYS[2])
local value, epoch = found[1], found[2] or ':'
local head, content = '', nil
if value then
  local epochs, meta, rest = string.match(value, '^~([^\n]*)\n([^\n]*)\n(.*)$')
  if epochs then
    head = '~' .. epochs .. '\n' .. meta .. '\n'
  else
    epochs, meta, rest = ':', '', value
  end
  if string.match(epochs, '^[^|]*') == epoch then
    if epochs ~= epoch or not (meta == '' or string.match(meta, '^%["[%w_-]*"%]$'))
        or not string.match(rest, '^-?%d+$') then
      return 0
    end
    content = rest
  end
end
if not content and ARGV[2] == '' then
  return false
end
local sum = tonumber(content or '0') + tonumber(ARGV[1])
if sum > 9007199254740991 or sum < -9007199254740991 or #(content or '') > 17 then
  return 1
end
local digits = string.format('%.0f', sum)
if digits == '-0' then
  digits = '0'
end
if content then
  redis.call('SET', KEYS[1], head .. digits, 'KEEPTTL')
else
  head = epoch == ':' and '' or '~' .. epoch .. '\n\n'
  redis.call('SET', KEYS[1], head .. digits, 'PX', ARGV[2])
end
return digits
