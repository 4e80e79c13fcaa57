-- POST /predict with the lines of a file as bodies, in order; ends with one line of JSON.
--
--   wrk -s wrk.lua <url> -- <file>

local requests, at = {}, 0

function init(arguments)
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  for body in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format(nil, nil, nil, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    '{"requests":%d,"secs":%.6f,"failed":%d,"p50_ms":%.3f,"p99_ms":%.3f}',
    summary.requests,
    summary.duration / 1e6,
    failed,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3
  ))
end
