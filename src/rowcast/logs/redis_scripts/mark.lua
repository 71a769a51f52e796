-- Says how far the WAL is in the log, and writes something after that: what a WAIT behind it can wait for.
--
-- KEYS  1 the stream, 2 the head hash
--
-- WAIT waits for what its own connection has written, and so for all that was written before that, by anybody. On a
-- server that lost the end of the log, what is returned is what that server has: never more than the replicas get.
--
-- Returns {incarnation, WAL position}, or {} when there is no log.

local head = redis.call('HMGET', KEYS[2], 'inc', 'wal')
if not head[1] then return {} end
redis.call('HSET', KEYS[2], 'inc', head[1])
return {head[1], head[2]}
