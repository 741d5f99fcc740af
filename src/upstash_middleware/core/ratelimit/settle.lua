-- Settles the final cost of a request, after its response: charges more, whatever is left, or
-- refunds what was taken in excess.
-- KEYS: each limit's keys in order; for a refund to a window, only that window's. ARGV: the time
-- in ms, then for each limit its algorithm, the units to charge (below 0: to refund), the three
-- numbers a, b, c, where the units were taken, and how many keys it has. Several may be about one key.
-- Returns OK.

local ARGUMENTS = 7
local now = tonumber(ARGV[1])
local values = redis.call('MGET', unpack(KEYS))
-- What has been written, by its key.
local written = {}

local function charge(limit)
  local value, counts_until = limit.algorithm.take(limit, now)
  written[limit.key] = value
  return store(limit, value, counts_until, now)
end

-- An absent key has expired: there is nothing left to refund.
local function refund(limit, text, key)
  if not text then
    return nil
  end
  local value = limit.algorithm.give(limit, text, key)
  if unreadable then
    return nil
  end
  written[key] = value
  return redis.pcall('SET', key, value, 'KEEPTTL', 'GET')
end

local function settle(first_argument, first_key)
  local units, key_count = tonumber(ARGV[first_argument + 1]), tonumber(ARGV[first_argument + 6])
  local limit = {
    algorithm = algorithms[ARGV[first_argument]],
    cost = 0,
    a = tonumber(ARGV[first_argument + 2]),
    b = tonumber(ARGV[first_argument + 3]),
    c = tonumber(ARGV[first_argument + 4]),
    where_taken = tonumber(ARGV[first_argument + 5]),
    amount = -units,
  }
  local own_values, own_keys = {}, {}
  for index = 1, key_count do
    own_keys[index] = KEYS[first_key + index - 1]
    own_values[index] = written[own_keys[index]] or values[first_key + index - 1]
  end
  limit.algorithm.check(limit, own_values, own_keys, now)
  if unreadable then
    return nil, key_count
  end
  limit.cost = units
  local answer
  if units > 0 then
    answer = charge(limit)
  else
    answer = refund(limit, own_values[1], own_keys[1])
  end
  return type(answer) == 'table' and answer.err and answer, key_count
end

local next_key, failure = 1, nil
for first_argument = 2, #ARGV, ARGUMENTS do
  local failed, key_count = settle(first_argument, next_key)
  failure, next_key = failure or failed, next_key + key_count
end
if unreadable then
  return redis.error_reply('WRONGVALUE not a rate limit of this kind: the value at ' .. unreadable)
end
return failure or redis.status_reply('OK')
