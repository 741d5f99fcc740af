-- Fixed window: at most `quota` units in each window, cut at multiples of `window` ms.
-- Keys: this window's counter, the next one's (which a process whose clock leads may have begun).

algorithms.fixed = { keys = 2, windows = true }

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

-- The counter is kept for `c` ms more: where a sliding window with the same key weighs it then.
function algorithms.fixed.take(limit)
  limit.used = math.min(MOST, limit.used + limit.cost)
  limit.remaining = limit.a - limit.used
  return text_of(limit.used), limit.reset + limit.c
end

algorithms.fixed.give = give_to_window
