"""What a Redis says that threatens what it keeps: that it evicts, or that replicas are missing.

An evicted row is answered with NOT_FOUND, as if the entity had never been there. Nothing in the
store can tell the two apart, so the server's own word is asked for and passed on.
"""

from __future__ import annotations

from collections.abc import Iterable

from featurestore.adapters.redis.connection import Command

_KEEPS = "noeviction"

ASKED: list[Command] = [("INFO", "memory"), ("INFO", "stats"), ("INFO", "replication")]
"""What each server is asked."""


def cautions_of(server: str, told: Iterable[bytes], replicas: int) -> list[str]:
    """Return sentences about one server, none when all is well.

    Args:
        server: Its name.
        told: Its answers to `ASKED`.
        replicas: How many replicas must have a write before it counts as done.
    """
    about: dict[str, str] = {}
    for text in told:
        pairs = (line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        about.update((name, value.strip()) for name, value in pairs)
    found = []
    policy, evicted = about.get("maxmemory_policy", _KEEPS), int(about.get("evicted_keys", 0))
    if policy != _KEEPS and int(about.get("maxmemory", 0)):
        found.append(
            f"The online store at {server} may evict rows, which are then NOT_FOUND: its"
            f" maxmemory-policy is {policy}. Set it to {_KEEPS}."
        )
    if evicted:
        found.append(
            f"The online store at {server} has evicted {evicted:,} keys since it started."
            " Materialize again what is missing."
        )
    following = int(about.get("connected_slaves", 0))
    if following < replicas:
        found.append(
            f"The online store at {server} takes no writes: {following} of the {replicas}"
            " replicas that they wait for follow it."
        )
    return found
