-- Token bucket: `a` tokens at most; `b` are added at the end of each `c` ms since the bucket was
-- last full. Key: `REFILLED:TOKENS`; an absent key is a full bucket; tokens are below 0 after an
-- overdraft.

local function refills_until(limit, tokens)
  return divide_up(math.max(0, tokens - limit.tokens), limit.b)
end

algorithms.bucket = { keys = 1 }

function algorithms.bucket.check(limit, values, keys, now)
  limit.key, limit.span = keys[1], divide_up(limit.a, limit.b) * limit.c
  local refilled, tokens = pair(values[1], keys[1])
  limit.refilled, limit.tokens = refilled or now, math.min(tokens or limit.a, limit.a)
  -- A clock that lags behind the one that wrote last must not refill twice.
  local passed = math.floor((math.max(now, limit.refilled) - limit.refilled) / limit.c)
  if passed >= refills_until(limit, limit.a) then
    limit.refilled, limit.tokens = math.max(now, limit.refilled), limit.a
  else
    limit.refilled = limit.refilled + passed * limit.c
    limit.tokens = limit.tokens + passed * limit.b
  end
  limit.where = 0
  limit.remaining = math.max(0, limit.tokens)
  limit.reset = limit.refilled + refills_until(limit, limit.a) * limit.c
  local wait = refills_until(limit, limit.cost)
  limit.passes = wait == 0 and now or limit.refilled + wait * limit.c
end

function algorithms.bucket.take(limit)
  limit.tokens = math.max(limit.a - math.floor(LONGEST / limit.c) * limit.b, limit.tokens - limit.cost)
  limit.remaining = limit.tokens
  limit.reset = limit.refilled + refills_until(limit, limit.a) * limit.c
  return text_of(limit.refilled) .. ':' .. text_of(limit.tokens), limit.reset
end

function algorithms.bucket.give(limit)
  local tokens = math.min(limit.a, limit.tokens + limit.amount)
  return text_of(limit.refilled) .. ':' .. text_of(tokens)
end
