#!lua flags=allow-key-locking
-- Store an entry some of whose tags became known only with the response.
-- KEYS: the epoch of any tag; the entry; the epochs of those tags.
-- ARGV: what the first was before the application was called; the entry's text before and
-- after the epochs that are still missing; its time to live in milliseconds.
-- As long as the first has not moved, no tag was purged meanwhile, so that what the others are
-- now is what they were then.
local epochs = redis.call('MGET', KEYS[1], unpack(KEYS, 3))
if (epochs[1] or '') ~= ARGV[1] then
  return 0
end
local entry = ARGV[2]
for place = 2, #KEYS - 1 do
  entry = entry .. '|' .. (epochs[place] or ':')
end
redis.call('SET', KEYS[2], entry .. ARGV[3], 'PX', ARGV[4])
return 1
