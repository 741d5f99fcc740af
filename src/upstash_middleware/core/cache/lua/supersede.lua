#!lua flags=allow-key-locking
-- Invalidate a URL, and store the response that is its new state in place of all before it.
-- KEYS: the URL's epoch; the entry. ARGV: what the epoch was before the application was called;
-- what it is to be, and its time to live in milliseconds; the entry, which records the new
-- epoch, and its time to live.
-- Where the epoch has moved meanwhile, the entry may be older than that purge: it is not stored.
local before = redis.call('GET', KEYS[1]) or ':'
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if before ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return 1
