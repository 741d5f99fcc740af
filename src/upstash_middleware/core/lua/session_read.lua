#!lua flags=allow-key-locking
-- Read a session from the primary, where commands in scripts run. KEYS: the session.
return redis.call('HGETALL', KEYS[1])
