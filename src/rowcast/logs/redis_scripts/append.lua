-- The append rule: puts a batch of the WAL's entries at the end of the log, or says why not.
--
-- KEYS  1 the stream, 2 the head hash
-- ARGV  1 the writer's incarnation, 2 the WAL position just before the batch, 3 the position of its end,
--       4 the batch, 5 Unix time in milliseconds, 6 the number of entries
-- Positions are written `major-minor`, both decimal with up to 20 digits: Lua's numbers are doubles, which hold
-- neither, so they are compared as padded text.
--
-- Returns {code, what the head says}:
--   OK      appended
--   EMPTY   there is no head: the log was flushed, or never begun
--   FENCED  another incarnation has begun
--   DUP     everything in the batch is in the log already
--   GAP     the log lacks something that came before the batch
--   ORDER   entries were published up to or beyond the batch's end; it never happens while readers and writers
--           agree about places, and nothing is appended then

local function padded(place)
  local major, minor = string.match(place, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #major) .. major .. string.rep('0', 20 - #minor) .. minor
end

local head = redis.call('HMGET', KEYS[2], 'inc', 'wal', 'top', 'pub')
local inc, wal, top, pub = head[1], head[2], head[3], head[4]
if not inc then return {'EMPTY', ''} end
if inc ~= ARGV[1] then return {'FENCED', inc} end
local before, last = padded(wal), padded(ARGV[3])
if last <= before then return {'DUP', wal} end
if padded(ARGV[2]) > before then return {'GAP', wal} end
if last <= padded(top) then return {'ORDER', top} end
redis.call('XADD', KEYS[1], ARGV[3], 'i', inc, 'w', wal, 'p', pub, 'b', ARGV[4], 't', ARGV[5], 'c', ARGV[6])
redis.call('HSET', KEYS[2], 'wal', ARGV[3], 'top', ARGV[3])
return {'OK', ARGV[3]}
