-- Takes all that is demanded, or nothing.
--
-- KEYS: a key for each demand. ARGV: slots of a window, seconds of a lease, the holder, and for each
-- demand its kind (`window` or `lease`), amount, limit, and the seconds of a slot (0 of a lease).
-- Returns the number of the demand that stands in the way most (0 for none), the seconds until there
-- is room, the time, and for each demand what is used and the seconds until all of it is free.
--
-- The time is the server's: those of routers differ.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local slots, lease_s, holder = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local function read_demand(i)
  local at = 4 * i
  return {
    key = KEYS[i],
    kind = ARGV[at],
    amount = tonumber(ARGV[at + 1]),
    limit = tonumber(ARGV[at + 2]),
    slot_s = tonumber(ARGV[at + 3]),
  }
end

local function find_end(demand, slot)
  return math.max(0, (slot + 1 + slots) * demand.slot_s - now)
end

-- Reads what counts. Slots far ahead are those of a server whose clock was another.
local function read_window(demand)
  demand.current = math.floor(now / demand.slot_s)
  demand.parts, demand.old, demand.used = {}, {}, 0
  local fields = redis.call('HGETALL', demand.key)
  for i = 1, #fields, 2 do
    local slot, count = tonumber(fields[i]), tonumber(fields[i + 1])
    if slot < demand.current - slots or slot > demand.current + slots then
      table.insert(demand.old, fields[i])
    else
      table.insert(demand.parts, { slot = slot, count = count })
      demand.used = demand.used + count
    end
  end
  table.sort(demand.parts, function(a, b) return a.slot < b.slot end)
end

local function find_wait(demand)
  local lacking = demand.used + demand.amount - demand.limit
  if lacking <= 0 then return nil end
  for _, part in ipairs(demand.parts) do
    lacking = lacking - part.count
    if lacking <= 0 then return find_end(demand, part.slot) end
  end
  return slots * demand.slot_s
end

local function read_lease(demand)
  demand.used = redis.call('ZCOUNT', demand.key, '(' .. string.format('%.6f', now), '+inf')
  local own = redis.call('ZSCORE', demand.key, holder)
  demand.held = own and tonumber(own) > now
end

local function find_wait_of_lease(demand)
  local wanted = demand.held and demand.used or demand.used + 1
  return wanted > demand.limit and 0 or nil
end

local demands, worst, worst_wait = {}, 0, 0
for i = 1, #KEYS do
  local demand = read_demand(i)
  local wait
  if demand.kind == 'window' then
    read_window(demand)
    wait = find_wait(demand)
  else
    read_lease(demand)
    wait = find_wait_of_lease(demand)
  end
  if wait and (worst == 0 or wait > worst_wait) then worst, worst_wait = i, wait end
  demands[i] = demand
end

-- What may be refused for want of memory comes first: then nothing has been written yet.
if worst == 0 then
  for _, demand in ipairs(demands) do
    if demand.kind == 'window' then
      local slot = string.format('%.0f', demand.current)
      redis.call('HINCRBY', demand.key, slot, demand.amount)
      table.insert(demand.parts, { slot = demand.current })
      demand.used = demand.used + demand.amount
      if #demand.old > 0 then redis.call('HDEL', demand.key, unpack(demand.old)) end
      redis.call('PEXPIRE', demand.key, math.ceil((slots + 2) * demand.slot_s * 1000))
    else
      redis.call('ZADD', demand.key, string.format('%.6f', now + lease_s), holder)
      redis.call('ZREMRANGEBYSCORE', demand.key, '-inf', string.format('%.6f', now))
      redis.call('PEXPIRE', demand.key, math.ceil(lease_s * 1000))
      demand.used = demand.held and demand.used or demand.used + 1
    end
  end
end

local answer = { worst, string.format('%.6f', worst_wait), string.format('%.6f', now) }
for _, demand in ipairs(demands) do
  local reset = 0
  if demand.kind == 'window' and demand.used > 0 then
    reset = find_end(demand, demand.parts[#demand.parts].slot)
  end
  table.insert(answer, demand.used)
  table.insert(answer, string.format('%.6f', reset))
end
return answer
