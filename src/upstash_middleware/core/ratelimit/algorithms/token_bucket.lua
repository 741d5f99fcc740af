-- Token bucket: `a` tokens at most; `b` are added at the end of each `c` ms since the bucket was
-- last full. Key: `REFILLED:USED:REFILL`; an absent key is a full bucket; an overdraft uses more
-- than there is. The tokens used are stored, not those left, so that other limits with this
-- interval (another tier, another rule of the bucket) read them as units. What they find is
-- refilled at the rate of the limit that wrote it.

local function refills_for(tokens, refill)
  return divide_up(math.max(0, tokens), refill)
end

algorithms.bucket = { keys = 1 }

function algorithms.bucket.check(limit, values, keys, now)
  limit.key, limit.span = keys[1], divide_up(limit.a, limit.b) * limit.c
  local refilled, used, refill = triple(values[1], keys[1])
  limit.refilled, limit.used, limit.refill = refilled or now, used or 0, refill or limit.b
  -- A clock that lags behind the one that wrote last must not refill twice.
  local passed = math.floor((math.max(now, limit.refilled) - limit.refilled) / limit.c)
  if passed >= refills_for(limit.used, limit.refill) then
    limit.refilled, limit.used = math.max(now, limit.refilled), 0
  else
    limit.refilled, limit.used = limit.refilled + passed * limit.c, limit.used - passed * limit.refill
  end
  limit.where = 0
  limit.remaining = math.max(0, limit.a - limit.used)
  limit.reset = limit.refilled + refills_for(limit.used, limit.refill) * limit.c
  local wait = refills_for(limit.used + limit.cost - limit.a, limit.refill)
  limit.passes = wait == 0 and now or limit.refilled + wait * limit.c
end

local function text_of_bucket(limit)
  return text_of(limit.refilled) .. ':' .. text_of(limit.used) .. ':' .. text_of(limit.refill)
end

function algorithms.bucket.take(limit)
  local most = math.max(limit.a, math.floor(LONGEST / limit.c) * limit.b)
  limit.used = math.min(EXACT / 2, most, limit.used + limit.cost)
  limit.refill = limit.b
  limit.remaining = limit.a - limit.used
  limit.reset = limit.refilled + refills_for(limit.used, limit.b) * limit.c
  return text_of_bucket(limit), limit.reset
end

function algorithms.bucket.give(limit)
  limit.used = math.max(0, limit.used - limit.amount)
  return text_of_bucket(limit)
end
