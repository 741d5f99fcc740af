-- KEYS: the stream.  ARGV: the group, empty for XDELEX; then the rest of the command.  The reply for
-- each ID is 1 if it was deleted, 2 if a group has not acknowledged it yet, -1 if it is absent.
local key, group, at, policy = KEYS[1], ARGV[1], 2, 'KEEPREF'
local policies = {KEEPREF = true, DELREF = true, ACKED = true}
if policies[ARGV[at]:upper()] then policy = ARGV[at]:upper(); at = at + 1 end
if ARGV[at]:upper() ~= 'IDS' then return {err = 'ERR syntax error'} end
if tonumber(ARGV[at + 1]) ~= #ARGV - at - 1 or at + 1 == #ARGV then
  return {err = 'ERR The `numids` parameter must match the number of arguments'}
end
local ids = {unpack(ARGV, at + 2)}
for i, id in ipairs(ids) do
  local entry = redis.pcall('XRANGE', key, id, id)
  if entry.err then return entry end
  if not id:find('-', 1, true) then ids[i] = id .. '-0' end
end
local groups = {}
if redis.call('EXISTS', key) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do groups[info[2]] = info[8] end
end
local function comparable(id)
  local time, sequence = id:match('^(%d+)%-(%d+)$')
  return ('0'):rep(20 - #time) .. time .. ('0'):rep(20 - #sequence) .. sequence
end
local function referenced(id)
  for name, delivered in pairs(groups) do
    if comparable(delivered) < comparable(id) then return true end
    if #redis.call('XPENDING', key, name, id, id, 1) > 0 then return true end
  end
  return false
end
local answer = {}
for i, id in ipairs(ids) do
  local found
  local exists = #redis.call('XRANGE', key, id, id) > 0
  if group == '' then found = exists
  else
    found = redis.call('XACK', key, group, id) > 0
    local delivered = groups[group]
    if exists and delivered and comparable(id) <= comparable(delivered) then found = true end
  end
  if not found then answer[i] = -1
  elseif policy == 'ACKED' and referenced(id) then answer[i] = 2
  else
    if policy == 'DELREF' then
      for name in pairs(groups) do redis.call('XACK', key, name, id) end
    end
    redis.call('XDEL', key, id)
    answer[i] = 1
  end
end
return answer
