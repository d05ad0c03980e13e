"""The online store in Redis 7 or Valkey: a single server, TLS or not, or a cluster."""

from featurestore.adapters.redis.store import RedisOnlineStore

__all__ = ["RedisOnlineStore"]
