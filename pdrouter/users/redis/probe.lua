-- Whether the server takes what is written.
return redis.call('SET', KEYS[1], '', 'PX', 60000)
