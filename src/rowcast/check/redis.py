"""The Redis or Valkey of the log: its version, what becomes of the log when its memory is full, and our rights."""

from __future__ import annotations

from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from rowcast.check.results import Result
from rowcast.config import Config
from rowcast.errors import ConfigError, Unavailable
from rowcast.logs.redis_client import asked, connect
from rowcast.logs.redis_store import HEAD, ONCE, STREAM, RedisStore
from rowcast.logs.redis_url import is_redis

OLDEST = (6, 2)

_PAGE = "see docs/reference/redis-log.md"


async def check_redis(config: Config) -> AsyncIterator[Result]:
    """What the Redis must be and have; nothing where the log is another one. Never raises for what it finds."""
    if not is_redis(config.log_url):
        return
    try:
        store = RedisStore(config.log_url)
    except ConfigError as error:
        yield Result("redis", False, str(error), _PAGE)
        return
    try:
        await store.ping()
    except Unavailable as error:
        yield Result("redis", False, str(error), "set [log] url to a Redis that answers")
        return
    finally:
        await store.close()
    async with connect(config.log_url, key=STREAM) as client:
        try:
            info = await asked(client, lambda redis: redis.info())
            for result in _of(info, config, store.replicas):
                yield result
            yield await _rights(client)
        except (RedisError, OSError) as error:
            yield Result("redis", False, f"it can't be asked: {' '.join(str(error).split())}", _PAGE)


def _of(info: dict[str, object], config: Config, replicas: int) -> list[Result]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "0.0")
    # Valkey says of itself that it is a Redis 7.2, which is right for what we ask of it.
    old = tuple(int(part) for part in str(info.get("redis_version", "0.0")).split(".")[:2]) < OLDEST
    results = [Result("redis", not old, f"{name} {version}", "upgrade to Redis 6.2 or Valkey 8" if old else "")]
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        results.append(Result("maxmemory-policy", True, policy))
    else:
        detail = f"{policy}: when the memory is full the log may be evicted, and every stream is reset"
        results.append(Result("maxmemory-policy", True, detail, "run: CONFIG SET maxmemory-policy noeviction"))
    if not info.get("aof_enabled") and not int(str(info.get("rdb_last_save_time", 0))) > _started(info):
        detail = "nothing was saved to a disk since it started: after a restart of Redis every stream may be reset"
        results.append(Result("persistence", True, detail, "run: CONFIG SET appendonly yes, or know that it is so"))
    else:
        results.append(Result("persistence", True, "AOF" if info.get("aof_enabled") else "snapshots"))
    wanted = config.log.redis_replicas
    if wanted is not None and wanted > replicas:
        detail = f"{replicas} are attached, [log] redis_replicas is {wanted}: every publish would be refused"
        results.append(Result("redis replicas", False, detail, "attach more, or lower [log] redis_replicas"))
    else:
        results.append(Result("redis replicas", True, f"{replicas} are attached"))
    return results


def _started(info: dict[str, object]) -> int:
    """When the server started, as Unix time: what a server that never saved gives as its last save."""
    return int(str(info.get("server_time_usec", 0))) // 1_000_000 - int(str(info.get("uptime_in_seconds", 0))) + 1


async def _rights(client: Redis) -> Result:
    """Whether this user may do what the log does: told by doing it, to keys that lie beside the log's."""
    probe = f"{ONCE}check"

    async def ask(redis: Redis) -> None:
        await redis.register_script("redis.call('SET', KEYS[1], '1', 'PX', 1000) return redis.call('GET', KEYS[1])")(
            [probe]
        )
        await redis.delete(probe)
        await redis.hmget(HEAD, ["inc"])
        await redis.xrange(STREAM, count=1)
        await redis.xread({STREAM: "0-0"}, count=1)
        await redis.xtrim(STREAM, minid="0-0", approximate=False)
        await redis.wait(0, 1)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hmget(HEAD, ["inc"])
            await pipe.execute()

    try:
        await asked(client, ask)
    except NoPermissionError as error:
        return Result("rights", False, f"[log] url: {' '.join(str(error).split())}", f"{_PAGE}: the ACL line there")
    except ResponseError as error:
        return Result("rights", False, f"[log] url: {' '.join(str(error).split())}", _PAGE)
    return Result("rights", True, "this user may keep the log")
