"""Appending new events to a small state leaves what looking at each of them does (law W1)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.compile.state_plan import state_schema
from featurestore.semantics.states import applying
from featurestore.semantics.states.layout import HEADER, read_header
from featurestore.semantics.windows import DAY, HOUR
from featurestore.services.states import StateWriter
from tests.served import NOW_US, PROJECT
from tests.stated import fields_of, log_table, versions_of
from tests.unit.test_state_service import RIDES
from tests.windowed import Row


def rows_of(chance: random.Random) -> list[Row]:
    """Return events of distinct ids, some of them late beyond what is kept, and deletions."""
    rows = []
    for number in range(chance.randrange(1, 9)):
        instant = NOW_US - chance.choice([HOUR, DAY, DAY + HOUR, DAY + HOUR + 1, 3 * DAY])
        learnt = chance.choice([None, instant, NOW_US, NOW_US - DAY])
        values = (float(number), chance.choice(["home", "", None]))
        rows.append(Row(1, f"e{number}", number, instant, learnt, chance.random() < 0.2, values))
    return rows


def applied(deliveries: list[list[Row]]) -> tuple[list[Any], dict[str, Any]]:
    """Return the versions that are kept, and the header without its counter."""
    store = MemoryOnlineStore()
    writer = StateWriter(PROJECT, store)
    for hours, rows in enumerate(deliveries):
        now = NOW_US + hours * HOUR
        writer.apply(RIDES, log_table(RIDES, rows, positions=True), now)
    fields = fields_of(store, RIDES, 1)
    if HEADER not in fields:
        return [], {}
    header = dataclasses.asdict(read_header(state_schema(RIDES), fields[HEADER]))
    return sorted(versions_of(RIDES, fields)), {k: v for k, v in header.items() if k != "counter"}


@pytest.mark.parametrize("seed", range(60))
def test_appending_leaves_what_looking_at_each_event_does(seed, monkeypatch):
    chance = random.Random(seed)  # noqa: S311
    rows = rows_of(chance)
    cut = chance.randrange(len(rows) + 1)
    deliveries = [part for part in (rows[:cut], rows[cut:]) if part]
    calls = []
    quick = applying.append
    monkeypatch.setattr(applying, "append", lambda *args: calls.append(quick(*args)) or calls[-1])
    found = applied(deliveries)
    monkeypatch.setattr(applying, "append", lambda *_: None)
    assert found == applied(deliveries)
    if all(max(row.instant, row.created or 0) >= NOW_US - DAY for row in rows):
        assert None not in calls
