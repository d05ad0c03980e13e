"""What happens to a stream at one moment, as Lua scripts: append, take, acknowledge, leave, count.

Who reads a partition stands in a hash, the lease: a random token, the member's name and until when
it holds. Every script that reads or acknowledges looks for its token first, so that a reader that
slept too long changes nothing any more. Instants are the server's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from featurestore.adapters.redis.connection import Command
from featurestore.ports.stream_laws import SEQUENCES

_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
"""

_KEEP = (
    _NOW
    + """
local function keep(lease, token, member, milliseconds)
  local held = redis.call('HGET', lease, 'until')
  -- Written anew only once a third has passed: a server may go to its disk for each write.
  if not held or tonumber(held) - now < milliseconds * 2 / 3 then
    redis.call('HSET', lease, 'token', token, 'member', member,
               'until', string.format('%.0f', now + milliseconds))
  end
end
"""
)


@dataclass(frozen=True)
class Script:
    """A script of the server."""

    text: str

    @cached_property
    def digest(self) -> str:
        """What the server knows it by."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    @property
    def load(self) -> Command:
        """The command that has the server know it."""
        return ("SCRIPT", "LOAD", self.text)

    def call(self, keys: list[str], *arguments: str | bytes | int) -> Command:
        """Return the command that runs it."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)


# KEYS  the stream
# ARGV  how many entries to keep or '', then payloads
# Returns millisecond and sequence of the first entry; each further one has the next position. The
# server numbers entries of one millisecond without end, above all when its clock went back; we
# number 4096, then take the next millisecond.
APPEND = Script(
    """
local key, maxlen = KEYS[1], ARGV[1]
local function add(id, payload)
  if maxlen == '' then return redis.call('XADD', key, id, 'payload', payload) end
  return redis.call('XADD', key, 'MAXLEN', '~', maxlen, id, 'payload', payload)
end
local id = add('*', ARGV[2])
local ms, seq = string.match(id, '^(%d+)-(%d+)$')
ms, seq = tonumber(ms), tonumber(seq)
if seq >= SEQUENCES then
  redis.call('XDEL', key, id)
  ms, seq = ms + 1, 0
  add(string.format('%.0f-%.0f', ms, seq), ARGV[2])
end
local first = {ms, seq}
for i = 3, #ARGV do
  seq = seq + 1
  if seq == SEQUENCES then ms, seq = ms + 1, 0 end
  add(string.format('%.0f-%.0f', ms, seq), ARGV[i])
end
return first
""".replace("SEQUENCES", str(SEQUENCES))
)

# KEYS  the stream, the lease
# ARGV  group, member, token, milliseconds of the lease, how many entries, and the id behind which
#       the member's own deliveries are read again, or '' when all of them have reached it
# Returns whether we read (0 no, 1 as before, 2 anew), whether the entries are deliveries read
# again, the entries, and where there are none the id up to which all were delivered.
TAKE = Script(
    _KEEP
    + """
local stream, lease = KEYS[1], KEYS[2]
local group, member, token, milliseconds, count, behind = unpack(ARGV)
local held = redis.call('HMGET', lease, 'token', 'member', 'until')
local anew = held[1] ~= token
if anew and held[1] and held[2] ~= member and tonumber(held[3]) > now then return {0, 0, {}, ''} end
if anew then redis.call('DEL', lease) end
keep(lease, token, member, tonumber(milliseconds))

local function take_over()
  anew = true
  local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end
  local cursor = '0-0'
  repeat
    local claimed = redis.call('XAUTOCLAIM', stream, group, member, 0, cursor,
                               'COUNT', 1000, 'JUSTID')
    cursor = claimed[1]
  until cursor == '0-0'
  for _, other in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local about = {}
    for i = 1, #other, 2 do about[other[i]] = other[i + 1] end
    if about.name ~= member and about.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, about.name)
    end
  end
end

local function read(id)
  local found = redis.pcall('XREADGROUP', 'GROUP', group, member, 'COUNT', count,
                            'STREAMS', stream, id)
  if found and found.err then
    -- The stream was deleted and perhaps made anew: the group begins at its start.
    if not string.find(found.err, 'NOGROUP', 1, true) then error(found) end
    take_over()
    return read(id)
  end
  return found and found[1] and found[1][2] or {}
end

if anew then
  take_over()
  behind = '0-0'
end
local function status() return anew and 2 or 1 end
while behind ~= '' do
  local found, kept = read(behind), {}
  for _, entry in ipairs(found) do
    -- An entry may have been trimmed away since it was delivered.
    if entry[2] then kept[#kept + 1] = entry
    else redis.call('XACK', stream, group, entry[1]) end
    behind = entry[1]
  end
  if #kept > 0 then return {status(), 1, kept, ''} end
  if #found == 0 then behind = '' end
end
local found = read('>')
if #found > 0 then return {status(), 0, found, ''} end
local last = '0-0'
for _, one in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local about = {}
  for i = 1, #one, 2 do about[one[i]] = one[i + 1] end
  if about.name == group then last = about['last-delivered-id'] end
end
return {status(), 0, {}, last}
"""
)

# KEYS  the stream, the lease
# ARGV  group, member, token, milliseconds of the lease, then ids
# Returns 1, or 0 when somebody else reads.
ACKNOWLEDGE = Script(
    _KEEP
    + """
local stream, lease = KEYS[1], KEYS[2]
local group, member, token, milliseconds = unpack(ARGV, 1, 4)
if redis.call('HGET', lease, 'token') ~= token then return 0 end
keep(lease, token, member, tonumber(milliseconds))
for i = 5, #ARGV, 1000 do
  redis.call('XACK', stream, group, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
return 1
"""
)

# KEYS  the lease
# ARGV  token
LEAVE = Script(
    """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
)

# KEYS  the members
# ARGV  member, milliseconds of the lease
# Returns all members that are alive.
MEET = Script(
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
)

# KEYS  the stream
# ARGV  group
# Returns how many entries are not acknowledged, and '' or the id behind which to count more.
LAG = Script(
    """
local function about(reply)
  local found = {}
  for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
  return found
end
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, ''} end
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = about(reply)
  if group.name == ARGV[1] then
    if group.lag then return {group.pending + group.lag, ''} end
    return {group.pending, group['last-delivered-id']}
  end
end
return {redis.call('XLEN', KEYS[1]), ''}
"""
)

# KEYS  the stream
# ARGV  an id
# Returns how many entries there are behind it, and '' or the id behind which to go on. The server
# does not know once entries were deleted one by one.
COUNT = Script(
    """
local count, id = 0, ARGV[1]
for _ = 1, 50 do
  local found = redis.call('XRANGE', KEYS[1], '(' .. id, '+', 'COUNT', 100)
  if #found == 0 then return {count, ''} end
  count, id = count + #found, found[#found][1]
end
return {count, id}
"""
)

# KEYS  the stream, the lease
# ARGV  group
FORGET = Script(
    """
redis.call('DEL', KEYS[2])
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
"""
)
