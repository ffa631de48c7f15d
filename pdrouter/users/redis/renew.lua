-- Lets leases hold on. One that the server has forgotten is there again.
--
-- KEYS: the key of each lease. ARGV: seconds of a lease, and the holder of each.
local time = redis.call('TIME')
local ends = string.format('%.6f', time[1] + time[2] / 1000000 + ARGV[1])
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, ends, ARGV[i + 1])
  redis.call('PEXPIRE', key, math.ceil(ARGV[1] * 1000))
end
return #KEYS
