-- Puts right what was taken: any number of corrections, each batch of them once.
--
-- KEYS: what keeps the number of the sender's last batch, and a key for each correction. ARGV: slots
-- of a window, seconds for which the number is kept, the number of this batch, and for each correction
-- what it is, an amount or a holder, the seconds of a slot, and a time:
--   `add`       counts an amount from now on;
--   `subtract`  counts an amount less of what was taken at the time;
--   `release`   ends a holder's lease.
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[2])

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local slots = tonumber(ARGV[1])

local function name_slot(at, slot_s)
  return string.format('%.0f', math.floor(at / slot_s))
end

for i = 2, #KEYS do
  local key, at = KEYS[i], 4 * i - 4
  local kind, what, slot_s, taken_at = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  if kind == 'add' then
    redis.call('HINCRBY', key, name_slot(now, slot_s), what)
    redis.call('PEXPIRE', key, math.ceil((slots + 2) * slot_s * 1000))
  elseif kind == 'subtract' then
    local slot = name_slot(taken_at, slot_s)
    local count = tonumber(redis.call('HGET', key, slot) or 0)
    if count > 0 then redis.call('HINCRBY', key, slot, -math.min(tonumber(what), count)) end
  else
    redis.call('ZREM', key, what)
  end
end
return #KEYS - 1
