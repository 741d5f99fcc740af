#!lua flags=allow-key-locking
-- Write the changed entries of a session, unless it has ended.
-- KEYS: the session. ARGV: its time to live in milliseconds; the number of fields to set; their
-- names and values; the names of fields to delete.
local ttl = tonumber(ARGV[1])
if ttl <= 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
if redis.call('PEXPIRE', KEYS[1], ttl) == 0 then
  return 0
end
local last = 2 + 2 * tonumber(ARGV[2])
for i = 3, last, 7000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 6999, last)))
end
for i = last + 1, #ARGV, 7000 do
  redis.call('HDEL', KEYS[1], unpack(ARGV, i, math.min(i + 6999, #ARGV)))
end
return 1
