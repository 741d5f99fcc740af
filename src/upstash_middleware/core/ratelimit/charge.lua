-- Checks all limits of one request, reading once, then takes from all limits of a
-- group or from none of them. Limits with the same key (rules that share a bucket) are each checked
-- by their own numbers; the key is written once.
-- KEYS: each limit's keys in order. ARGV: the time in ms, `take` or `peek`, then for each limit
-- its group, its algorithm, the cost, the three numbers a, b, c of the algorithm, whether the cost
-- can ever fit, and whether one more key holds a quota to be used instead of a (1 or 0 each).
-- A limit of the group -1 takes when group 0 does, and its own result has no effect: it is that of a
-- shadow rule in whose bucket an enforced rule counts.
-- Returns for each limit: whether it allows, remaining, ms until reset, ms until this same
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
    if limit.group == '-1' then
      limit.group, limit.follows = '0', true
    else
      denied[limit.group] = denied[limit.group] or not limit.allows
    end
    next_key = next_key + limit.key_count
  end
  return limits, denied
end

-- Restores what was taken before; needed only when a key holds another type.
local function give_back(taken)
  for _, limit in ipairs(taken) do
    if limit.was then
      redis.call('SET', limit.key, limit.was, 'KEEPTTL')
    else
      redis.call('DEL', limit.key)
    end
  end
end

local function take(limits)
  local taken, written = {}, {}
  for _, limit in ipairs(limits) do
    local value, counts_until = limit.algorithm.take(limit, now)
    if not written[limit.key] then
      written[limit.key] = true
      limit.was = store(limit, value, counts_until, now)
      if type(limit.was) == 'table' and limit.was.err then
        give_back(taken)
        return limit.was
      end
      taken[#taken + 1] = limit
    end
  end
  return nil
end

-- The limits whose groups allow; of two with one key the one that enforces comes first.
local function taking(limits, denied)
  local ordered, followers = {}, {}
  for _, limit in ipairs(limits) do
    if not denied[limit.group] then
      local list = limit.follows and followers or ordered
      list[#list + 1] = limit
    end
  end
  for _, limit in ipairs(followers) do
    ordered[#ordered + 1] = limit
  end
  return ordered
end

local limits, denied = read_limits()
if unreadable then
  return redis.error_reply('WRONGVALUE not a rate limit of this kind: the value at ' .. unreadable)
end
local failure = ARGV[2] == 'take' and take(taking(limits, denied))
if failure then
  return failure
end
local answer = {}
for _, limit in ipairs(limits) do
  answer[#answer + 1] = limit.allows and 1 or 0
  answer[#answer + 1] = math.max(0, limit.remaining)
  answer[#answer + 1] = math.max(0, limit.reset - now)
  answer[#answer + 1] = limit.fits and math.max(0, limit.passes - now) or -1
  answer[#answer + 1] = limit.where
  answer[#answer + 1] = limit.a
end
return answer
