-- Decides all limits of one request: reads once, checks all, then takes from all limits of a
-- group or from none of them.
-- KEYS: each limit's keys in order. ARGV: the time in ms, `take` or `peek`, then for each limit
-- its group, its algorithm, the cost, the three numbers a, b, c of the algorithm, whether the cost
-- can ever fit, and whether one more key holds a quota to be used instead of a (1 or 0 each).
-- Answers for each limit: whether it allows, remaining, ms until reset, ms until this same
-- request would pass (0 now, -1 never), where it was taken, the quota a.

local ARGUMENTS = 8
local now = tonumber(ARGV[1])
local values = redis.call('MGET', unpack(KEYS))

local function read_limit(first_argument, first_key)
  local algorithm = algorithms[ARGV[first_argument + 1]]
  local limit = {
    group = ARGV[first_argument],
    algorithm = algorithm,
    cost = tonumber(ARGV[first_argument + 2]),
    a = tonumber(ARGV[first_argument + 3]),
    b = tonumber(ARGV[first_argument + 4]),
    c = tonumber(ARGV[first_argument + 5]),
    fits = ARGV[first_argument + 6] == '1',
    key_count = algorithm.keys + tonumber(ARGV[first_argument + 7]),
  }
  local own_values, own_keys = {}, {}
  for index = 1, algorithm.keys do
    own_values[index] = values[first_key + index - 1]
    own_keys[index] = KEYS[first_key + index - 1]
  end
  local changed = limit.key_count > algorithm.keys and first_key + algorithm.keys
  if changed and values[changed] then
    limit.a = counter(values[changed], KEYS[changed])
    limit.fits = limit.cost <= limit.a
  end
  algorithm.check(limit, own_values, own_keys, now)
  limit.allows = limit.fits and limit.passes <= now
  return limit
end

local function read_limits()
  local limits, denied, next_key = {}, {}, 1
  for first_argument = 3, #ARGV, ARGUMENTS do
    local limit = read_limit(first_argument, next_key)
    limits[#limits + 1] = limit
    denied[limit.group] = denied[limit.group] or not limit.allows
    next_key = next_key + limit.key_count
  end
  return limits, denied
end

-- Puts back what was taken before; only met when a key holds another type.
local function give_back(taken)
  for _, limit in ipairs(taken) do
    if limit.was then
      redis.call('SET', limit.key, limit.was, 'KEEPTTL')
    else
      redis.call('DEL', limit.key)
    end
  end
end

-- A stored value is kept for longer than it counts, by an eighth of the limit's span and a second,
-- for processes whose clocks lag. GET makes SET refuse a key of another type instead of replacing it.
local function take(limits, denied)
  local taken = {}
  for _, limit in ipairs(limits) do
    if not denied[limit.group] then
      local value, counts_until = limit.algorithm.take(limit, now)
      local rest = math.max(0, counts_until - now)
      local keep = text_of(rest + math.floor(limit.span / 8) + 1000)
      limit.was = redis.pcall('SET', limit.key, value, 'PX', keep, 'GET')
      if type(limit.was) == 'table' and limit.was.err then
        give_back(taken)
        return limit.was
      end
      taken[#taken + 1] = limit
    end
  end
  return nil
end

local limits, denied = read_limits()
if unreadable then
  return redis.error_reply('WRONGVALUE not a rate limit of this kind: the value at ' .. unreadable)
end
local failure = ARGV[2] == 'take' and take(limits, denied)
if failure then
  return failure
end
local answer = {}
for _, limit in ipairs(limits) do
  answer[#answer + 1] = limit.allows and 1 or 0
  answer[#answer + 1] = limit.remaining
  answer[#answer + 1] = math.max(0, limit.reset - now)
  answer[#answer + 1] = limit.fits and math.max(0, limit.passes - now) or -1
  answer[#answer + 1] = limit.where
  answer[#answer + 1] = limit.a
end
return answer
