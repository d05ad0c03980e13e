"""Answers as the server writes them: the bytes of a GetOnlineFeaturesResponse, joined by hand.

Of answers to one request only the values differ, and of answers with as many rows not even the
lengths: names, tags and lengths are made once, and an answer is those bytes with plain columns in
between. The tests hold the result against the generated code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.dtypes import DType
from featurestore.semantics.plain import Plain
from featurestore.services.response import FeatureLayout, Layout, OnlineResponse
from featurestore.serving.conversion import FIELDS, framed, head, write_arrow
from featurestore.serving.v1 import serving_pb2 as pb

_REMEMBERED = 64


def _numbers(message: type) -> dict[str, int]:
    fields: dict[str, int] = {f.name: f.number for f in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    return fields


_RESPONSE, _SOURCE = _numbers(pb.GetOnlineFeaturesResponse), _numbers(pb.Source)
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


class ResponseWriter:
    """Writes answers of one layout.

    Args:
        layout: What they have in common.
    """

    def __init__(self, layout: Layout) -> None:
        self._features = layout.features
        self._key_names = [name for name, _ in layout.keys]
        self._service = layout.service or ""
        self._groups = [
            [(i, f.index) for i, f in enumerate(layout.features) if f.source == source]
            for source in range(len(layout.sources))
        ]
        self._origins = pb.GetOnlineFeaturesResponse(
            feature_sources=[feature.source for feature in layout.features]
        ).SerializeToString()
        self._sources = [
            pb.Source(view=s.view, alias=s.alias, fingerprint=s.fingerprint).SerializeToString()
            for s in layout.sources
        ]
        self._heads: dict[int, Sequence[_Heads | None]] = {}

    def write(self, response: OnlineResponse) -> bytes:
        """Return the bytes of an answer."""
        rows = response.rows
        message = pb.GetOnlineFeaturesResponse(
            rows=rows, as_of=response.as_of_us, service=self._service
        )
        for index, name in enumerate(self._key_names):
            write_arrow(message.entity_keys.add(name=name), response.keys.array(index))
        parts: list[bytes] = [message.SerializeToString()]
        columns = self._columns(response)
        for feature, heads, plain in zip(self._features, self._of(rows), columns, strict=True):
            if plain is None or heads is None:
                parts.append(_column(feature, response))
            elif plain[1] is None:
                parts += (heads.values, plain[0])
            else:
                parts += (heads.validity, plain[1], heads.after_validity, plain[0])
        parts.append(self._origins)
        for source, block in zip(self._sources, response.blocks, strict=True):
            seen = (
                framed(_SOURCE["statuses"], block.statuses)
                + framed(_SOURCE["event_timestamps"], block.events)
                if block.statuses
                else b""
            )
            parts += (head(_RESPONSE["sources"], len(source) + len(seen)), source, seen)
        return b"".join(parts)

    def _columns(self, response: OnlineResponse) -> list[Plain | None]:
        columns: list[Plain | None] = [None] * len(self._features)
        for block, group in zip(response.blocks, self._groups, strict=True):
            plains = block.plains([index for _, index in group])
            for (place, _), plain in zip(group, plains, strict=True):
                columns[place] = plain
        return columns

    def _of(self, rows: int) -> Sequence[_Heads | None]:
        heads = self._heads.get(rows)
        if heads is None:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            heads = self._heads[rows] = [_heads(feature, rows) for feature in self._features]
        return heads


@functools.lru_cache(maxsize=256)
def writer_of(layout: Layout) -> ResponseWriter:
    """Return the writer of a layout, the same one for the same layout."""
    return ResponseWriter(layout)


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


def _column(feature: FeatureLayout, response: OnlineResponse) -> bytes:
    column = pb.Column(name=feature.name)
    write_arrow(column, response.blocks[feature.source].array(feature.index))
    return framed(_RESPONSE["features"], column.SerializeToString())
