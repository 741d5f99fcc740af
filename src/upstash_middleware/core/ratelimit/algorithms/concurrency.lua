-- Concurrency: at most `a` requests at once. Key: `EXPIRY:TOKEN,EXPIRY:TOKEN,…`, one slot for each
-- request in flight. A slot is given back when its request ends; in case the process dies, it
-- expires `b` ms after it was last taken. `c` is the token of this request.

algorithms.slots = { keys = 1 }

local function slots_but(token, entries)
  local others = {}
  for _, entry in ipairs(entries) do
    if entry.cost ~= token then
      others[#others + 1] = entry
    end
  end
  return others
end

function algorithms.slots.check(limit, values, keys, now)
  limit.key, limit.span, limit.where = keys[1], 0, limit.c
  limit.entries = still_counting(entries_of(values[1], keys[1]), now)
  limit.remaining = math.max(0, limit.a - #limit.entries)
  limit.reset = now
  -- When a slot will be free is not known.
  limit.passes = #limit.entries < limit.a and now or now + limit.b
end

-- A request that takes its slot again renews it.
function algorithms.slots.take(limit, now)
  limit.entries = slots_but(limit.c, limit.entries)
  limit.entries[#limit.entries + 1] = { time = now + limit.b, cost = limit.c }
  limit.remaining = limit.a - #limit.entries
  local last = now
  for _, entry in ipairs(limit.entries) do
    last = math.max(last, entry.time)
  end
  return text_of_entries(limit.entries), last
end

function algorithms.slots.give(limit)
  return text_of_entries(slots_but(limit.where_taken, limit.entries))
end
