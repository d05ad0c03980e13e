"""Answers as JSON: made column by column, and written in one go.

Most of an answer is the same for all features of a view: statuses and instants are written once a
view and repeated. The values are the matter of `columns`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import orjson

from featurestore.semantics.packed import NOT_FOUND, NULL_VALUE, PRESENT
from featurestore.semantics.timeline import to_datetime
from featurestore.services.pushing_events import PushReceipt
from featurestore.services.response import Block, FeatureStatus, Layout, OnlineResponse
from featurestore.serving.http.columns import Holes, SourceColumns, show_instants
from featurestore.serving.http.values import show_instant, shown_column, write_json
from featurestore.serving.info import ServingInfo

# By the numbers of `semantics.packed`, from 1.
_STATUSES = ("", *(f'"{status}"' for status in FeatureStatus))
_PRESENT, _NULL = _STATUSES[PRESENT], _STATUSES[NULL_VALUE]


class AnswerWriter:
    """Writes answers of one layout.

    Args:
        layout: What they have in common.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._names = [feature.name for feature in layout.features]
        self._sources = [
            SourceColumns([f for f in layout.features if f.source == source])
            for source in range(len(layout.sources))
        ]
        prints = {source.view: source.fingerprint for source in layout.sources}
        self._fingerprints = orjson.Fragment(write_json(prints))

    def write(self, answer: OnlineResponse) -> bytes:
        """Return the bytes of an answer."""
        rows, holes = answer.rows, Holes(answer.rows)
        # In the order asked for, whatever order they are filled in.
        values: dict[str, Any] = dict.fromkeys(self._names)
        statuses, events = values.copy(), values.copy()
        for source, block in zip(self._sources, answer.blocks, strict=True):
            columns, validities = source.read(block, rows, holes)
            values.update(zip(source.names, columns, strict=True))
            told = _statuses(block, rows, validities, holes)
            statuses.update(zip(source.names, told, strict=True))
            events.update(dict.fromkeys(source.names, _events(block, rows)))
        return write_json(
            {
                "as_of": show_instant(answer.as_of),
                "service": answer.service,
                "rows": rows,
                "entity_keys": {
                    name: shown_column(answer.keys.pylist(i), dtype)
                    for i, (name, dtype) in enumerate(self._layout.keys)
                },
                "values": values,
                "statuses": statuses,
                "event_timestamps": events,
                "fingerprints": self._fingerprints,
                "applied": answer.applied,
            }
        )


@functools.lru_cache(maxsize=256)
def answer_writer(layout: Layout) -> AnswerWriter:
    """Return the writer of a layout, the same one for the same layout."""
    return AnswerWriter(layout)


def write_info(info: ServingInfo) -> bytes:
    """Return what is served as JSON."""
    return write_json(_plain(dataclasses.asdict(info)))


def write_receipt(receipt: PushReceipt) -> bytes:
    """Return the receipt of a push as JSON."""
    return write_json({"accepted": receipt.accepted, "positions": dict(receipt.positions)})


def _statuses(
    block: Block, rows: int, validities: Sequence[bytes | None], holes: Holes
) -> list[orjson.Fragment]:
    """Return the statuses of a block's features, of each validity once."""
    codes = block.statuses or bytes((PRESENT,)) * rows
    whole = [_STATUSES[code] for code in codes]
    known: dict[bytes | None, orjson.Fragment] = {None: _fragment(whole)}
    for validity in validities:
        if validity is not None and validity not in known:
            told = whole.copy()
            for hole in holes[validity]:
                if codes[hole] == PRESENT:
                    told[hole] = _NULL
            known[validity] = _fragment(told)
    return [known[validity] for validity in validities]


def _events(block: Block, rows: int) -> orjson.Fragment:
    """Return when the rows of a block happened."""
    codes = block.statuses
    if not codes:
        return _fragment(["null"] * rows)
    if rows == 1:
        instant = int.from_bytes(block.events, "little", signed=True)
        shown = [show_instant(to_datetime(instant))]
    else:
        shown = show_instants(np.frombuffer(block.events, dtype="<i8").astype(np.int64))
    found = [f'"{text}"' for text in shown]
    if NOT_FOUND in codes:
        found = ["null" if c == NOT_FOUND else t for c, t in zip(codes, found, strict=True)]
    return _fragment(found)


def _fragment(items: Sequence[str]) -> orjson.Fragment:
    """Return a list of JSON texts as JSON."""
    return orjson.Fragment(f"[{','.join(items)}]")


def _plain(value: Any) -> Any:
    """Return what JSON has for facts: instants as texts."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return show_instant(value) if isinstance(value, datetime) else value
