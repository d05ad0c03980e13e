"""What every online store decides alike before it writes: one value a key (law T2).

Pure functions over bytes, so that one store gives the answers of another. How values are kept is
the adapters' business.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.errors import RequestError
from featurestore.semantics.rows import is_newer


def newest_per_key(
    keys: Sequence[bytes], values: Sequence[bytes], expires_us: Sequence[int] | None = None
) -> Sequence[int]:
    """Return the position of the newest value of each key of a batch.

    >>> newest_per_key([b"a", b"b", b"a"], [b"....1", b"....1", b"....2"])
    [2, 1]

    Args:
        keys: The keys; where none repeats, every position is returned at little cost.
        values: Packed rows, one a key.
        expires_us: Instants, one a key, or None. Only counted.

    Raises:
        RequestError: The arguments differ in length.
    """
    if len(values) != len(keys) or (expires_us is not None and len(expires_us) != len(keys)):
        raise RequestError(
            "Keys, values and instants of expiry of a batch differ in number.",
            got=f"{len(keys)} keys, {len(values)} values"
            + ("" if expires_us is None else f", {len(expires_us)} instants"),
        )
    if len(set(keys)) == len(keys):
        return range(len(keys))
    newest: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        best = newest.setdefault(key, position)
        if is_newer(values[position], values[best]):
            newest[key] = position
    return list(newest.values())
