"""What every online store decides alike before it writes: one value, one change a key (law T2).

Pure functions over bytes, so that one store gives the answers of another. How values are kept is
the adapters' business.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.errors import RequestError
from featurestore.ports.online import VERSION, StateChange
from featurestore.semantics.rows import is_newer

NAMESPACE_BYTES = 8
FIELD_BYTES = 64


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


def check_changes(changes: Sequence[StateChange]) -> None:
    """Refuse changes that no store can make as the port says, before any of them is made.

    Raises:
        RequestError: A key stands there twice or is shorter than a namespace, a change puts no new
            `VERSION` or takes it away, or a field's name is empty or too long.
    """
    if len({change.key for change in changes}) != len(changes):
        raise RequestError(
            "Two changes of a batch have the same key.",
            allowed="one change a key",
            hint="Merge changes of a state before they are written.",
        )
    for change in changes:
        put = change.put
        if VERSION not in put or VERSION in change.delete:
            raise _wrong(change, "A change of a state puts no new version.")
        if len(change.key) < NAMESPACE_BYTES:
            raise _wrong(change, "The key of a state is shorter than a namespace.")
        if max(map(len, put)) > FIELD_BYTES or not min(map(len, put)):
            raise _wrong(change, "The name of a field is empty or too long.")


def _wrong(change: StateChange, what: str) -> RequestError:
    return RequestError(
        what,
        got=f"key {change.key[:80].hex()}, fields {sorted(change.put)[:5]}",
        allowed=f"a key of {NAMESPACE_BYTES} bytes or more, fields of 1 to {FIELD_BYTES} bytes, and"
        f" {VERSION!r} among those that are put",
    )
