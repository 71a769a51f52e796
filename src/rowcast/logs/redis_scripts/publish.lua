-- Puts a published entry behind everything that the log holds.
--
-- KEYS  1 the stream, 2 the head hash, 3 the mark of an entry that is to be appended only once, where it is one
-- ARGV  1 a nonce that names the entry, 2 the entry as a batch, 3 Unix time in milliseconds,
--       4 for how many milliseconds the mark is kept
--
-- The nonce stands beside the place in the head: after a fail-over that lost the entry, another one can get the
-- very same place, and readers must see that it is not theirs.
--
-- Returns {code, …}:
--   OK, place   appended
--   DUP, place  the mark is there: it was appended before, at that place
--   EMPTY       there is no head: the log was flushed, or never begun
--   FULL        the room between two changes of the WAL is used up, until the WAL moves on

local function padded(place)
  local major, minor = string.match(place, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #major) .. major .. string.rep('0', 20 - #minor) .. minor
end

local before = KEYS[3] and redis.call('GET', KEYS[3])
if before then return {'DUP', before} end
local head = redis.call('HMGET', KEYS[2], 'inc', 'wal', 'top', 'pub', 'db')
local inc, wal, top, pub, db = head[1], head[2], head[3], head[4], head[5]
if not inc then return {'EMPTY', ''} end
local above = top
if padded(wal) > padded(top) then above = wal end
local major, minor = string.match(above, '^(%d+)-(%d+)$')
local number = tonumber(minor) + 1
-- Below 2^53 a double is exact; '%.0f' since Lua would write 1e+14.
if number >= 9007199254740992 then return {'FULL', above} end
if db ~= '' and number % 1048576 == 0 then return {'FULL', above} end
local place = major .. '-' .. string.format('%.0f', number)
redis.call('XADD', KEYS[1], place, 'i', inc, 'w', wal, 'p', pub, 'n', ARGV[1], 'b', ARGV[2], 't', ARGV[3], 'c', '1')
redis.call('HSET', KEYS[2], 'top', place, 'pub', place .. '/' .. ARGV[1])
if KEYS[3] then redis.call('SET', KEYS[3], place, 'PX', ARGV[4]) end
return {'OK', place}
