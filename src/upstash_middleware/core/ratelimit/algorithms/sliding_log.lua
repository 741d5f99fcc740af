-- Sliding log: at most `a` units in any `b` ms, each request remembered by its own time.
-- Key: `TIME:COST,TIME:COST,…`, oldest first; an entry counts while it is less than `b` ms old.

-- The first moment at which so many units of the log have grown too old to count.
local function freed_at(limit, units)
  local freed = 0
  for _, entry in ipairs(limit.entries) do
    freed = freed + entry.cost
    if freed >= units then
      return entry.time + limit.b
    end
  end
  return limit.reset
end

algorithms.log = { keys = 1 }

function algorithms.log.check(limit, values, keys, now)
  limit.key, limit.span = keys[1], limit.b
  local entries = entries_of(values[1], keys[1])
  -- A clock that lags behind the one that wrote last must not write before it.
  limit.at = #entries > 0 and math.max(now, entries[#entries].time) or now
  limit.entries, limit.used = still_counting(entries, limit.at - limit.b)
  limit.where = limit.at
  limit.remaining = math.max(0, limit.a - limit.used)
  local last = limit.entries[#limit.entries]
  limit.reset = last and last.time + limit.b or now
  local excess = limit.used + limit.cost - limit.a
  limit.passes = excess <= 0 and now or freed_at(limit, excess)
end

function algorithms.log.take(limit)
  limit.entries[#limit.entries + 1] = { time = limit.at, cost = limit.cost }
  limit.remaining, limit.reset = limit.a - limit.used - limit.cost, limit.at + limit.b
  return text_of_entries(limit.entries), limit.reset
end

-- Refunds the entries of the time at which the units were taken, as far as they still count, and
-- removes those of which nothing is left.
function algorithms.log.give(limit)
  for _, entry in ipairs(limit.entries) do
    if entry.time == limit.where_taken then
      local given = math.min(entry.cost, limit.amount)
      entry.cost, limit.amount = entry.cost - given, limit.amount - given
    end
  end
  return text_of_entries((still_counting(limit.entries, 0)))
end
