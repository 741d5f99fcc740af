-- KEYS: the destination, then the sources.  Missing bytes of shorter strings count as zero.
local operation, texts, longest = ARGV[1], {}, 0
if operation ~= 'ONE' and #KEYS < 3 then
  return {err = 'ERR BITOP ' .. operation .. ' must be called with at least two source keys.'}
end
for i = 2, #KEYS do
  local text = redis.pcall('GET', KEYS[i])
  if type(text) == 'table' then return text end
  texts[i - 1] = text or ''
  longest = math.max(longest, #texts[i - 1])
end
local bytes = {}
for at = 1, longest do
  local first = texts[1]:byte(at) or 0
  local others, once, twice = 0, 0, 0
  for i = 1, #texts do
    local byte = texts[i]:byte(at) or 0
    if i > 1 then others = bit.bor(others, byte) end
    twice = bit.bor(twice, bit.band(once, byte))
    once = bit.bor(once, byte)
  end
  local result = {
    DIFF = bit.band(first, bit.bnot(others)),
    DIFF1 = bit.band(others, bit.bnot(first)),
    ANDOR = bit.band(first, others),
    ONE = bit.band(once, bit.bnot(twice)),
  }
  bytes[at] = string.char(result[operation])
end
if longest == 0 then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], table.concat(bytes)) end
return longest
