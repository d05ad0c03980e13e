"""An answer as a message: written by the server, read by the client.

The names of an answer are written once for each request that repeats; then only columns are filled
in. The client keeps the message and turns its columns into values when asked for.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.errors import FeatureStoreError
from featurestore.semantics import plain as plains
from featurestore.semantics.packed import NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, PRESENT
from featurestore.semantics.plain import Plain
from featurestore.services.response import FeatureLayout, Layout, OnlineResponse, SourceLayout
from featurestore.serving.conversion import (
    dtype_of,
    packed,
    read_arrow,
    read_plain,
    write_arrow,
    write_plain,
)
from featurestore.serving.v1 import serving_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa

_STATUSES = pb.Source.DESCRIPTOR.fields_by_name["statuses"].number
_EVENTS = pb.Source.DESCRIPTOR.fields_by_name["event_timestamps"].number
_KNOWN_STATUSES = frozenset((PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE))


def write_response(response: OnlineResponse) -> bytes:
    """Return the message of an answer, serialized."""
    message = pb.GetOnlineFeaturesResponse()
    message.CopyFrom(_template(response.layout))
    message.rows = response.rows
    message.as_of = response.as_of_us
    for index, column in enumerate(message.entity_keys):
        write_arrow(column, response.keys.array(index))
    for feature, column in zip(response.layout.features, message.features, strict=True):
        block = response.blocks[feature.source]
        plain = block.plain(feature.index)
        if plain is None:
            write_arrow(column, block.array(feature.index))
        else:
            write_plain(column, feature.dtype, plain)
    for source, block in zip(message.sources, response.blocks, strict=True):
        if block.statuses:
            source.MergeFromString(
                packed(block.statuses, _STATUSES) + packed(block.events, _EVENTS)
            )
    return message.SerializeToString()


@functools.lru_cache(maxsize=256)
def _template(layout: Layout) -> pb.GetOnlineFeaturesResponse:
    """Return what all answers of one layout have in common."""
    return pb.GetOnlineFeaturesResponse(
        service=layout.service or "",
        entity_keys=[pb.Column(name=name) for name, _ in layout.keys],
        features=[pb.Column(name=feature.name) for feature in layout.features],
        feature_sources=[feature.source for feature in layout.features],
        sources=[
            pb.Source(view=source.view, alias=source.alias, fingerprint=source.fingerprint)
            for source in layout.sources
        ],
    )


def read_response(message: pb.GetOnlineFeaturesResponse) -> OnlineResponse:
    """Return the answer that a message holds.

    Raises:
        FeatureStoreError: It breaks the protocol.
    """
    rows = message.rows
    columns, keys = list(message.features), list(message.entity_keys)
    origins = list(message.feature_sources)
    if len(origins) != len(columns) or any(o >= len(message.sources) for o in origins):
        raise FeatureStoreError("The server's answer does not say where its features come from.")
    types = [dtype_of(column) for column in columns]
    layout = Layout(
        service=message.service or None,
        keys=tuple((column.name, dtype_of(column)) for column in keys),
        features=tuple(
            FeatureLayout(column.name, dtype, origin, index)
            for index, (column, dtype, origin) in enumerate(
                zip(columns, types, origins, strict=True)
            )
        ),
        sources=tuple(SourceLayout(s.view, s.alias, s.fingerprint) for s in message.sources),
    )
    blocks = [_WireBlock(columns, types, rows, *_seen(s, rows)) for s in message.sources]
    key_types = [dtype for _, dtype in layout.keys]
    return OnlineResponse(
        layout, rows, message.as_of, _WireBlock(keys, key_types, rows, b"", b""), blocks
    )


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


class _WireBlock:
    """Columns of a message as a block of an answer."""

    def __init__(
        self,
        columns: Sequence[pb.Column],
        types: Sequence[DType],
        rows: int,
        statuses: bytes,
        events: bytes,
    ) -> None:
        self._columns = columns
        self._types = types
        self._rows = rows
        self.statuses = statuses
        self.events = events

    def plain(self, index: int) -> Plain | None:
        dtype = self._types[index]
        if dtype.width is None:
            return None
        plain = read_plain(self._columns[index], dtype)
        if len(plain[0]) != self._rows * dtype.width:
            raise self._broken(index)
        return plain

    def validity(self, index: int) -> bytes | None:
        return self._columns[index].validity or None

    def array(self, index: int) -> pa.Array:
        array = read_arrow(self._columns[index])
        if len(array) != self._rows:
            raise self._broken(index)
        return array

    def pylist(self, index: int) -> list[Any]:
        plain = self.plain(index)
        if plain is not None:
            return plains.to_list(self._types[index], self._rows, plain)
        values: list[Any] = self.array(index).to_pylist()
        return values

    def _broken(self, index: int) -> FeatureStoreError:
        return FeatureStoreError(
            f"The server's answer has too few or too many values of '{self._columns[index].name}'."
        )
