-- Checks all limits of one request, reading once, then takes from all limits of a
-- group or from none of them. Limits with the same key (rules that share a bucket) are each checked
-- by their own numbers; the key is written once.
-- KEYS: each limit's keys in order. ARGV: the time in ms, `take`, `peek` or `lease`, then for each
-- limit its group, its algorithm, the cost, the three numbers a, b, c of the algorithm, whether the
-- cost can ever fit, and whether one more key holds a quota to be used instead of a (1 or 0 each).
-- `lease` takes, too, and has five more arguments for each limit: the number of its rule (0 for a rule
-- without a lease), the units to take ahead at most, the most millionths of what remains to take
-- ahead, the units of an earlier lease that are given back first, and where those were taken. The same
-- number is taken ahead from all limits of a rule, if its group takes.
-- A limit of the group -1 takes when group 0 does, and its own result has no effect: it is that of a
-- shadow rule in whose bucket an enforced rule counts.
-- Returns for each limit: whether it allows, remaining, ms until reset, ms until this same
-- request would pass (0 now, -1 never), where it was taken, the quota a; with `lease`, and the units
-- taken ahead.

local LEASES = ARGV[2] == 'lease'
local ARGUMENTS = LEASES and 13 or 8
local now = tonumber(ARGV[1])
local values = redis.call('MGET', unpack(KEYS))

-- Refunds what an earlier lease has left, if it was taken from what is checked now.
local function give_back_lease(limit, own_values, own_keys, argument)
  limit.amount, limit.where_taken = tonumber(ARGV[argument]), tonumber(ARGV[argument + 1])
  local elsewhere = limit.algorithm.windows and limit.where ~= limit.where_taken
  if limit.amount <= 0 or elsewhere or unreadable then
    return
  end
  for index, key in ipairs(own_keys) do
    if key == limit.key and own_values[index] then
      limit.given = limit.algorithm.give(limit, own_values[index], key)
      own_values[index] = limit.given
      limit.algorithm.check(limit, own_values, own_keys, now)
    end
  end
end

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
  if LEASES then
    limit.lease = ARGV[first_argument + 8]
    limit.wanted = tonumber(ARGV[first_argument + 9])
    limit.share = tonumber(ARGV[first_argument + 10])
    give_back_lease(limit, own_values, own_keys, first_argument + 11)
  end
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

-- Adds to each limit's cost what its rule takes ahead.
local function take_ahead(limits)
  local ahead = {}
  for _, limit in ipairs(limits) do
    local room = limit.remaining - limit.cost
    local most = math.min(limit.wanted, room, math.ceil(room * limit.share / 1000000))
    ahead[limit.lease] = math.max(0, math.min(ahead[limit.lease] or most, most))
  end
  for _, limit in ipairs(limits) do
    limit.ahead = ahead[limit.lease]
    limit.cost = limit.cost + limit.ahead
  end
end

local function take(limits)
  local taken, written = {}, {}
  if LEASES then
    take_ahead(limits)
  end
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
      limit.given = nil
    end
  end
  return nil
end

-- Stores what was given back by limits that deny.
local function store_given(limits)
  for _, limit in ipairs(limits) do
    if limit.given then
      redis.pcall('SET', limit.key, limit.given, 'KEEPTTL')
    end
  end
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
local failure = ARGV[2] ~= 'peek' and take(taking(limits, denied))
if failure then
  return failure
end
if LEASES then
  store_given(limits)
end
local answer = {}
for _, limit in ipairs(limits) do
  answer[#answer + 1] = limit.allows and 1 or 0
  answer[#answer + 1] = math.max(0, limit.remaining)
  answer[#answer + 1] = math.max(0, limit.reset - now)
  answer[#answer + 1] = limit.fits and math.max(0, limit.passes - now) or -1
  answer[#answer + 1] = limit.where
  answer[#answer + 1] = limit.a
  if LEASES then
    answer[#answer + 1] = limit.ahead or 0
  end
end
return answer
