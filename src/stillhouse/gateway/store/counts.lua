-- The algorithm of guard/counting.py and guard/windows.py, as one atomic script. Names are the same there.
--
-- KEYS[1] is the clock, without which the counts are lost; all other keys are named after it and lie in the same
-- hash slot: s:SUBJECT (a hash of counters), f:SUBJECT (its requests in flight by the end of their time), r:ID (a
-- reservation, and for a while what it cost), alive:REPLICA (while that lives), looked:SUBJECT (for a second after
-- it was looked which of its requests are those of dead replicas). An ID begins with its replica's and a colon.
-- A counter is the number of its newest slot and then its slots,
-- packed as doubles, which hold whole numbers exactly up to MOST. Its field is its measure and its window.
--
-- ARGV: reserve ID PLAN | full ID PLAN | settle ID [PLAN INPUT OUTPUT SENT] | standing SUBJECT
-- PLAN is a list in JSON without lists in it: time in microseconds, input, output, payer, schedule, the number of
-- steps, and of each where it begins and its two prices; the number of subjects, and of each its name, the number
-- of its limits, and of each its measure, its window and its amount.

local SECOND, DAY, MOST = 1e6, 86400e6, 9007199254740991
local LATE, TWICE = 3600 * SECOND, 15 * SECOND
local WIDTH = {minute = 5 * SECOND, day = 7200 * SECOND}
local KEPT = {minute = 13, day = 13, month = 2, ever = 1}
local EXPIRE = 63 * 86400 -- seconds: longer than a counter of months is of use
local MONEY, EVER = 'money month', 'money ever'
local FORMAT = {}
for window, kept in pairs(KEPT) do
  FORMAT[window] = '<' .. string.rep('d', kept + 1)
end
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

local function unpacked(window, blob)
  local kept, slot, numbers = KEPT[window], at[window], nil
  if blob then
    numbers = {struct.unpack(FORMAT[window], blob)}
    for old = math.max(numbers[1], slot - kept) + 1, slot do
      numbers[2 + old % kept] = 0
    end
    numbers[1] = math.max(numbers[1], slot)
  else
    numbers = {slot}
    for i = 2, kept + 1 do
      numbers[i] = 0
    end
  end
  return {window = window, kept = kept, numbers = numbers}
end

local function packed(counter)
  return struct.pack(FORMAT[counter.window], unpack(counter.numbers, 1, counter.kept + 1))
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
    counter.numbers[i] = math.max(0, math.min(counter.numbers[i] + by, MOST))
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

local function worst(steps, first, last, input, output)
  local dear_input, dear_output = 0, 0
  for i, step in ipairs(steps) do
    if step[1] < last and (not steps[i + 1] or first < steps[i + 1][1]) then
      dear_input, dear_output = math.max(dear_input, step[2]), math.max(dear_output, step[3])
    end
  end
  return dear_input * input + dear_output * output
end

-- The plan with every counter that it has to do with, as it stands now. A counter that two limits share is there
-- once; `charged` are the measures and counters that a reservation is charged to.
local function read(text)
  local words = cjson.decode(text)
  local payer, schedule = words[4], words[5]
  local plan = {
    seconds = words[1], input = words[2], output = words[3], steps = {}, limits = {}, charged = {}, books = {},
  }
  local fields, windows, i = {}, {}, 7
  local function want(name, field, window)
    local book = plan.books[name]
    if not book then
      book, fields[name], windows[name] = {}, {}, {}
      plan.books[name] = book
    end
    local new = not book[field]
    if new then
      book[field] = true
      table.insert(fields[name], field)
      table.insert(windows[name], window)
    end
    return new
  end
  for n = 1, words[6] do
    plan.steps[n] = {words[i], words[i + 1], words[i + 2]}
    i = i + 3
  end
  local subjects = words[i]
  i = i + 1
  for _ = 1, subjects do
    local name, limits = words[i], words[i + 1]
    i = i + 2
    for _ = 1, limits do
      local measure, window = words[i], words[i + 1]
      local field = measure .. ' ' .. window
      table.insert(plan.limits, {subject = name, measure = measure, field = field, most = words[i + 2]})
      if measure ~= 'concurrent' and want(name, field, window) then
        table.insert(plan.charged, {name, field, measure})
      end
      i = i + 3
    end
  end
  if #plan.steps > 0 then
    if want(payer, MONEY, 'month') then
      table.insert(plan.charged, {payer, MONEY, 'money'})
    end
    plan.payer = {}
    for _, what in ipairs({'settled', 'input', 'output', 'held'}) do
      plan.payer[what] = what .. ' ' .. schedule .. ' month'
      want(payer, plan.payer[what], 'month')
    end
  end
  for name, wanted in pairs(fields) do
    local book, blobs = plan.books[name], redis.call('HMGET', base .. 's:' .. name, unpack(wanted))
    for n, field in ipairs(wanted) do
      book[field] = unpacked(windows[name][n], blobs[n])
    end
  end
  if plan.payer then
    for what, field in pairs(plan.payer) do
      plan.payer[what] = plan.books[payer][field]
    end
  end
  return plan
end

local function charge(plan, since, by)
  for _, row in ipairs(plan.charged) do
    change(plan.books[row[1]][row[2]], since, by[row[3]])
  end
end

local function save(plan)
  for name, book in pairs(plan.books) do
    local key, words = base .. 's:' .. name, {}
    for field, counter in pairs(book) do
      if counter.changed then
        table.insert(words, field)
        table.insert(words, packed(counter))
      end
    end
    if #words > 0 then
      redis.call('HSET', key, unpack(words))
      local spent = redis.call('HGET', key, EVER)
      if spent and used(unpacked('ever', spent)) > 0 then
        redis.call('PERSIST', key)
      elseif redis.call('TTL', key) < EXPIRE - 86400 then
        redis.call('EXPIRE', key, EXPIRE)
      end
    end
  end
