-- HTTP/1.1 for wrk: requests made ahead, a key drawn for each, every answer read.
--   wrk ... -s http1.lua URL -- CALL KEYS VALUE_BYTES
-- CALL: gateway_put, gateway_range, native_put, native_get.
-- Keys and values are those of calls.py.

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
  local out = {}
  for at = 1, #text, 3 do
    local a, b, c = text:byte(at, at + 2)
    local n = a * 65536 + (b or 0) * 256 + (c or 0)
    for place = 3, 0, -1 do
      local digit = math.floor(n / 64 ^ place) % 64 + 1
      out[#out + 1] = alphabet:sub(digit, digit)
    end
    if not c then out[#out] = "=" end
    if not b then out[#out - 1] = "=" end
  end
  return table.concat(out)
end

local function value_of(key, size)
  if size <= #key then return key:sub(-size) end
  return key .. "|" .. string.rep("v", size - #key - 1)
end

local makers = {
  gateway_put = function(key, value)
    local body = '{"key":"' .. base64(key) .. '","value":"' .. base64(value) .. '"}'
    return wrk.format("POST", "/v3/kv/put", {["Content-Type"] = "application/json"}, body),
      '"revision":"%d+"'
  end,
  gateway_range = function(key, value)
    local body = '{"key":"' .. base64(key) .. '"}'
    return wrk.format("POST", "/v3/kv/range", {["Content-Type"] = "application/json"}, body),
      base64(value)
  end,
  native_put = function(key, value)
    return wrk.format("PUT", "/api/kv/" .. key, {}, value), '"mod_revision":%d+'
  end,
  native_get = function(key, value)
    return wrk.format("GET", "/api/kv/" .. key, {}, nil), value
  end,
}

local threads = {}
bad = 0

function setup(thread)
  table.insert(threads, thread)
end

-- With connections that each have one request under way, wrk does not say which request an answer
-- belongs to. So a read is held against what all values have in common: their length, and all of
-- them but the key.
function init(args)
  local call, keys, size = args[1], tonumber(args[2]), tonumber(args[3])
  requests, count = {}, math.min(keys, 20000)
  math.randomseed(1)
  for place = 1, count do
    local key = string.format("bench/%010d", math.random(0, keys - 1))
    requests[place] = makers[call](key, value_of(key, size))
  end
  if call == "native_get" then
    needle, plain = "|" .. string.rep("v", size - 17) .. '"', true
  elseif call == "gateway_range" then
    -- Key, "|" and one letter are 18 bytes, so 24 characters of base64 that differ; the rest does not.
    local _, whole = makers[call](string.format("bench/%010d", 0), value_of(string.format("bench/%010d", 0), size))
    needle, plain = whole:sub(25) .. '"', true
  else
    local _, pattern = makers[call]("bench/0000000000", "")
    needle, plain = pattern, false
  end
  if (call == "native_get" or call == "gateway_range") and size < 32 then
    error("values must have 32 bytes for answers to be told from errors")
  end
end

function request()
  return requests[math.random(count)]
end

function response(status, headers, body)
  if status ~= 200 or not body:find(needle, 1, plain) then bad = bad + 1 end
end

function done(summary, latency, all)
  local wrong = 0
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("bad") end
  local errors = summary.errors
  print(string.format(
    'bench {"requests":%d,"duration_us":%d,'
      .. '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,"answer":%d},'
      .. '"latency_us":{"mean":%.1f,"p50":%.1f,"p90":%.1f,"p99":%.1f,"max":%.1f}}',
    summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.timeout,
    errors.status, wrong, latency.mean, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency.max))
end
