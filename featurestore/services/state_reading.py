"""Aggregated views' part of an online answer: windows over states, in one round trip (W2-W6, V2).

The fields that windows need follow from the instant. How deep the trees of states go is only known
once they are read, so it is guessed from what was read before; a wrong guess costs a second round
trip, never a value. Each state is read whole, at one moment (law O2).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.compile.aggregates import with_default
from featurestore.compile.state_plan import state_schema, window_features
from featurestore.dtypes import to_pylist
from featurestore.errors import AsOfBeforeRowError
from featurestore.ports.online import VERSION, OnlineStore, StateRead
from featurestore.semantics.packed import NOT_FOUND, PRESENT
from featurestore.semantics.plain import Plain, from_arrow, validity_of
from featurestore.semantics.states.schema import GRACE_US
from featurestore.semantics.timeline import format_instant

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import ViewPlan
    from featurestore.semantics.states.evaluation import StateRow

# What states without a tree are asked for in vain, together, before asking twice is cheaper.
_VAIN_FIELDS = 100
_MEMORY = 0.9
_NO_POSITION = -1


class WindowReader:
    """Reads features of one aggregated view; made once and used for every request.

    Args:
        view: The view.
        features: The names of the features to read.
        grace_us: How long events are kept beyond the reach of the widest window.
    """

    def __init__(
        self, view: ViewPlan, features: Sequence[str], *, grace_us: int = GRACE_US
    ) -> None:
        from featurestore.semantics.states.reading import StateQuery

        self.view = view
        self.indexes = [i for i, feature in enumerate(view.features) if feature.name in features]
        self._plans = [view.aggregates[i] for i in self.indexes]
        schema = state_schema(view)
        self.retention = schema.retention(grace_us)
        self.query = StateQuery(schema, window_features(view, self._plans))
        # Guesses: how deep trees go, and how many states have one. Any thread may change them.
        self._depth: int | None = None
        self._share = 0.0

    def guess(self, instant: int, states: int) -> tuple[int | None, list[bytes]]:
        """Return how deep trees are thought to go, None for no trees, and the fields to ask for."""
        if self._depth is None:
            return None, []
        names = self.query.names(instant, self._depth)
        if (1 - self._share) * states * len(names) > _VAIN_FIELDS:
            return None, []
        return self._depth, names

    def learn(self, depths: Sequence[int], states: int) -> None:
        """Remember how many of some states had trees, and how deep these were."""
        if not states:
            return
        self._share = _MEMORY * self._share + (1 - _MEMORY) * len(depths) / states
        if depths:
            self._depth = min(depths) if self._depth is None else min(self._depth, *depths)

    def values(self, rows: Sequence[StateRow], instant: int) -> list[pa.Array]:
        """Return each feature, a value a state."""
        arrays = self.query.evaluate(rows, instant)
        return [with_default(a, plan) for a, plan in zip(arrays, self._plans, strict=True)]


@dataclass
class StateReading:
    """What one request reads of one view.

    Attributes:
        reader: The view's.
        keys: The states, each once.
        places: The number of each entity row's state; None for an entity without a key (law K2).
    """

    reader: WindowReader
    keys: list[bytes]
    places: list[int | None]
    _rows: dict[int, StateRow] = field(default_factory=dict)
    _open: dict[int, list[bytes]] = field(default_factory=dict)
    _depth: int | None = None

    @classmethod
    def of(cls, reader: WindowReader, lead: bytes, keys: Sequence[bytes | None]) -> StateReading:
        """Return the reading of entity rows.

        Args:
            reader: The view's.
            lead: The namespace of the view's keys.
            keys: The key of each entity row, None where a part is null.
        """
        numbers: dict[bytes, int] = {}
        places = [
            None if key is None else numbers.setdefault(lead + key, len(numbers)) for key in keys
        ]
        return cls(reader, list(numbers), places)

    def first(self, instant: int) -> list[StateRead]:
        """Return what to read at first."""
        self._depth, names = self.reader.guess(instant, len(self.keys))
        fields = _fields(names)
        self._open = dict.fromkeys(range(len(self.keys)), fields)
        return [StateRead(key, fields) for key in self.keys]

    def again(self, instant: int, asked: int) -> list[StateRead]:
        """Return what is still to be read: trees that go deeper than was thought.

        Args:
            instant: The instant to answer for.
            asked: The one for which fields were asked so far.
        """
        self._open = {}
        known = self._depth if instant == asked else None
        for number, row in self._rows.items():
            if row.header is None or row.nodes is None:
                continue
            if known is None or row.header.depth < known:
                names = self.reader.query.names(instant, row.header.depth)
                if any(name not in row.nodes for name in names):
                    self._open[number] = _fields(names)
        return [StateRead(self.keys[number], fields) for number, fields in self._open.items()]

    def take(self, found: Sequence[Sequence[bytes | None]]) -> None:
        """Take what was read, as it was asked for."""
        for (number, fields), values in zip(self._open.items(), found, strict=True):
            nodes = dict(zip(fields[2:], values[2:], strict=True))
            self._rows[number] = self.reader.query.row(values[0], values[1], nodes)

    def row(self, number: int) -> StateRow:
        """Return a state that was read."""
        return self._rows[number]

    def block(self, instant: int, now: int) -> WindowBlock:
        """Return the view's part of the answer.

        Raises:
            AsOfBeforeRowError: What was then is no longer kept.
        """
        rows = [self._rows[number] for number in range(len(self.keys))]
        trees = [r.header.depth for r in rows if r.header is not None and r.nodes is not None]
        self.reader.learn(trees, len(rows))
        self._check(rows, instant, now)
        return WindowBlock(self.reader, rows, self.places, instant)

    def _check(self, rows: Sequence[StateRow], instant: int, now: int) -> None:
        needed = self.reader.query.first_needed(instant)
        retention = self.reader.retention
        if needed is None:
            return
        unseen = None if retention is None else now - retention
        for row in rows:
            kept = unseen if row.header is None else row.header.horizon
            if kept is not None and needed < kept:
                raise _too_early(self.reader.view, instant, needed, kept)


def _fields(names: Sequence[bytes]) -> list[bytes]:
    from featurestore.semantics.states.layout import RECENT

    return [VERSION, RECENT, *names]


def read_together(
    online: OnlineStore,
    readings: Sequence[StateReading],
    rows: Sequence[bytes],
    instant: int,
    timeout: float | None,
) -> list[bytes | None]:
    """Read states, and the value of each row, in one round trip; return the values.

    Args:
        online: The store.
        readings: What is read; they take what was found.
        rows: Keys of rows.
        instant: The instant to answer for, as far as it is known.
        timeout: Seconds to wait at most.
    """
    reads = [reading.first(instant) for reading in readings]
    wanted = [read for part in reads for read in part]
    if not wanted and not rows:
        return []
    found, values = online.read_states(wanted, rows, timeout=timeout)
    _hand_out(readings, reads, found)
    return values


def read_deeper(
    online: OnlineStore,
    readings: Sequence[StateReading],
    instant: int,
    asked: int,
    timeout: float | None,
) -> None:
    """Read what the first round trip did not ask for.

    Args:
        online: The store.
        readings: What is read.
        instant: The instant to answer for.
        asked: The instant of the first round trip.
        timeout: Seconds to wait at most.
    """
    while True:
        reads = [reading.again(instant, asked) for reading in readings]
        wanted = [read for part in reads for read in part]
        if not wanted:
            return
        _hand_out(readings, reads, online.read_states(wanted, timeout=timeout)[0])


def _hand_out(
    readings: Sequence[StateReading],
    reads: Sequence[Sequence[StateRead]],
    found: Sequence[Sequence[bytes | None]],
) -> None:
    start = 0
    for reading, part in zip(readings, reads, strict=True):
        reading.take(found[start : start + len(part)])
        start += len(part)


class WindowBlock:
    """One aggregated view's part of an answer; see `services.response.Block`.

    Values are as of the instant that was asked for, so that is their event timestamp.

    Args:
        reader: The view's.
        rows: The states.
        places: The number of each entity row's state.
        instant: The instant to answer for.
    """

    def __init__(
        self,
        reader: WindowReader,
        rows: Sequence[StateRow],
        places: Sequence[int | None],
        instant: int,
    ) -> None:
        stamp = instant.to_bytes(8, "little", signed=True)
        self.statuses = bytes(NOT_FOUND if place is None else PRESENT for place in places)
        self.events = b"".join(bytes(8) if place is None else stamp for place in places)
        self._states = rows
        self._places = places
        self.applied: Mapping[str, bytes] = self._positions()
        values = reader.values(rows, instant)
        if list(places) != list(range(len(rows))):
            import pyarrow as pa

            taken = pa.array(places, type=pa.int64())
            values = [array.take(taken) for array in values]
        self._arrays: Mapping[int, pa.Array] = dict(zip(reader.indexes, values, strict=True))
        self._dtypes = [feature.type for feature in reader.view.features]

    def plains(self, indexes: Sequence[int]) -> Sequence[Plain | None]:
        """Return columns as plain bytes, None where their width varies."""
        return [
            None
            if self._dtypes[index].width is None
            else from_arrow(self._dtypes[index], self._arrays[index])
            for index in indexes
        ]

    def wholes(self, indexes: Sequence[int]) -> None:  # noqa: ARG002
        """Return nothing: what is computed is Arrow."""
        return

    def validity(self, index: int) -> bytes | None:
        """Return the column's validity."""
        return validity_of(self._arrays[index])

    def nulls(self, indexes: Sequence[int]) -> int:
        """Return how many values of columns are null."""
        return sum(self._arrays[index].null_count for index in indexes)

    def array(self, index: int) -> pa.Array:
        """Return the column as an Arrow array."""
        return self._arrays[index]

    def pylist(self, index: int) -> list[Any]:
        """Return the column as Python values; a map is a dict."""
        return to_pylist(self._arrays[index])

    def _positions(self) -> Mapping[str, bytes]:
        """Return for each stream partition the highest position applied to each entity."""
        known = [{} if row.header is None else row.header.applied for row in self._states]
        partitions = sorted({partition for positions in known for partition in positions})
        found = {}
        for partition in partitions:
            positions = [
                _NO_POSITION if place is None else known[place].get(partition, _NO_POSITION)
                for place in self._places
            ]
            found[partition] = struct.pack(f"<{len(positions)}q", *positions)
        return found


def _too_early(view: ViewPlan, instant: int, needed: int, kept: int) -> AsOfBeforeRowError:
    return AsOfBeforeRowError(
        f"The windows of '{view.name}' would need events that are no longer kept online.",
        where=f"view '{view.name}'",
        got=f"as_of {format_instant(instant)}, windows from {format_instant(needed)}",
        allowed=f"windows from {format_instant(kept)} or later",
        hint="Ask for a later as_of, or for fewer windows; get_historical_features knows the past.",
    )
