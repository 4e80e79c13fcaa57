-- How the limits of a caller stand, with costs counted if all have room for one more: the sliding
-- window of window.rs in sorted sets, by Redis' clock.
--
-- KEYS[i]  entries of limit i: score = time in µs, member = sum of all that came up to it. The newest
--          one that has left the window stays, as the sum to subtract.
-- ARGV     whatever (1: count even without room), then count, window in µs and cost of each limit
-- returns  1 if the costs were counted, then used, µs until it is less and µs until there is room for one
--          more, of each limit
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local whatever = ARGV[1] == '1'
local limits, has_room = {}, true

for i, key in ipairs(KEYS) do
  local count, window = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  local sum, left, time = 0, 0, now
  if last[1] then
    sum = tonumber(last[1])
    -- Times only rise, even if the clock does not.
    time = math.max(now, last[2] + 1)
  end
  local gone = redis.call('ZREVRANGEBYSCORE', key, time - window, '-inf', 'LIMIT', 0, 1)
  if gone[1] then
    left = tonumber(gone[1])
    local rank = redis.call('ZRANK', key, gone[1])
    if rank > 0 then
      redis.call('ZREMRANGEBYRANK', key, 0, rank - 1)
    end
  end
  limits[i] = { key = key, count = count, window = window, cost = tonumber(ARGV[3 * i + 1]),
                sum = sum, left = left, time = time, first = gone[1] and 1 or 0 }
  has_room = has_room and sum - left < count
end

-- µs until the entry at a rank leaves the window.
local function until_gone(limit, rank)
  local entry = redis.call('ZRANGE', limit.key, rank, rank, 'WITHSCORES')
  return entry[2] and math.max(0, entry[2] + limit.window - limit.time) or 0
end

local counted = has_room or whatever
local answer = { counted and 1 or 0 }
for _, limit in ipairs(limits) do
  if counted and limit.cost > 0 then
    limit.sum = limit.sum + limit.cost
    redis.call('ZADD', limit.key, limit.time, string.format('%.0f', limit.sum))
    redis.call('PEXPIRE', limit.key, math.ceil(limit.window / 1000))
  end
  local used, wait = limit.sum - limit.left, 0
  if used >= limit.count then
    -- Gone has to be as much as is over, and one more.
    local enough = limit.sum - limit.count + 1
    local low, high = limit.first, redis.call('ZCARD', limit.key) - 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if tonumber(redis.call('ZRANGE', limit.key, middle, middle)[1]) < enough then
        low = middle + 1
      else
        high = middle
      end
    end
    wait = until_gone(limit, low)
  end
  answer[#answer + 1] = used
  answer[#answer + 1] = until_gone(limit, limit.first)
  answer[#answer + 1] = wait
end
return answer
