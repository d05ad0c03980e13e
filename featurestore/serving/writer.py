"""Answers as the server writes them: the bytes of a GetOnlineFeaturesResponse, joined by hand.

Of answers to one request only the values differ, and of answers with as many rows not even the
lengths: names, tags and lengths are made once, and an answer is those bytes with plain columns in
between. The tests hold the result against the generated code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from featurestore.dtypes import DType
from featurestore.semantics.plain import Plain
from featurestore.services.response import Block, FeatureLayout, Layout, OnlineResponse
from featurestore.serving.conversion import FIELDS, framed, head, write_arrow
from featurestore.serving.v1 import serving_pb2 as pb

_REMEMBERED = 64


def _numbers(message: type) -> dict[str, int]:
    fields: dict[str, int] = {f.name: f.number for f in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    return fields


_RESPONSE, _SOURCE = _numbers(pb.GetOnlineFeaturesResponse), _numbers(pb.Source)
_APPLIED = _numbers(pb.AppliedPartition)
_COLUMN, _VECTORS = _numbers(pb.Column), _numbers(pb.VectorValues)


@dataclass(frozen=True, slots=True)
class _Heads:
    """What stands before the bytes of one column, for one number of rows.

    Attributes:
        values: Before the values, where nothing is null.
        validity: Before the validity.
        after_validity: Between the validity and the values.
    """

    values: bytes
    validity: bytes
    after_validity: bytes


@dataclass(frozen=True, slots=True)
class _Frame:
    """All that answers with one number of rows have in common.

    Attributes:
        parts: Two a feature: what stands before its values where nothing is null, and a place for
            the values.
        heads: One a feature, None where values vary in width.
        sources: Two a source: what stands before its statuses, and what before its instants.
    """

    parts: list[bytes]
    heads: Sequence[_Heads | None]
    sources: Sequence[tuple[bytes, bytes]]


class ResponseWriter:
    """Writes answers of one layout.

    Args:
        layout: What they have in common.
    """

    def __init__(self, layout: Layout) -> None:
        self._features = layout.features
        self._keys = [
            (name, None if dtype.container else FIELDS[dtype.scalar]) for name, dtype in layout.keys
        ]
        self._service = layout.service or ""
        groups: list[list[tuple[int, int]]] = [[] for _ in layout.sources]
        for place, feature in enumerate(layout.features):
            groups[feature.source].append((place, feature.index))
        # For each source: where the values of its features stand in a frame's parts, and what they
        # are called by in its block.
        self._groups = [(_stepped([2 * p + 1 for p, _ in g]), [i for _, i in g]) for g in groups]
        self._origins = pb.GetOnlineFeaturesResponse(
            feature_sources=[feature.source for feature in layout.features]
        ).SerializeToString()
        self._sources = [
            pb.Source(view=s.view, alias=s.alias, fingerprint=s.fingerprint).SerializeToString()
            for s in layout.sources
        ]
        self._frames: dict[int, _Frame] = {}

    def write(
        self, response: OnlineResponse, sent: Mapping[str, pb.Column] = MappingProxyType({})
    ) -> bytes:
        """Return the bytes of an answer.

        Args:
            response: The answer.
            sent: Columns of the request, which are repeated as they came where they hold the keys
                as these were declared.
        """
        rows = response.rows
        frame = self._frames.get(rows) or self._frame(rows)
        start = pb.GetOnlineFeaturesResponse(
            rows=rows, as_of=response.as_of_us, service=self._service
        )
        parts = frame.parts.copy()
        ends: list[bytes] = []
        for source, block in enumerate(response.blocks):
            places, indexes = self._groups[source]
            whole = block.wholes(indexes)
            if whole is not None and type(places) is slice:
                parts[places] = whole
            else:
                self._put(parts, source, frame, response)
            if block.statuses and not block.applied:
                before, between = frame.sources[source]
                ends += (before, block.statuses, between, block.events)
            else:
                ends.append(framed(_RESPONSE["sources"], self._sources[source] + _seen(block)))
        keys = [self._key(i, response, sent) for i in range(len(self._keys))]
        return b"".join((start.SerializeToString(), *keys, *parts, self._origins, *ends))

    def _put(
        self, parts: list[bytes], source: int, frame: _Frame, response: OnlineResponse
    ) -> None:
        """Put the columns of a source in their places, one by one."""
        found, indexes = self._groups[source]
        places = range(len(parts))[found] if isinstance(found, slice) else found
        plains = response.blocks[source].plains(indexes)
        for at, plain in zip(places, plains, strict=True):
            if plain is not None and plain[1] is None:
                parts[at] = plain[0]
            else:
                parts[at - 1 : at + 1] = self._column(at // 2, frame, plain, response)

    def _key(self, index: int, response: OnlineResponse, sent: Mapping[str, pb.Column]) -> bytes:
        name, field = self._keys[index]
        column = sent.get(name)
        if column is None or column.validity or column.WhichOneof("values") != field:
            column = pb.Column(name=name)
            write_arrow(column, response.keys.array(index))
        else:
            column.DiscardUnknownFields()
        return framed(_RESPONSE["entity_keys"], column.SerializeToString())

    def _column(
        self, place: int, frame: _Frame, plain: Plain | None, response: OnlineResponse
    ) -> tuple[bytes, bytes]:
        """Return the two parts of a column that has nulls, or values of varying width."""
        heads = frame.heads[place]
        if plain is not None and plain[1] is not None and heads is not None:
            return heads.validity + plain[1] + heads.after_validity, plain[0]
        feature = self._features[place]
        column = pb.Column(name=feature.name)
        write_arrow(column, response.blocks[feature.source].array(feature.index))
        return framed(_RESPONSE["features"], column.SerializeToString()), b""

    def _frame(self, rows: int) -> _Frame:
        if len(self._frames) >= _REMEMBERED:
            self._frames.clear()
        heads = [_heads(feature, rows) for feature in self._features]
        parts: list[bytes] = []
        for each in heads:
            parts += (b"" if each is None else each.values, b"")
        sources = [_around_statuses(source, rows) for source in self._sources]
        frame = self._frames[rows] = _Frame(parts, heads, sources)
        return frame


@functools.lru_cache(maxsize=256)
def writer_of(layout: Layout) -> ResponseWriter:
    """Return the writer of a layout, the same one for the same layout."""
    return ResponseWriter(layout)


def _stepped(places: list[int]) -> list[int] | slice:
    """Return places of every other part as a slice, where they are such."""
    if not places or places != list(range(places[0], places[-1] + 1, 2)):
        return places
    return slice(places[0], places[-1] + 1, 2)


def _heads(feature: FeatureLayout, rows: int) -> _Heads | None:
    width = feature.dtype.width
    if width is None:
        return None
    size = rows * width
    name = framed(_COLUMN["name"], feature.name.encode())
    before = _before_values(feature.dtype, size)
    bits = (rows + 7) // 8
    validity = head(_COLUMN["validity"], bits)
    whole = len(name) + len(before) + size
    return _Heads(
        head(_RESPONSE["features"], whole) + name + before,
        head(_RESPONSE["features"], whole + len(validity) + bits) + name + validity,
        before,
    )


def _before_values(dtype: DType, size: int) -> bytes:
    """Return the tags and lengths that lead to the values of a column."""
    numbers = head(1, size) if size else b""
    inner = len(numbers) + size
    if dtype.container != "vector":
        return head(_COLUMN[FIELDS[dtype.scalar]], inner) + numbers
    length = pb.VectorValues(length=dtype.length).SerializeToString()
    items = head(_VECTORS[FIELDS[dtype.scalar]], inner) + numbers
    return head(_COLUMN["vectors"], len(length) + len(items) + size) + length + items


def _around_statuses(source: bytes, rows: int) -> tuple[bytes, bytes]:
    """Return what stands before the statuses of a source, and between them and its instants."""
    statuses = head(_SOURCE["statuses"], rows)
    events = head(_SOURCE["event_timestamps"], 8 * rows)
    size = len(source) + len(statuses) + rows + len(events) + 8 * rows
    return head(_RESPONSE["sources"], size) + source + statuses, events


def _seen(block: Block) -> bytes:
    """Return the fields of a source that tell of its rows; of an on-demand view there are none."""
    seen = b""
    if block.statuses or block.applied:
        seen = framed(_SOURCE["statuses"], block.statuses)
        seen += framed(_SOURCE["event_timestamps"], block.events)
    for partition, positions in block.applied.items():
        name = framed(_APPLIED["partition"], partition.encode())
        seen += framed(_SOURCE["applied"], name + framed(_APPLIED["positions"], positions))
    return seen
