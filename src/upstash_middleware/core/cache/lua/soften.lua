#!lua flags=allow-key-locking
-- Soft purge: replace the soft part of each epoch in KEYS and keep its hard part.
-- ARGV: the new soft part; the time to live in milliseconds.
for place, epoch in ipairs(redis.call('MGET', unpack(KEYS))) do
  local hard = epoch and string.match(epoch, '^[^:]*') or ''
  redis.call('SET', KEYS[place], hard .. ':' .. ARGV[1], 'PX', ARGV[2])
end
return 1
