-- Begins a new incarnation of the log: what the old one held is gone, and every reader starts anew.
--
-- KEYS  1 the stream, 2 the head hash
-- ARGV  1 the incarnation that is to be replaced ('': there must be none), 2 the new one,
--       3 the place from which on it is complete, 4 which database it is fed from ('': none)
--
-- Returns {code, incarnation}: OK, or FENCED when somebody else was first.

local inc = redis.call('HGET', KEYS[2], 'inc') or ''
if inc ~= ARGV[1] then return {'FENCED', inc} end
-- Positions of the new incarnation may be lower than those of the old: XADD would refuse them.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], 'inc', ARGV[2], 'wal', ARGV[3], 'top', ARGV[3], 'pub', ARGV[3] .. '/', 'db', ARGV[4])
return {'OK', ARGV[2]}