end

-- Where there are `most` of them, those of replicas that are dead are forgotten first; they may be many, so that is
-- looked at once a second.
local function flights(name, most)
  local key = base .. 'f:' .. name
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  local count = redis.call('ZCARD', key)
  if count > 0 and count >= most and redis.call('SET', base .. 'looked:' .. name, '', 'NX', 'PX', 1000) then
    local lives = {}
    for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      local replica = string.match(id, '^[^:]*')
      if lives[replica] == nil then
        lives[replica] = redis.call('EXISTS', base .. 'alive:' .. replica) == 1
      end
      if not lives[replica] then
        redis.call('ZREM', key, id)
        count = count - 1
      end
    end
  end
  return key, count
end

-- Money to reserve: enough that all that is open, with this one, is covered in whatever order it settles.
local function held_for(plan)
  local payer = plan.payer
  local volume, inputs = used(payer.settled), used(payer.input) + plan.input
  local outputs = used(payer.output) + plan.output
  local last = volume + inputs + outputs
  local own = worst(plan.steps, volume, last, plan.input, plan.output)
  return math.min(math.max(own, worst(plan.steps, volume, last, inputs, outputs) - used(payer.held)), MOST)
end

-- Gives [1, now, cost, used and newest slot of each limit], or [0, now, cost, used and counter of each limit]; for
-- requests in flight the time when enough of them are over stands in place of a counter. Where it only `looks`
-- nothing is charged, and a request is taken to cost the least that there is.
local function reserve(id, text, looks)
  local plan, cost = read(text), 0
  if plan.payer then
    cost = looks and 1 or held_for(plan)
  end
  local amount = {
    requests = 1, input_tokens = plan.input, output_tokens = plan.output, concurrent = 1, money = cost,
  }
  local fits, counts, in_flight = true, {}, {}
  for i, limit in ipairs(plan.limits) do
    if limit.measure == 'concurrent' then
      in_flight[limit.subject], counts[i] = flights(limit.subject, limit.most)
    else
      counts[i] = used(plan.books[limit.subject][limit.field])
    end
    local more = amount[limit.measure]
    if more > 0 and counts[i] + more > limit.most then
      fits = false
    end
  end
  if fits and not looks then
    charge(plan, at, amount)
    if plan.payer then
      change(plan.payer.input, at, plan.input)
      change(plan.payer.output, at, plan.output)
      change(plan.payer.held, at, cost)
    end
    save(plan)
    local left = math.ceil((plan.seconds + LATE) / SECOND)
    redis.call('SET', base .. 'r:' .. id, 'open ' .. whole(now) .. ' ' .. whole(cost), 'EX', left)
    for _, key in pairs(in_flight) do
      redis.call('ZADD', key, whole(now + plan.seconds), id)
      redis.call('EXPIRE', key, 2 * 86400)
    end
  end
  local reply = {fits and 1 or 0, now, cost}
  for i, limit in ipairs(plan.limits) do
    local detail = -1
    if limit.measure ~= 'concurrent' then
      local counter = plan.books[limit.subject][limit.field]
      detail = fits and newest(counter) or packed(counter)
    elseif counts[i] >= limit.most then
      local over = counts[i] - limit.most
      detail = tonumber(redis.call('ZRANGE', in_flight[limit.subject], over, over, 'WITHSCORES')[2])
    end
    table.insert(reply, counts[i] + (fits and amount[limit.measure] or 0))
    table.insert(reply, detail)
  end
  return reply
end

-- Gives the cost, or -1 for a reservation that is not known (any more).
local function settle(id, text, input, output, sent)
  local key = base .. 'r:' .. id
  local kept = redis.call('GET', key)
  if not kept then
    return -1
  end
  local word, since, reserved = string.match(kept, '^(%l+) (%d+) (%d+)$')
  since, reserved = tonumber(since), tonumber(reserved)
  if word == 'settled' and now < since + TWICE then
    return reserved
  elseif word == 'settled' or not text then
    return -1
  end
  local plan, cost = read(text), 0
  if now >= since + plan.seconds + LATE then
    return -1
  end
  since = slots(since)
  if plan.payer then
    local settled, volume = plan.payer.settled, 0
    if since.month > settled.numbers[1] - settled.kept then
      volume = settled.numbers[2 + since.month % 2]
    end
    cost = price(plan.steps, volume, input, output)
    change(settled, since, input + output)
    change(plan.payer.input, since, -plan.input)
    change(plan.payer.output, since, -plan.output)
    change(plan.payer.held, since, -reserved)
  end
  charge(plan, since, {
    requests = sent and 0 or -1,
    input_tokens = input - plan.input,
    output_tokens = output - plan.output,
    money = cost - reserved,
  })
  save(plan)
  for _, limit in ipairs(plan.limits) do
    if limit.measure == 'concurrent' then
      redis.call('ZREM', base .. 'f:' .. limit.subject, id)
    end
  end
  redis.call('SET', key, 'settled ' .. whole(now) .. ' ' .. whole(cost), 'PX', TWICE / 1000)
  return cost
end

if ARGV[1] == 'reserve' then
  return reserve(ARGV[2], ARGV[3], false)
elseif ARGV[1] == 'full' then
  return reserve(ARGV[2], ARGV[3], true)
elseif ARGV[1] == 'settle' then
  local sent = ARGV[6] == '1'
  return settle(ARGV[2], ARGV[3], sent and tonumber(ARGV[4]) or 0, sent and tonumber(ARGV[5]) or 0, sent)
end
local _, count = flights(ARGV[2], 1)
return {now, count, redis.call('HGETALL', base .. 's:' .. ARGV[2])}
