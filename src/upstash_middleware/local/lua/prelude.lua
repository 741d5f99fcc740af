-- `ask` is redis.pcall.  `raised` is the error that the wrapped redis.call is about to raise: it is
-- then raised by the wrapper, and the line to report is one level further up.
  local declared, counts, raised, reading
  local whole = {FLUSHDB = 1, FLUSHALL = 1, SWAPDB = 1, KEYS = 1, SCAN = 1, RANDOMKEY = 1}
  local function refused(name, ...)
    if type(name) == 'string' then
      name = string.upper(name)
      counts[name] = (counts[name] or 0) + 1
    end
    if reading and type(name) == 'string' then
      local info = ask('COMMAND', 'INFO', name)
      for _, flag in ipairs(info[1] and info[1][3] or {}) do
        if flag.ok == 'write' then
          return {err = 'ERR Write commands are not allowed from read-only scripts.'}
        end
      end
    end
    if not declared or name == nil then return nil end
    if whole[name] then return {err = "ERR " .. name .. " $WHOLE_DATABASE"} end
    local keys = ask('COMMAND', 'GETKEYS', name, ...)
    if keys.err then return nil end
    for i = 1, #keys do
      if not declared[keys[i]] then
        return {err = "$DYNAMIC_KEY Key was: " .. keys[i]}
      end
    end
  end
  local function quiet(...) return refused(...) or ask(...) end
  local function loud(...)
    local reply = refused(...) or ask(...)
    if type(reply) == 'table' and reply.err then raised = reply; error(reply) end
    return reply
  end
  local function line(first, last)
    for level = first, last do
      local _, where = pcall(error, '', level)
      where = string.match(where, ':(%d+):')
      if where then return where end
    end
    return false
  end
  local function describe(problem)
    local at
    if problem ~= nil and problem == raised then at = line(6, 6) else at = line(4, 5) end
    if type(problem) == 'table' then
      return {type(problem.err) == 'string' and problem.err or 'ERR unknown error', at}
    end
    return {'ERR ' .. tostring(problem), at}
  end
  local function run(body, keys, locking)
    counts, raised, declared = {}, nil, nil
    if locking then
      declared = {}
      for i = 1, #keys do declared[keys[i]] = true end
    end
    local done, result = xpcall(body, describe)
    local calls = {'$MARK'}
    for name, count in pairs(counts) do calls[#calls + 1] = name; calls[#calls + 1] = count end
    if done then return {calls, result} end
    return {calls, false, result}
  end
