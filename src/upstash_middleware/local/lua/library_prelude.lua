-- While a library is loaded there are no metatables and no redis.call.  While one of its functions
-- runs, the global `redis` is the complete interface.
local redis, server = (function() local function ask(...) return redis.pcall(...) end
$CORE
  local register = redis.register_function
  local api = {call = loud, pcall = quiet, log = redis.log}
  local function wrapped(callback, locking)
    return function(keys, args)
      setmetatable(api, {__index = redis})
      reading = args[#args] == '$READ_ONLY'
      if reading then args[#args] = nil end
      return run(function() return callback(keys, args) end, keys, locking)
    end
  end
  api.register_function = function(name, callback)
    if callback then return register(name, wrapped(callback, false)) end
    local flags, locking = {}, false
    for i = 1, #(name.flags or {}) do
      if name.flags[i] == 'allow-key-locking' then locking = true
      else flags[#flags + 1] = name.flags[i] end
    end
    return register({function_name = name.function_name, description = name.description,
      callback = name.callback and wrapped(name.callback, locking), flags = flags})
  end
  return api, api
end)()
