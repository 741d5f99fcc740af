local redis, server, __run = (function() local ask = redis.pcall
$CORE
  local own = setmetatable({call = loud, pcall = quiet}, {__index = redis})
  local function protect() error('Attempt to modify a readonly table', 2) end
  local api = setmetatable({}, {__index = own, __newindex = protect})
  return api, api, run
end)()
return __run(function(...)
