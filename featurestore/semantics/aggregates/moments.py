"""Moments: how many values there were, and the exact sums of them and of their powers (law W5).

A state is a column of a matrix of whole numbers: counts, and the digits of each sum (see `limbs`).
Merging adds columns, so ranges are sums between two places of a running total, or sums of slices;
whole numbers do not drift, and both are equal. Nothing is rounded before a result is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import RequestError
from featurestore.semantics.aggregates import blobs, limbs
from featurestore.semantics.aggregates.interface import Algebra, Events, Plan, States
from featurestore.semantics.aggregates.merging import FoldedStates, reduce_groups, same_kind
from featurestore.semantics.aggregates.moment_results import finalize
from featurestore.semantics.aggregates.spec import AggregateSpec
from featurestore.semantics.aggregates.values import plain, typed, validity

if TYPE_CHECKING:
    import pyarrow as pa

Int64s = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Label = tuple[int, int]

# Labels of rows of the matrix: counts have power 0; a digit has its (power, place).
COUNT: Label = (0, 0)
UP: Label = (0, 1)
DOWN: Label = (0, 2)
# How many digits of base 2**32 may be added up before they must be carried.
_ROOM = 1 << 30
# Ranges that hold so many states for each state that there is are looked up in running totals.
_DENSE = 4


class MomentStates(FoldedStates):
    """States of one order.

    Args:
        order: The highest power that is summed up; 0 counts only.
        labels: What each row of the matrix is, sorted; the first is the count.
        matrix: int64[labels, states].
        weight: How many digits below 2**32 any digit is the sum of, at most.
    """

    def __init__(
        self, order: int, labels: tuple[Label, ...], matrix: Int64s, weight: int = 1
    ) -> None:
        self.order = order
        self.labels = labels
        self.matrix = matrix
        self.weight = weight
        self._totals: Int64s | None = None

    def __len__(self) -> int:
        return int(self.matrix.shape[1])

    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Return which states have counted nothing."""
        nothing: npt.NDArray[np.bool_] = self.row(COUNT) == 0
        return nothing

    def row(self, label: Label) -> Int64s:
        """Return one number of every state; zero where no state has any."""
        if label not in self.labels:
            return np.zeros(len(self), dtype=np.int64)
        row: Int64s = self.matrix[self.labels.index(label)]
        return row

    def digits(self, power: int) -> dict[int, Int64s]:
        """Return the digits of the sums of a power by place."""
        return {
            place: self.matrix[row]
            for row, (label, place) in enumerate(self.labels)
            if label == power
        }

    def take(self, indexes: Int64s) -> MomentStates:
        """Return the states at these places."""
        return self.made(self.matrix[:, indexes], self.weight)

    def fold(self, indexes: Int64s, offsets: Int64s) -> MomentStates:
        """Return merged groups of states."""
        longest = int(np.diff(offsets).max(initial=0))
        roomy = self._roomy(longest)
        sums = reduce_groups(np.add, roomy.matrix[:, indexes], offsets, 0)
        return roomy.made(sums, roomy.weight * max(1, longest))

    def join(self, parts: Sequence[MomentStates]) -> MomentStates:
        """Return the states of all parts."""
        return concat(self.order, parts)

    def merge(self, starts: Int64s, ends: Int64s, plan: Plan = "auto") -> MomentStates:
        """Return the merged states of ranges."""
        lengths = np.maximum(ends - starts, 0)
        longest = int(lengths.max(initial=0))
        roomy = self._roomy(longest)
        weight = roomy.weight * max(1, longest)
        if plan == "auto":
            is_dense = int(lengths.sum()) > _DENSE * len(self)
            plan = "prefix" if is_dense or self._totals is not None else "frames"
        if plan == "frames":
            return roomy.made(roomy.slices(starts, lengths), weight)
        totals = roomy.running_totals()
        sums = totals[:, starts + lengths]
        sums -= totals[:, starts]
        return roomy.made(sums, weight)

    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state."""
        sums = [limbs.integers(self.digits(power), len(self)) for power in self._powers()]
        counts = [self.row(label).tolist() for label in (COUNT, UP, DOWN)]
        numbers: list[int] = []
        sizes: list[int] = [0]
        payloads: list[bytes] = []
        for state, (count, up, down) in enumerate(zip(*counts, strict=True)):
            payload = b""
            if count:
                numbers += (count, up, down) if self.order else (count,)
                for integers, base in sums:
                    data, place = _bytes_of(integers[state], 4 * base)
                    numbers += (place << 1 ^ place >> 63, len(data))
                    payload += data
            sizes.append(len(numbers))
            payloads.append(payload)
        return blobs.pack(
            np.array(numbers, dtype=np.int64), np.array(sizes, dtype=np.int64), payloads
        )

    def _powers(self) -> range:
        return range(1, self.order + 1)

    def made(self, matrix: Int64s, weight: int) -> MomentStates:
        """Return other states with the same labels."""
        return MomentStates(self.order, self.labels, matrix, weight)

    def slices(self, starts: Int64s, lengths: Int64s) -> Int64s:
        """Return the sums of slices, without copying them."""
        sums = np.zeros((len(self.labels), len(starts)), dtype=np.int64)
        found = np.flatnonzero(lengths > 0)
        if not len(found):
            return sums
        # In order of their starts, what lies between two slices is passed once at most.
        found = found[np.argsort(starts[found], kind="stable")]
        edges = np.empty(2 * len(found), dtype=np.int64)
        edges[::2] = starts[found]
        edges[1::2] = starts[found] + lengths[found]
        # The end of a slice may lie behind the last state: one more makes it a place.
        padded = np.concatenate(
            [self.matrix, np.zeros((len(self.labels), 1), dtype=np.int64)], axis=1
        )
        sums[:, found] = np.add.reduceat(padded, edges, axis=1)[:, ::2]
        return sums

    def running_totals(self) -> Int64s:
        """Return the sums of all states in front of each place."""
        if self._totals is None:
            self._totals = np.zeros((len(self.labels), len(self) + 1), dtype=np.int64)
            np.cumsum(self.matrix, axis=1, out=self._totals[:, 1:])
        return self._totals

    def _roomy(self, longest: int) -> MomentStates:
        """Return equal states whose digits have room for sums of so many."""
        if self.order == 0 or self.weight * max(1, longest) <= _ROOM:
            return self
        columns = {label: self.row(label) for label in self.labels if label[0] == 0}
        for power in self._powers():
            for place, digit in limbs.balanced(self.digits(power)).items():
                columns[power, place] = digit
        return of_columns(self.order, columns, len(self))


class MomentAlgebra(Algebra):
    """Moments up to an order of a column of numbers, or the count of anything.

    Args:
        state: The spec that they are for.
        order: The highest power.
    """

    def __init__(self, state: AggregateSpec, order: int) -> None:
        self._order = order
        self._dtype = state.dtype
        self._is_float = state.dtype is not None and state.dtype.scalar in {"float32", "float64"}

    def lift(self, events: Events) -> MomentStates:
        """Return one state an event."""
        rows = len(events.instants)
        if self._dtype is None or events.values is None:
            return of_columns(0, {COUNT: np.ones(rows, dtype=np.int64)}, rows)
        read = self._known_floats if self._is_float else self._known
        columns, values = read(typed(events.values, self._dtype.arrow))
        if self._order and values is not None:
            columns |= {(1, place): digit for place, digit in limbs.split(values).items()}
            if self._order > 1:
                columns |= limbs.split_powers(values, self._order)
        return of_columns(self._order, columns, rows)

    def decode(self, data: Sequence[bytes]) -> MomentStates:
        """Return the states of canonical bytes."""
        numbers, offsets, payloads = blobs.unpack(data)
        fields = 3 + 2 * self._order if self._order else 1
        found = np.flatnonzero(np.diff(offsets))
        if (np.diff(offsets)[found] != fields).any():
            raise blobs.damaged(f"{len(numbers)} numbers in {len(found)} states")
        table = numbers.reshape(len(found), fields)
        columns: dict[Label, Int64s] = {}
        for at, label in enumerate((COUNT, UP, DOWN)[: 3 if self._order else 1]):
            columns[label] = np.zeros(len(data), dtype=np.int64)
            columns[label][found] = table[:, at]
        used = [0] * len(found)
        cut = [payloads[state] for state in found.tolist()]
        for power in range(1, self._order + 1):
            places = blobs.unzigzag(table[:, 1 + 2 * power]).tolist()
            sizes = table[:, 2 + 2 * power].tolist()
            parts = [p[u : u + s] for p, u, s in zip(cut, used, sizes, strict=True)]
            used = [u + s for u, s in zip(used, sizes, strict=True)]
            for place, digit in _digits_of(parts, places).items():
                columns[power, place] = np.zeros(len(data), dtype=np.int64)
                columns[power, place][found] = digit
        if used != [len(payload) for payload in cut]:
            raise blobs.damaged("a sum of another length")
        return of_columns(self._order, columns, len(data))

    def concat(self, parts: Sequence[States]) -> MomentStates:
        """Return the states of all parts."""
        return concat(self._order, same_kind(parts, MomentStates))

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return the result of each state."""
        return finalize(spec, states)

    def _known(self, values: pa.Array) -> tuple[dict[Label, Int64s], Numbers | None]:
        """Return the count, and whole numbers with 0 for what is null."""
        valid = validity(values)
        count = np.ones(len(values), dtype=np.int64) if valid is None else valid.astype(np.int64)
        if not self._order or self._dtype is None:
            return {COUNT: count}, None
        numbers = plain(values, self._dtype.numpy).astype(np.int64)
        return {COUNT: count}, numbers if valid is None else numbers * count

    def _known_floats(self, values: pa.Array) -> tuple[dict[Label, Int64s], Numbers | None]:
        """Return the counts, and doubles with 0 for what is null or not finite."""
        assert self._dtype is not None  # noqa: S101
        valid = validity(values)
        numbers: Any = plain(values, self._dtype.numpy)
        finite = np.isfinite(numbers)
        if valid is None and finite.all():
            return {COUNT: np.ones(len(values), dtype=np.int64)}, numbers.astype(np.float64)
        known = np.ones(len(values), dtype=bool) if valid is None else valid
        columns = {COUNT: (known & ~np.isnan(numbers)).astype(np.int64)}
        for label, infinity in ((UP, np.inf), (DOWN, -np.inf)):
            found = known & (numbers == infinity)
            if found.any():
                columns[label] = found.astype(np.int64)
        return columns, np.where(known & finite, numbers, 0).astype(np.float64)


