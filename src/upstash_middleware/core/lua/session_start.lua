#!lua flags=allow-key-locking
-- Create a session, or give one another name; bind it to the user's epoch if that is among the keys.
-- KEYS: the old name, or the new one again if there is no old session; the new name; perhaps the
-- user's epoch; perhaps the epoch of the user whom the old session is bound to. ARGV: the time to
-- live in milliseconds; the reserved field's value without epoch; an epoch, which is the new one if
-- the user has none; the epoch's time to live in milliseconds; what the last key has to contain; the
-- number of fields to set; their names and values; the names of fields to delete.
-- Sent again because its reply was lost, it finds what it has written and only returns the epoch.
if KEYS[1] ~= KEYS[2] then
  if tonumber(ARGV[1]) <= 0 then
    redis.call('DEL', KEYS[1])
    return 0
  end
  if KEYS[4] and redis.call('GET', KEYS[4]) ~= ARGV[5] then
    return 0
  end
  local moved = redis.pcall('RENAME', KEYS[1], KEYS[2])
  if type(moved) == 'table' and moved.err then
    local written = redis.pcall('HGET', KEYS[2], '.')
    local length = type(written) == 'string' and #written - #ARGV[2] - 1
    if not length or length < 0 or written:sub(length + 1) ~= '\n' .. ARGV[2] then
      return 0
    end
    return written:sub(1, length)
  end
end
local epoch = ARGV[3]
if KEYS[3] then
  epoch = redis.call('SET', KEYS[3], epoch, 'NX', 'GET', 'PX', ARGV[4]) or epoch
  redis.call('PEXPIRE', KEYS[3], ARGV[4], 'GT')
end
local last = 6 + 2 * tonumber(ARGV[6])
local first = math.min(last, 7006)
redis.call('HSET', KEYS[2], '.', epoch .. '\n' .. ARGV[2], unpack(ARGV, 7, first))
for i = first + 1, last, 7000 do
  redis.call('HSET', KEYS[2], unpack(ARGV, i, math.min(i + 6999, last)))
end
for i = last + 1, #ARGV, 7000 do
  redis.call('HDEL', KEYS[2], unpack(ARGV, i, math.min(i + 6999, #ARGV)))
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return epoch
