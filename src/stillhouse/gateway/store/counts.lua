-- The algorithm of guard/counting.py and guard/windows.py, as one atomic script. Names are the same there.
--
-- KEYS[1] is the clock, without which the counts are lost; all other keys are named after it and lie in the same
-- hash slot: s:SUBJECT (a hash of counters), f:SUBJECT (its requests in flight by the end of their time), r:ID (a
-- reservation, and for a while what it cost). A counter is the number of its newest slot and then its slots,
-- packed as doubles, which hold whole numbers exactly up to MOST.
--
-- ARGV: reserve ID PLAN | settle ID INPUT OUTPUT SENT | standing SUBJECT
-- PLAN is [time in microseconds, input, output, payer, schedule, steps, [[subject, [[measure, window, most]]]]].

local SECOND, DAY, MOST = 1e6, 86400e6, 9007199254740991
local LATE, TWICE = 3600 * SECOND, 15 * SECOND
local WIDTH = {minute = 5 * SECOND, day = 7200 * SECOND}
local KEPT = {minute = 13, day = 13, month = 2, ever = 1}
local EXPIRE = 63 * 86400 -- seconds: longer than a counter of months is of use
local MONEY, EVER = 'money month', 'money ever'
local base = string.sub(KEYS[1], 1, -6)

local function whole(number)
  return string.format('%.0f', number)
end

-- Redis's own time, which goes on from where it had come to when it is set back.
local known = redis.call('HMGET', KEYS[1], 'raw', 'ahead')
if not known[1] then
  return redis.error_reply('LOST the counts')
end
local time = redis.call('TIME')
local raw, ahead = time[1] * SECOND + time[2], tonumber(known[2])
ahead = ahead + math.max(0, tonumber(known[1]) - raw)
redis.call('HSET', KEYS[1], 'raw', whole(raw), 'ahead', whole(ahead))
local now = raw + ahead