def of_columns(order: int, columns: dict[Label, Int64s], rows: int) -> MomentStates:
    """Return states of columns by label."""
    labels = tuple(sorted(columns))
    matrix = np.empty((len(labels), rows), dtype=np.int64)
    for at, label in enumerate(labels):
        matrix[at] = columns[label]
    return MomentStates(order, labels, matrix)


def concat(order: int, parts: Sequence[MomentStates]) -> MomentStates:
    """Return the states of all parts, whatever digits each of them has."""
    if len(parts) == 1:
        return parts[0]
    if any(part.order != order for part in parts):
        raise RequestError("States of different aggregates cannot be put together.")
    labels = tuple(sorted({COUNT}.union(*[part.labels for part in parts])))
    matrix = np.zeros((len(labels), sum(map(len, parts))), dtype=np.int64)
    start = 0
    for part in parts:
        stop = start + len(part)
        if part.labels == labels:
            matrix[:, start:stop] = part.matrix
        else:
            matrix[[labels.index(label) for label in part.labels], start:stop] = part.matrix
        start = stop
    return MomentStates(order, labels, matrix, max([1, *(part.weight for part in parts)]))


def _bytes_of(integer: int, place: int) -> tuple[bytes, int]:
    """Return the shortest bytes of integer * 256**place, two's complement, and their place."""
    if not integer:
        return b"", 0
    data = integer.to_bytes(integer.bit_length() // 8 + 1, "little", signed=True)
    short = data.lstrip(b"\0")
    return short, place + len(data) - len(short)


def _digits_of(parts: list[bytes], places: list[int]) -> dict[int, Int64s]:
    """Return the digits of numbers that `_bytes_of` wrote, by place."""
    found = [place for place, part in zip(places, parts, strict=True) if part]
    if not found:
        return {}
    base = min(found) // 4
    ends = [place + len(part) for place, part in zip(places, parts, strict=True) if part]
    width = 4 * (max(ends) // 4 + 1 - base)
    data = b"".join(
        (int.from_bytes(part, "little", signed=True) << 8 * (place - 4 * base)).to_bytes(
            width, "little", signed=True
        )
        if part
        else bytes(width)
        for part, place in zip(parts, places, strict=True)
    )
    table = np.frombuffer(data, dtype="<u4").reshape(len(parts), width // 4)
    columns = {base + at: table[:, at].astype(np.int64) for at in range(width // 4)}
    top = base + width // 4 - 1
    columns[top] = columns[top].astype(np.int32).astype(np.int64)
    return {place: digit for place, digit in columns.items() if digit.any()}
