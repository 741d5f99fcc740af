#!lua flags=allow-key-locking
-- Put another value in a lock's place, as long as nobody else has.
-- KEYS: the lock. ARGV: what it is taken to be; its new value, empty to remove it; its time to
-- live in milliseconds.
local now = redis.call('GET', KEYS[1])
if now and now ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
