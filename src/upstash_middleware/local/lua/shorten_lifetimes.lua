-- ARGV: milliseconds.  Keys and hash fields that have expired are deleted.
local by, cursor, keys = tonumber(ARGV[1]), '0', {}
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do keys[#keys + 1] = key end
until cursor == '0'
for _, key in ipairs(keys) do
  local left = redis.call('PTTL', key)
  if left > by then redis.call('PEXPIRE', key, left - by)
  elseif left >= 0 then redis.call('DEL', key) end
  if redis.call('TYPE', key).ok == 'hash' then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local times = redis.pcall('HPTTL', key, 'FIELDS', 1, field)
      if times.err then break end
      if times[1] > by then redis.call('HPEXPIRE', key, times[1] - by, 'FIELDS', 1, field)
      elseif times[1] >= 0 then redis.call('HDEL', key, field) end
    end
  end
end
