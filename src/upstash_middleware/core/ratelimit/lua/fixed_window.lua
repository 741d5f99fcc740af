-- Fixed window: at most `quota` units in each window, cut at multiples of `window` ms.
-- Keys: this window's counter, the next one's (begun already by a process whose clock leads).

algorithms.fixed = { keys = 2 }

function algorithms.fixed.check(limit, values, keys, now)
  local quota, window = limit.a, limit.b
  local start = now - now % window
  limit.key, limit.used = keys[1], counter(values[1], keys[1])
  if values[2] then
    start, limit.key, limit.used = start + window, keys[2], counter(values[2], keys[2])
  end
  limit.span, limit.reset, limit.where = window, start + window, start / window
  limit.remaining = math.max(0, quota - limit.used)
  limit.passes = limit.cost <= quota - limit.used and now or limit.reset
end

function algorithms.fixed.take(limit)
  limit.used = math.min(MOST, limit.used + limit.cost)
  limit.remaining = limit.a - limit.used
  return text_of(limit.used), limit.reset
end

-- The key is that of the window in which the units were taken, which need not be this one.
local function give_to_window(limit, text, key)
  return text_of(math.max(0, counter(text, key) - limit.amount))
end

algorithms.fixed.give = give_to_window
