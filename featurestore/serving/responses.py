"""Answers as the client reads them: the message is kept, columns become values when asked for."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType, parse, to_pylist
from featurestore.errors import FeatureStoreError
from featurestore.semantics import plain as plains
from featurestore.semantics.packed import NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, PRESENT
from featurestore.semantics.plain import Plain
from featurestore.services.response import FeatureLayout, Layout, OnlineResponse, SourceLayout
from featurestore.serving.conversion import SCALARS, dtype_of, read_arrow, read_plain
from featurestore.serving.v1 import serving_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa

_KNOWN_STATUSES = frozenset((PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE))


def read_response(message: pb.GetOnlineFeaturesResponse) -> OnlineResponse:
    """Return the answer that a message holds.

    Raises:
        FeatureStoreError: It breaks the protocol.
    """
    rows = message.rows
    columns, keys = list(message.features), list(message.entity_keys)
    try:
        layout = _layout(
            message.service or None,
            tuple((column.name, _kind(column)) for column in keys),
            tuple([(column.name, _kind(column)) for column in columns]),
            tuple(message.feature_sources),
            tuple((s.view, s.alias, s.fingerprint) for s in message.sources),
        )
    except ValueError as error:
        what = "The server's answer breaks the protocol."
        raise FeatureStoreError(what, got=str(error)) from error
    types = [feature.dtype for feature in layout.features]
    blocks = [
        _WireBlock(columns, types, rows, (*_seen(s, rows), _applied(s, rows)))
        for s in message.sources
    ]
    key_types = [dtype for _, dtype in layout.keys]
    echo = _WireBlock(keys, key_types, rows, (b"", b"", {}))
    return OnlineResponse(layout, rows, message.as_of, echo, blocks)


@functools.lru_cache(maxsize=64)
def _layout(
    service: str | None,
    keys: tuple[tuple[str, str], ...],
    features: tuple[tuple[str, str], ...],
    origins: tuple[int, ...],
    sources: tuple[tuple[str, str, str], ...],
) -> Layout:
    """Return a layout; answers to one request share it."""
    if any(origin >= len(sources) for origin in origins):
        raise ValueError("a feature comes from a source that is not there")
    columns = zip(features, origins, strict=True)
    return Layout(
        service=service,
        keys=tuple((name, parse(kind)) for name, kind in keys),
        features=tuple(
            FeatureLayout(name, parse(kind), origin, index)
            for index, ((name, kind), origin) in enumerate(columns)
        ),
        sources=tuple(SourceLayout(*source) for source in sources),
    )


def _kind(column: pb.Column) -> str:
    """Return the name of a column's type."""
    return SCALARS.get(column.WhichOneof("values")) or str(dtype_of(column))


def _seen(source: pb.Source, rows: int) -> tuple[bytes, bytes]:
    codes = list(source.statuses)
    if not _KNOWN_STATUSES.issuperset(codes) or len(codes) not in {0, rows}:
        raise FeatureStoreError(
            f"The server's answer has statuses of '{source.view}' that are not known here.",
            hint="The server may be of a later version.",
        )
    if len(source.event_timestamps) != len(codes):
        raise FeatureStoreError(f"The server's answer lacks event timestamps of '{source.view}'.")
    return bytes(codes), struct.pack(f"<{len(codes)}q", *source.event_timestamps)


def _applied(source: pb.Source, rows: int) -> dict[str, bytes]:
    applied: dict[str, bytes] = {}
    for item in source.applied:
        positions = item.positions
        if len(positions) != rows or item.partition in applied or min(positions, default=0) < -1:
            raise FeatureStoreError(
                f"The server's answer breaks the protocol in what it says was applied to"
                f" '{source.view}'.",
                got=f"{len(positions)} positions of the partition '{item.partition}'",
                allowed=f"each partition once, {rows} positions of -1 or more",
            )
        applied[item.partition] = struct.pack(f"<{rows}q", *positions)
    return applied


class _WireBlock:
    """Columns of a message as a block of an answer."""

    def __init__(
        self,
        columns: Sequence[pb.Column],
        types: Sequence[DType],
        rows: int,
        seen: tuple[bytes, bytes, Mapping[str, bytes]],
    ) -> None:
        self._columns = columns
        self._types = types
        self._rows = rows
        self.statuses, self.events, self.applied = seen

    def plains(self, indexes: Sequence[int]) -> Sequence[Plain | None]:
        return [self._plain(index) for index in indexes]

    def wholes(self, indexes: Sequence[int]) -> None:  # noqa: ARG002
        return

    def _plain(self, index: int) -> Plain | None:
        dtype = self._types[index]
        if dtype.width is None:
            return None
        data, _ = read_plain(self._columns[index], dtype)
        if len(data) != self._rows * dtype.width:
            raise self._broken(index)
        return data, self.validity(index)

    def validity(self, index: int) -> bytes | None:
        validity: bytes = self._columns[index].validity
        if validity and len(validity) != (self._rows + 7) // 8:
            raise self._broken(index)
        return validity or None

    def nulls(self, indexes: Sequence[int]) -> int:
        found = [self.validity(index) for index in indexes]
        there = (int.from_bytes(each, "little").bit_count() for each in found if each is not None)
        return self._rows * sum(each is not None for each in found) - sum(there)

    def array(self, index: int) -> pa.Array:
        array = read_arrow(self._columns[index])
        if len(array) != self._rows:
            raise self._broken(index)
        return array

    def pylist(self, index: int) -> list[Any]:
        plain = self._plain(index)
        if plain is not None:
            return plains.to_list(self._types[index], self._rows, plain)
        return to_pylist(self.array(index))

    def _broken(self, index: int) -> FeatureStoreError:
        return FeatureStoreError(
            f"The server's answer has too few or too many values of '{self._columns[index].name}'."
        )
