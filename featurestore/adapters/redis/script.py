"""Law T2 as one Lua script: store each value that is newer than the one that is there.

The script gives exactly what `semantics.rows.is_newer` gives. Lua compares strings by the server's
locale, so it compares numbers: the 16 order bytes as four of 32 bits, and the bytes behind them
one by one on a full tie.

    KEYS   n keys of one server (of one slot in a cluster)
    ARGV   n packed rows, then nothing, or n instants of expiry: milliseconds, 0 for never

Returns how many keys changed. A value that comes again keeps the later expiry, so that a longer ttl
reaches the rows that are there already. An instant that is past on the server's clock, or nearly,
becomes one `LEAST_MS` ahead: a value just written is never lost at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from featurestore.adapters.redis.connection import Command

LEAST_MS = 60_000

NEWER_WINS = """
local function newer(new, old)
  local first = 5
  if #new >= 20 and #old >= 20 then
    local a1, a2, a3, a4 = struct.unpack('>I4I4I4I4', new, 5)
    local b1, b2, b3, b4 = struct.unpack('>I4I4I4I4', old, 5)
    if a1 ~= b1 then return a1 > b1 end
    if a2 ~= b2 then return a2 > b2 end
    if a3 ~= b3 then return a3 > b3 end
    if a4 ~= b4 then return a4 > b4 end
    first = 21
  end
  for i = first, math.min(#new, #old) do
    local a, b = string.byte(new, i), string.byte(old, i)
    if a ~= b then return a > b end
  end
  return math.max(#new, 4) > math.max(#old, 4)
end

local n, won, p = #KEYS, 0, 0
local dated = #ARGV > n
local least = 0
if dated then
  local now = redis.call('TIME')
  least = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + LEAST_MS
end

local function expiry(i)
  local at = dated and ARGV[n + i] or '0'
  if at ~= '0' and tonumber(at) < least then return string.format('%.0f', least) end
  return at
end

local olds = redis.call('MGET', unpack(KEYS))
local plain = {}
for i = 1, n do
  local key, new, old = KEYS[i], ARGV[i], olds[i]
  if old == new then
    local at = expiry(i)
    if at == '0' then redis.call('PERSIST', key)
    else redis.call('PEXPIREAT', key, at, 'GT') end
  elseif not old or newer(new, old) then
    local at = expiry(i)
    won = won + 1
    if at ~= '0' then redis.call('SET', key, new, 'PXAT', at)
    else
      plain[p + 1], plain[p + 2] = key, new
      p = p + 2
    end
  end
end
if p > 0 then redis.call('MSET', unpack(plain)) end
return won
""".replace("LEAST_MS", str(LEAST_MS))

DIGEST = hashlib.sha1(NEWER_WINS.encode(), usedforsecurity=False).hexdigest()

LOAD: Command = ("SCRIPT", "LOAD", NEWER_WINS)


def newer_wins(
    keys: Sequence[bytes], values: Sequence[bytes], expires_ms: Sequence[int]
) -> Command:
    """Return the command that stores a few values.

    Args:
        keys: Keys of one server, none twice.
        values: Packed rows, one a key.
        expires_ms: Instants, one a key, 0 for never; or empty when nothing expires.
    """
    return ("EVALSHA", DIGEST, len(keys), *keys, *values, *expires_ms)


def milliseconds(instant_us: int) -> int:
    """Return an instant of expiry, rounded up; 0 alone means never."""
    return max(1, -(-instant_us // 1000)) if instant_us else 0
