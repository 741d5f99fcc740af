-- Generic cell rate algorithm as a leaky bucket: each unit adds `b` (the window in ms), each ms
-- drains `a` (the quota); at most `c` units (the burst) fit. Whole numbers throughout, so that no
-- rate is rounded. Key: `AT:LEVEL`; an absent key is an empty bucket.

local function leaked(limit, now)
  local lasts = divide_up(limit.level, limit.a)
  return now - limit.at >= lasts and 0 or limit.level - (now - limit.at) * limit.a
end

algorithms.gcra = { keys = 1 }

function algorithms.gcra.check(limit, values, keys, now)
  limit.key, limit.span = keys[1], divide_up(limit.c * limit.b, limit.a)
  local at, level = pair(values[1], keys[1])
  limit.at, limit.level = at or now, level or 0
  -- A clock that lags behind the one that wrote last must not drain twice.
  local leading = math.max(now, limit.at)
  limit.at, limit.level = leading, leaked(limit, leading)
  local capacity, excess = limit.c * limit.b, limit.level - (limit.c - limit.cost) * limit.b
  limit.remaining = math.max(0, math.floor((capacity - limit.level) / limit.b))
  limit.where, limit.reset = 0, leading + divide_up(limit.level, limit.a)
  limit.passes = excess <= 0 and now or leading + divide_up(excess, limit.a)
end

function algorithms.gcra.take(limit)
  local level = limit.level + limit.cost * limit.b
  limit.level = math.min(EXACT / 2, limit.a * LONGEST, level)
  limit.remaining = math.floor((limit.c * limit.b - limit.level) / limit.b)
  limit.reset = limit.at + divide_up(limit.level, limit.a)
  return text_of(limit.at) .. ':' .. text_of(limit.level), limit.reset
end

function algorithms.gcra.give(limit)
  local level = math.max(0, limit.level - limit.amount * limit.b)
  return text_of(limit.at) .. ':' .. text_of(level)
end
