"""States in Redis: a hash each, compared and changed in one Lua script.

    KEYS   n keys of one server (of one slot in a cluster), none twice
    ARGV   for each key: 2 x fields to put, fields to delete, instant of expiry (milliseconds, 0 for
           never), whether there is a version, that version; fields and values to put; fields to
           delete

Returns a text of n digits, 1 where the change was made. All versions are compared before anything
is changed, so a script that meets a key of another kind changes nothing; and once it has changed
something, the server lets it end, also when memory runs out. An instant that is past on the
server's clock, or nearly, becomes one `LEAST_MS` ahead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from featurestore.adapters.redis.connection import Command
from featurestore.adapters.redis.script import LEAST_MS, milliseconds
from featurestore.ports.online import VERSION, StateChange, StateRead

# A script holds the server for about a millisecond at this size, unless one change alone is
# larger, so that readers get in between. Bytes, with those that a field costs beside its own.
_SCRIPT_BYTES = 1 << 17
_FIELD_COST = 128
# What is sent in one round trip, which the store's timeout bounds.
_TRIP_BYTES = 1 << 23

COMPARE_AND_CHANGE = """
local wanted = {}
local p = 1
for i = 1, #KEYS do
  local puts, deletes = tonumber(ARGV[p]), tonumber(ARGV[p + 1])
  local found = redis.call('HGET', KEYS[i], 'VERSION')
  if ARGV[p + 3] == '1' then wanted[i] = found == ARGV[p + 4]
  else wanted[i] = not found end
  p = p + 5 + puts + deletes
end

local function each(command, key, first, last)
  while first <= last do
    -- Lua takes no more than some thousands at once.
    local to = math.min(first + 3999, last)
    redis.call(command, key, unpack(ARGV, first, to))
    first = to + 1
  end
end

local made, least = {}, nil
p = 1
for i = 1, #KEYS do
  local key = KEYS[i]
  local puts, deletes, at = tonumber(ARGV[p]), tonumber(ARGV[p + 1]), ARGV[p + 2]
  local first = p + 5
  local behind = first + puts
  if wanted[i] then
    made[i] = '1'
    each('HDEL', key, behind, behind + deletes - 1)
    each('HSET', key, first, behind - 1)
    if at ~= '0' then
      if not least then
        local now = redis.call('TIME')
        least = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + LEAST_MS
      end
      if tonumber(at) < least then at = string.format('%.0f', least) end
      redis.call('PEXPIREAT', key, at)
    elseif ARGV[p + 3] == '1' then redis.call('PERSIST', key) end
  else made[i] = '0' end
  p = behind + deletes
end
return table.concat(made)
""".replace("LEAST_MS", str(LEAST_MS)).replace("VERSION", VERSION.decode())

DIGEST = hashlib.sha1(COMPARE_AND_CHANGE.encode(), usedforsecurity=False).hexdigest()
LOAD: Command = ("SCRIPT", "LOAD", COMPARE_AND_CHANGE)

Batch = tuple[Sequence[int], Command]
"""Positions of changes, and the command that makes them."""


def read_state(read: StateRead) -> Command:
    """Return the command that reads the fields, one at least, of a state."""
    return ("HMGET", read.key, *read.fields)


def trips(changes: Sequence[StateChange], *, together: bool) -> Iterator[list[Batch]]:
    """Return the commands of one round trip after the other.

    Args:
        changes: All changes.
        together: Whether one command may make several changes.
    """
    trip: list[Batch] = []
    group: list[int] = []
    sent = size = 0
    for position, change in enumerate(changes):
        cost = sum(map(len, change.put.values()))
        cost += _FIELD_COST * (len(change.put) + len(change.delete))
        if group and (not together or size + cost > _SCRIPT_BYTES):
            trip.append((group, _command(changes, group)))
            group, size = [], 0
        if sent + cost > _TRIP_BYTES and trip:
            yield trip
            trip, sent = [], size
        group.append(position)
        size += cost
        sent += cost
    if group:
        trip.append((group, _command(changes, group)))
    if trip:
        yield trip


def _command(changes: Sequence[StateChange], group: Sequence[int]) -> Command:
    keys: list[bytes] = []
    rest: list[bytes | int] = []
    for position in group:
        change = changes[position]
        expected = change.expected
        keys.append(change.key)
        rest += (
            2 * len(change.put),
            len(change.delete),
            milliseconds(change.expires_us),
            0 if expected is None else 1,
            expected or b"",
        )
        for item in change.put.items():
            rest += item
        rest += change.delete
    return ("EVALSHA", DIGEST, len(keys), *keys, *rest)
