-- Sliding window, estimated from two: the units of this window, and those of the previous one
-- weighed by the share of it that a window ending now still covers, rounded down.
-- Keys: the previous window's counter, this one's, the next one's (as in the fixed window).

-- The longest rest of a window, in ms, in which `count` units of the window before weigh at most
-- `room`: the largest r with floor(count * r / window) <= room, for count > room.
local function longest_rest(count, room, window)
  local rest, remainder = multiply_divide(room + 1, window, count)
  return remainder == 0 and rest - 1 or rest
end

local function sliding_reset(limit, now)
  if limit.used > 0 then
    return limit.start + 2 * limit.b - longest_rest(limit.used, 0, limit.b)
  end
  if limit.previous > 0 then
    return math.max(now, limit.start + limit.b - longest_rest(limit.previous, 0, limit.b))
  end
  return now
end

local function sliding_passes(limit, now)
  local quota, window = limit.a, limit.b
  local room = quota - limit.used - limit.cost
  if limit.weight <= room then
    return now
  end
  if room >= 0 then
    return limit.start + window - longest_rest(limit.previous, room, window)
  end
  return limit.start + 2 * window - longest_rest(limit.used, quota - limit.cost, window)
end

algorithms.sliding = { keys = 3, windows = true }

function algorithms.sliding.check(limit, values, keys, now)
  local quota, window = limit.a, limit.b
  limit.span, limit.start = window, now - now % window
  limit.previous, limit.used = counter(values[1], keys[1]), counter(values[2], keys[2])
  limit.key = keys[2]
  if values[3] then
    limit.start, limit.previous = limit.start + window, limit.used
    limit.key, limit.used = keys[3], counter(values[3], keys[3])
  end
  local rest = limit.start + window - math.max(now, limit.start)
  limit.weight = multiply_divide(limit.previous, rest, window)
  limit.where = limit.start / window
  limit.remaining = math.max(0, quota - limit.used - limit.weight)
  limit.reset = sliding_reset(limit, now)
  limit.passes = limit.cost <= quota and sliding_passes(limit, now) or limit.reset
end

function algorithms.sliding.take(limit, now)
  limit.used = math.min(MOST, limit.used + limit.cost)
  limit.remaining = limit.a - limit.used - limit.weight
  limit.reset = sliding_reset(limit, now)
  return text_of(limit.used), limit.start + 2 * limit.b
end

algorithms.sliding.give = give_to_window
