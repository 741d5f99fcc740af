-- Generic cell rate algorithm as a leaky bucket: each unit adds `b` (the window in ms), each ms
-- drains `a` (the quota); at most `c` units (the burst) fit. All numbers are whole, so that no rate
-- is rounded. Key: `AT:LEVEL:RATE`; an absent key is an empty bucket.
-- A unit is `b` for every limit with this window, so that other limits (another tier, another rule
-- of the bucket) read the level in units. What they find drains at the rate of the limit that
-- wrote it.

algorithms.gcra = { keys = 1 }

function algorithms.gcra.check(limit, values, keys, now)
  limit.key, limit.span = keys[1], divide_up(limit.c * limit.b, limit.a)
  local at, level, rate = triple(values[1], keys[1])
  limit.at, limit.level, limit.rate = at or now, level or 0, rate or limit.a
  -- A clock that lags behind the one that wrote last must not drain twice.
  local leading = math.max(now, limit.at)
  local drains = leading - limit.at
  local is_empty = drains >= divide_up(limit.level, limit.rate)
  limit.at, limit.level = leading, is_empty and 0 or limit.level - drains * limit.rate
  local capacity, excess = limit.c * limit.b, limit.level - (limit.c - limit.cost) * limit.b
  limit.remaining = math.max(0, math.floor((capacity - limit.level) / limit.b))
  limit.where, limit.reset = 0, leading + divide_up(limit.level, limit.rate)
  limit.passes = excess <= 0 and now or leading + divide_up(excess, limit.rate)
end

local function text_of_level(limit)
  return text_of(limit.at) .. ':' .. text_of(limit.level) .. ':' .. text_of(limit.rate)
end

function algorithms.gcra.take(limit)
  local level = limit.level + limit.cost * limit.b
  limit.level = math.min(EXACT / 2, limit.a * LONGEST, level)
  limit.rate = limit.a
  limit.remaining = math.floor((limit.c * limit.b - limit.level) / limit.b)
  limit.reset = limit.at + divide_up(limit.level, limit.a)
  return text_of_level(limit), limit.reset
end

function algorithms.gcra.give(limit)
  limit.level = math.max(0, limit.level - limit.amount * limit.b)
  return text_of_level(limit)
end
