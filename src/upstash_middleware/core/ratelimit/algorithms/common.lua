-- What the algorithms share: exact whole numbers, and reading and writing stored text.
-- Lua's numbers are doubles: whole ones are exact below 2^53, and quotas, counters and times are
-- all kept below 10^15.

local EXACT = 9007199254740992
local MOST = 999999999999999
-- No overdraft takes longer than this to pay off: 400 days, in ms.
local LONGEST = 34560000000

-- The algorithms by their names in ARGV. Each has the number of `keys` that it reads; `check`, which
-- computes what remains and when the request would pass; `take`, which returns what to store and
-- until when that counts; and `give`, which refunds units and returns what to store.
-- After `check`, `where` is the part of the state that `take` would write to, for `give` to find; with
-- `windows` it is a window, and units can be given back to that one only.
local algorithms = {}

-- A key whose value this package has not written; once it is set, nothing is taken.
local unreadable = nil

local function text_of(number)
  return string.format('%.0f', number)
end

-- The counter of a key: 0 if the key is absent, or if refunds have pushed it below.
local function counter(text, key)
  if not text then
    return 0
  end
  if not string.find(text, '^%-?%d+$') or #text > 15 then
    unreadable = key
    return 0
  end
  return math.max(0, tonumber(text))
end

-- The window's own key is that of the window in which the units were taken.
local function give_to_window(limit, text, key)
  return text_of(math.max(0, counter(text, key) - limit.amount))
end

-- The numbers of a stored `A:B:C`, of which the last is a rate, or nil if the key is absent.
local function triple(text, key)
  if not text then
    return nil
  end
  local first, second, rate = string.match(text, '^(%d+):(%d+):([1-9]%d*)$')
  if not first or #first > 15 or #second > 16 or #rate > 15 then
    unreadable = key
    return nil
  end
  return tonumber(first), tonumber(second), tonumber(rate)
end

-- The entries of a stored `TIME:COST,TIME:COST,…`.
local function entries_of(text, key)
  local entries = {}
  if not text or text == '' then
    return entries
  end
  for entry in string.gmatch(text .. ',', '([^,]*),') do
    local time, cost = string.match(entry, '^(%d+):(%-?%d+)$')
    if not time or #time > 15 or #cost > 16 then
      unreadable = key
      time, cost = 0, 0
    end
    entries[#entries + 1] = { time = tonumber(time), cost = tonumber(cost) }
  end
  return entries
end

local function text_of_entries(entries)
  local written = {}
  for _, entry in ipairs(entries) do
    written[#written + 1] = text_of(entry.time) .. ':' .. text_of(entry.cost)
  end
  return table.concat(written, ',')
end

-- The entries later than `after`, without those whose units have all been refunded, and their sum.
local function still_counting(entries, after)
  local counting, used = {}, 0
  for _, entry in ipairs(entries) do
    if entry.time > after and entry.cost > 0 then
      counting[#counting + 1], used = entry, used + entry.cost
    end
  end
  return counting, used
end

-- floor(a * b / c) and the remainder, also where the product is too large for a double: then by
-- long multiplication, one bit of `a` at a time, reduced by `c` at each step.
local function multiply_divide(a, b, c)
  local product = a * b
  if product < EXACT then
    local quotient = math.floor(product / c)
    return quotient, product - quotient * c
  end
  local whole = math.floor(b / c)
  local part = b - whole * c
  local quotient, remainder, bit = 0, 0, 1125899906842624
  while bit >= 1 do
    quotient, remainder = quotient * 2, remainder * 2
    if a >= bit then
      a, quotient, remainder = a - bit, quotient + whole, remainder + part
    end
    local carried = math.floor(remainder / c)
    quotient, remainder = quotient + carried, remainder - carried * c
    bit = bit / 2
  end
  return quotient, remainder
end

local function divide_up(a, b)
  return math.floor((a + b - 1) / b)
end

-- Stores a value for longer than it counts, by an eighth of the limit's span and a second, for
-- processes whose clocks lag. GET makes SET refuse a key of another type instead of replacing it.
local function store(limit, value, counts_until, now)
  local rest = math.max(0, counts_until - now)
  local keep = text_of(rest + math.floor(limit.span / 8) + 1000)
  return redis.pcall('SET', limit.key, value, 'PX', keep, 'GET')
end
