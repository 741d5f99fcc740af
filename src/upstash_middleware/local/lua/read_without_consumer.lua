-- KEYS: the streams.  ARGV: the group, the consumer, then the command.  At Upstash, reading with
-- NOACK creates no consumer.
local known = {}
for i, key in ipairs(KEYS) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', key, ARGV[1])
  for _, consumer in ipairs(consumers.err and {} or consumers) do
    if consumer[2] == ARGV[2] then known[i] = true end
  end
end
local answer = redis.pcall(unpack(ARGV, 3))
if not (answer and answer.err) then
  for i, key in ipairs(KEYS) do
    if not known[i] then redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], ARGV[2]) end
  end
end
return answer
