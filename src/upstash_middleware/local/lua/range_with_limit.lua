-- KEYS: destination and source.  ARGV: offset, count, then the arguments of ZRANGE after its key.
local offset, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local members = redis.pcall('ZRANGE', KEYS[2], unpack(ARGV, 3))
if members.err then return members end
local stored = {}
for i = 1, #members, 2 do
  local place = (i - 1) / 2 - offset
  if place >= 0 and (count < 0 or place < count) then
    stored[#stored + 1] = members[i + 1]
    stored[#stored + 1] = members[i]
  end
end
redis.call('DEL', KEYS[1])
if #stored == 0 then return 0 end
return redis.call('ZADD', KEYS[1], unpack(stored))