-- Months since the year 0. Years are taken to begin in March, so that the day that comes and goes is their last.
local function month_of(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  return (yoe + era * 400) * 12 + math.floor((5 * doy + 2) / 153) + 2
end

local function slots(at)
  return {
    minute = math.floor(at / WIDTH.minute),
    day = math.floor(at / WIDTH.day),
    month = month_of(math.floor(at / DAY)),
    ever = 0,
  }
end

local at = slots(now)

local function unpacked(field, blob)
  local window = string.match(field, '%a+$')
  local kept, numbers = KEPT[window], nil
  if blob then
    numbers = {struct.unpack('<' .. string.rep('d', kept + 1), blob)}
  else
    numbers = {at[window]}
    for i = 2, kept + 1 do
      numbers[i] = 0
    end
  end
  for old = math.max(numbers[1], at[window] - kept) + 1, at[window] do
    numbers[2 + old % kept] = 0
  end
  numbers[1] = math.max(numbers[1], at[window])
  return {window = window, kept = kept, numbers = numbers}
end

local function used(counter)
  if not WIDTH[counter.window] then
    return counter.numbers[2 + at[counter.window] % counter.kept]
  end
  local sum = 0
  for i = 2, 14 do
    sum = sum + counter.numbers[i]
  end
  return sum
end

local function newest(counter)
  local slot = at[counter.window]
  local counted = WIDTH[counter.window] and 13 or 1
  for old = slot, slot - counted + 1, -1 do
    if counter.numbers[2 + old % counter.kept] ~= 0 then
      return old
    end
  end
  return -1
end

local function change(counter, since, by)
  local slot = at[counter.window]
  if not (WIDTH[counter.window] and by > 0) then
    slot = since[counter.window]
  end
  if by ~= 0 and slot > at[counter.window] - counter.kept then
    local i = 2 + slot % counter.kept
    counter.numbers[i] = math.min(counter.numbers[i] + by, MOST)
    counter.changed = true
  end
end

local function price(steps, volume, input, output)
  local total, between = 0, volume + input
  local last = between + output
  for i, step in ipairs(steps) do
    local over, till = step[1], steps[i + 1] and steps[i + 1][1] or math.huge
    total = total + step[2] * math.max(0, math.min(between, till) - math.max(volume, over))
    total = total + step[3] * math.max(0, math.min(last, till) - math.max(between, over))
  end
  return math.min(total, MOST)
end

local function worst(steps, settled, reach, input, output)
  local last, dear_input, dear_output = reach + input + output, 0, 0
  for i, step in ipairs(steps) do
    if step[1] < last and (not steps[i + 1] or settled < steps[i + 1][1]) then
      dear_input, dear_output = math.max(dear_input, step[2]), math.max(dear_output, step[3])
    end
  end
  return math.min(dear_input * input + dear_output * output, MOST)
end

-- Every counter that a plan has to do with, by subject and field, as it stands now.
local function books_of(plan)
  local fields, books = {}, {}
  local function want(name, field)
    fields[name] = fields[name] or {}
    books[name] = books[name] or {}
    if not books[name][field] then
      books[name][field] = true
      table.insert(fields[name], field)
    end
  end
  for _, subject in ipairs(plan[7]) do
    for _, limit in ipairs(subject[2]) do
      if limit[1] ~= 'concurrent' then
        want(subject[1], limit[1] .. ' ' .. limit[2])
      end
    end
  end
  if #plan[6] > 0 then
    want(plan[4], MONEY)
    want(plan[4], 'settled ' .. plan[5] .. ' month')
    want(plan[4], 'reach ' .. plan[5] .. ' month')
  end
  for name, wanted in pairs(fields) do
    local blobs = redis.call('HMGET', base .. 's:' .. name, unpack(wanted))
    for i, field in ipairs(wanted) do
      books[name][field] = unpacked(field, blobs[i])
    end
  end
  return books
end

local function save(books)
  for name, book in pairs(books) do
    local key, words = base .. 's:' .. name, {}
    for field, counter in pairs(book) do
      if counter.changed then
        table.insert(words, field)
        table.insert(words, struct.pack('<' .. string.rep('d', counter.kept + 1), unpack(counter.numbers, 1, counter.kept + 1)))
      end
    end
    if #words > 0 then
      redis.call('HSET', key, unpack(words))
      if book[EVER] then
        redis.call('PERSIST', key)
      elseif redis.call('TTL', key) < EXPIRE - 86400 and redis.call('HEXISTS', key, EVER) == 0 then
        redis.call('EXPIRE', key, EXPIRE)
      end
    end
  end
end

-- Charges what a plan reserved; `by` is what to change each measure by.
local function charge(plan, books, since, by)
  for _, book in pairs(books) do
    for field, counter in pairs(book) do
      local measure = string.match(field, '^(%S+) %S+$')
      if measure then
        change(counter, since, by[measure])
      end
    end
  end
end

local function flights(name)
  local key = base .. 'f:' .. name
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  return key, redis.call('ZCARD', key)
end

local function packed(counter)
  return struct.pack('<' .. string.rep('d', counter.kept + 1), unpack(counter.numbers, 1, counter.kept + 1))
end

-- Gives [1, now, cost, used and newest slot of each limit], or [0, now, cost, used and counter of each limit]; for
-- requests in flight the time when enough of them are over stands in place of a counter.
local function reserve(id, text)
  local plan = cjson.decode(text)
  local seconds, input, output, steps = plan[1], plan[2], plan[3], plan[6]
  local books, cost = books_of(plan), 0
  if #steps > 0 then
    local payer = books[plan[4]]
    local settled, reach = payer['settled ' .. plan[5] .. ' month'], payer['reach ' .. plan[5] .. ' month']
    cost = worst(steps, used(settled), used(reach), input, output)
  end
  local amount = {requests = 1, input_tokens = input, output_tokens = output, concurrent = 1, money = cost}
  local fits, counts, in_flight = true, {}, {}
  for _, subject in ipairs(plan[7]) do
    for _, limit in ipairs(subject[2]) do
      local counted
      if limit[1] == 'concurrent' then
        in_flight[subject[1]], counted = flights(subject[1])
      else
        counted = used(books[subject[1]][limit[1] .. ' ' .. limit[2]])
      end
      table.insert(counts, counted)
      if amount[limit[1]] > 0 and counted + amount[limit[1]] > limit[3] then
        fits = false
      end
    end
  end
  if fits then
    charge(plan, books, at, amount)
    if #steps > 0 then
      change(books[plan[4]]['reach ' .. plan[5] .. ' month'], at, input + output)
    end
    save(books)
    local ends = now + seconds
    local left = math.ceil((seconds + LATE) / SECOND)
    redis.call('SET', base .. 'r:' .. id, 'open ' .. whole(now) .. ' ' .. whole(cost) .. ' ' .. text, 'EX', left)
    for _, key in pairs(in_flight) do
      redis.call('ZADD', key, whole(ends), id)
      redis.call('EXPIRE', key, 2 * 86400)
    end
  end
  local reply, i = {fits and 1 or 0, now, cost}, 0
  for _, subject in ipairs(plan[7]) do
    for _, limit in ipairs(subject[2]) do
      i = i + 1
      local counter = limit[1] ~= 'concurrent' and books[subject[1]][limit[1] .. ' ' .. limit[2]]
      local detail = -1
      if counter then
        detail = fits and newest(counter) or packed(counter)
      elseif counts[i] >= limit[3] then
        local over = counts[i] - limit[3]
        detail = tonumber(redis.call('ZRANGE', in_flight[subject[1]], over, over, 'WITHSCORES')[2])
      end
      table.insert(reply, counts[i] + (fits and amount[limit[1]] or 0))
      table.insert(reply, detail)
    end
  end
  return reply
end

-- Gives the cost, or -1 for a reservation that is not known (any more).
local function settle(id, input, output, sent)
  local key = base .. 'r:' .. id
  local kept = redis.call('GET', key)
  if not kept then
    return -1
  end
  local word, since, cost, text = string.match(kept, '^(%l+) (%d+) (%d+) ?(.*)$')
  since, cost = tonumber(since), tonumber(cost)
  if word == 'settled' then
    return now < since + TWICE and cost or -1
  end
  local plan = cjson.decode(text)
  if now >= since + plan[1] + LATE then
    return -1
  end
  local books, steps, reserved = books_of(plan), plan[6], cost
  since, cost = slots(since), 0
  if #steps > 0 then
    local payer = books[plan[4]]
    local settled, reach = payer['settled ' .. plan[5] .. ' month'], payer['reach ' .. plan[5] .. ' month']
    local volume = 0
    if since.month > settled.numbers[1] - settled.kept then
      volume = settled.numbers[2 + since.month % 2]
    end
    cost = price(steps, volume, input, output)
    change(settled, since, input + output)
    change(reach, since, input + output - plan[2] - plan[3])
  end
  charge(plan, books, since, {
    requests = sent and 0 or -1,
    input_tokens = input - plan[2],
    output_tokens = output - plan[3],
    money = cost - reserved,
  })
  save(books)
  for _, subject in ipairs(plan[7]) do
    for _, limit in ipairs(subject[2]) do
      if limit[1] == 'concurrent' then
        redis.call('ZREM', base .. 'f:' .. subject[1], id)
      end
    end
  end
  redis.call('SET', key, 'settled ' .. whole(now) .. ' ' .. whole(cost), 'PX', TWICE / 1000)
  return cost
end

if ARGV[1] == 'reserve' then
  return reserve(ARGV[2], ARGV[3])
elseif ARGV[1] == 'settle' then
  local sent = ARGV[5] == '1'
  return settle(ARGV[2], sent and tonumber(ARGV[3]) or 0, sent and tonumber(ARGV[4]) or 0, sent)
end
local key, count = flights(ARGV[2])
return {now, count, redis.call('HGETALL', base .. 's:' .. ARGV[2])}
