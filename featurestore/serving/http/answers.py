"""Answers as JSON: written column by column, as texts that many columns share.

Most of an answer is the same for all features of a view: statuses and instants are written once a
view and repeated. Values become JSON in one go (`values`).
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from featurestore.semantics.packed import NOT_FOUND, NULL_VALUE, PRESENT
from featurestore.semantics.plain import unpack_bits
from featurestore.semantics.timeline import to_datetime
from featurestore.services.pushing_events import PushReceipt
from featurestore.services.response import Block, FeatureStatus, Layout, OnlineResponse
from featurestore.serving.http.values import show_instant, write_columns, write_text
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
        self._names = [f"{write_text(feature.name)}:" for feature in layout.features]
        self._key_types = [dtype for _, dtype in layout.keys]
        self._types = [feature.dtype for feature in layout.features]
        self._service = write_text(layout.service)
        prints = {source.view: source.fingerprint for source in layout.sources}
        self._fingerprints = write_text(prints)

    def write(self, answer: OnlineResponse) -> bytes:
        """Return the bytes of an answer."""
        layout, blocks = self._layout, answer.blocks
        keys = {name: answer.keys.pylist(i) for i, (name, _) in enumerate(layout.keys)}
        values = {name: blocks[source].pylist(i) for name, source, i in layout.places}
        statuses = [_statuses(block, answer.rows) for block in blocks]
        events = [_events(block, answer.rows) for block in blocks]
        told = [_told(blocks[s], i, answer.rows, statuses[s]) for _, s, i in layout.places]
        parts = (
            f'{{"as_of":"{show_instant(answer.as_of)}","service":{self._service}',
            f'"rows":{answer.rows}',
            f'"entity_keys":{write_columns(keys, self._key_types)}',
            f'"values":{write_columns(values, self._types)}',
            f'"statuses":{self._object(told)}',
            f'"event_timestamps":{self._object([events[s] for _, s, _ in layout.places])}',
            f'"fingerprints":{self._fingerprints}',
            f'"applied":{write_text(answer.applied)}}}',
        )
        return ",".join(parts).encode()

    def _object(self, texts: Sequence[str]) -> str:
        """Return the JSON of an object of the features' names and some texts."""
        return f"{{{','.join(map(''.join, zip(self._names, texts, strict=True)))}}}"


@functools.lru_cache(maxsize=256)
def answer_writer(layout: Layout) -> AnswerWriter:
    """Return the writer of a layout, the same one for the same layout."""
    return AnswerWriter(layout)


def write_info(info: ServingInfo) -> bytes:
    """Return what is served as JSON."""
    return write_text(_plain(dataclasses.asdict(info))).encode()


def write_receipt(receipt: PushReceipt) -> bytes:
    """Return the receipt of a push as JSON."""
    told = {"accepted": receipt.accepted, "positions": dict(receipt.positions)}
    return write_text(told).encode()


def _statuses(block: Block, rows: int) -> str:
    """Return the statuses of a block's features, but for values that are null."""
    if not block.statuses:
        return f"[{','.join([_PRESENT] * rows)}]"
    return f"[{','.join([_STATUSES[code] for code in block.statuses])}]"


def _told(block: Block, index: int, rows: int, statuses: str) -> str:
    """Return the statuses of one feature."""
    validity = block.validity(index)
    if validity is None:
        return statuses
    codes = block.statuses or bytes((PRESENT,)) * rows
    valid = unpack_bits(validity, rows)
    found = [
        _NULL if code == PRESENT and not v else _STATUSES[code]
        for code, v in zip(codes, valid, strict=True)
    ]
    return f"[{','.join(found)}]"


def _events(block: Block, rows: int) -> str:
    """Return when the rows of a block happened."""
    if not block.statuses:
        return f"[{','.join(['null'] * rows)}]"
    instants = struct.unpack(f"<{rows}q", block.events)
    found = [
        "null" if code == NOT_FOUND else f'"{show_instant(to_datetime(instant))}"'
        for code, instant in zip(block.statuses, instants, strict=True)
    ]
    return f"[{','.join(found)}]"


def _plain(value: Any) -> Any:
    """Return what JSON has for facts: instants as texts."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return show_instant(value) if isinstance(value, datetime) else value
