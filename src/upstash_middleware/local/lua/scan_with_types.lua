-- ARGV: the arguments of SCAN.  In the reply, each key is followed by its type.
local answer = redis.pcall('SCAN', unpack(ARGV))
if answer.err then return answer end
local found = {}
for _, key in ipairs(answer[2]) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('TYPE', key).ok
end
return {answer[1], found}
