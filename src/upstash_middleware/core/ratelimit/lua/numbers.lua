-- Exact whole numbers, and reading them from stored text. No algorithm is here.
-- Lua's numbers are doubles: whole ones are exact below 2^53, and quotas, counters and times are
-- all kept below 10^15.

local EXACT = 9007199254740992
local MOST = 999999999999999
-- No overdraft takes longer than this to pay off: 400 days, in ms.
local LONGEST = 34560000000

-- Each algorithm by the name it has in ARGV: how many keys it reads; `check`, which finds out what
-- remains and when the request would pass; `take`, which answers what to store and until when it
-- counts; `give`, which takes units back and answers what to store,
-- After `check`, `where` tells which part of the state `take` would write to, for `give` to find.
local algorithms = {}

-- The key whose stored text nobody of this kind has written; nothing is taken once it is set.
local unreadable = nil

local function text_of(number)
  return string.format('%.0f', number)
end

-- The counter that a key holds: absent counts as 0, and so does what refunds have pushed below.
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

-- The two numbers of a stored `A:B`, or nil if the key is absent.
local function pair(text, key)
  if not text then
    return nil
  end
  local first, second = string.match(text, '^(%d+):(%-?%d+)$')
  if not first or #first > 15 or #second > 16 then
    unreadable = key
    return nil
  end
  return tonumber(first), tonumber(second)
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
