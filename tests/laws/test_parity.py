"""Law V1: reference = training set = online store, bit for bit, on random definitions and rows.

Each round makes a repository with random key and value types, delivers random rows in several files
and runs (late, tied, corrected, with nulls), and asks every key at every instant of a small grid.
Instants are drawn on the grid, so that ties and the edges of the ttl are hit all the time.
"""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.dtypes import parse
from featurestore.errors import AsOfBeforeRowError
from featurestore.semantics.reference import ReferenceRow, canonical, join, newest
from featurestore.semantics.timeline import to_datetime, to_instant
from tests.conformance.repository import CaseView, Repository

_ROUNDS = 6
_SECOND = 1_000_000
_BASES = (
    to_instant("2024-02-28T23:59:58Z"),
    to_instant("1969-12-31T23:59:57Z"),
    to_instant("1907-01-01T00:00:00Z"),
)
_KEYS: list[dict[str, str]] = [
    {"k": "int64"},
    {"k": "string"},
    {"k": "string", "l": "int64"},
    {"k": "bool", "l": "date"},
    {"k": "bytes", "l": "int32"},
    {"k": "timestamp"},
    {},
]
_TYPES = [
    *("bool", "int32", "int64", "float32", "float64", "string", "bytes", "date", "timestamp"),
    *("list<int64>", "list<string>", "list<float64>", "list<timestamp>", "list<bool>"),
    *("vector<float32, 3>", "vector<float64, 2>"),
    *("map<string, float64>", "map<int64, string>", "map<timestamp, bool>", "map<bytes, float32>"),
    *("map<date, timestamp>", "map<bool, int32>", "map<int32, bytes>"),
]
_FLOATS = [0.0, -0.0, 1.5, -2.5e300, float("inf"), float("nan"), 5e-324]
_SINGLES = [0.0, -0.0, 1.5, -(2.0**100), float("inf"), float("nan"), 2.0**-149]


def _scalar(chance: random.Random, scalar: str) -> Any:
    texts = ["", "a", "é", "e\u0301", "a ", "a\x00b", "😀" * 3]
    choices: dict[str, list[Any]] = {
        "bool": [True, False],
        "int32": [0, -1, 2**31 - 1, -(2**31)],
        "int64": [0, 2**53 + 1, 2**63 - 1, -(2**63)],
        "float32": _SINGLES,
        "float64": _FLOATS,
        "string": texts,
        "bytes": [text.encode() for text in texts] + [b"\xff\x00\xfe"],
        "date": [date(1970, 1, 1), date(1, 1, 1), date(9999, 12, 31), date(2024, 2, 29)],
        "timestamp": [
            datetime(1960, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
            datetime(2038, 1, 19, tzinfo=UTC),
        ],
    }
    return chance.choice(choices[scalar])


def _value(chance: random.Random, name: str) -> Any:
    dtype = parse(name)
    if chance.random() < 0.2:
        return None
    if dtype.container == "vector":
        return [_scalar(chance, dtype.scalar) for _ in range(dtype.length)]
    if dtype.container == "list":
        items = [_scalar(chance, dtype.scalar) for _ in range(chance.randrange(4))]
        return [None if chance.random() < 0.2 else item for item in items]
    if dtype.container == "map":
        keys = dict.fromkeys(_scalar(chance, dtype.key) for _ in range(chance.randrange(5)))
        return {
            key: None if chance.random() < 0.2 else _scalar(chance, dtype.scalar) for key in keys
        }
    return _scalar(chance, dtype.scalar)


class _World:
    """A random view with random rows."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.base = chance.choice(_BASES)
        keys = chance.choice(_KEYS)
        types = chance.sample(_TYPES, chance.randint(1, 6))
        self.view = CaseView(
            name="v",
            join_keys=keys,
            features={f"f{n}": dtype for n, dtype in enumerate(types)},
            ttl_us=chance.choice([None, 1 * _SECOND, 3 * _SECOND]),
            created=chance.random() < 0.6,
        )
        self.key_types = [parse(dtype) for dtype in keys.values()]
        self.types = [parse(dtype) for dtype in types]
        self.keys = list(
            dict.fromkeys(tuple(_scalar(chance, t) for t in keys.values()) for _ in range(4))
        )
        self.rows: list[ReferenceRow] = []

    def deliver(self) -> list[dict[str, Any]]:
        """Return some more rows as a source has them, and keep them for the reference."""
        batch = []
        for _ in range(self.chance.randrange(9)):
            key = self.chance.choice(self.keys)
            if key and self.chance.random() < 0.1:
                key = (*key[:-1], None)
            event = self.base + self.chance.randrange(6) * _SECOND
            created = self._created(event)
            values = tuple(_value(self.chance, t) for t in self.view.features.values())
            self.rows.append(ReferenceRow(key, event, created, values))
            row = {
                **dict(zip(self.view.join_keys, key, strict=True)),
                "event_timestamp": to_datetime(event),
            }
            row |= dict(zip(self.view.features, values, strict=True))
            if self.view.created:
                row["created"] = None if created is None else to_datetime(created)
            batch.append(row)
        if batch and self.chance.random() < 0.3:
            batch.append(batch[0])
        return batch

    def _created(self, event: int) -> int | None:
        if not self.view.created:
            return event
        if self.chance.random() < 0.15:
            return None
        return event + self.chance.randrange(5) * _SECOND

    def questions(self) -> list[tuple[tuple[Any, ...], int]]:
        """Return every key, an unknown one too, at every instant of the grid and just beside it."""
        steps = [n * _SECOND + d for n in range(-1, 11) for d in (-1, 0, 1)]
        return [(key, self.base + step) for key in self.keys for step in steps]

    def entity_rows(self, questions: list[tuple[tuple[Any, ...], int]]) -> pa.Table:
        columns = {
            name: pa.array([key[n] for key, _ in questions], type=parse(dtype).arrow)
            for n, (name, dtype) in enumerate(self.view.join_keys.items())
        }
        instants = [instant for _, instant in questions]
        columns["event_timestamp"] = pa.array(instants, type=pa.int64()).cast(
            pa.timestamp("us", tz="UTC")
        )
        return pa.table(columns)


def _bits(world: _World, values: list[Any] | tuple[Any, ...]) -> bytes:
    for value, dtype in zip(values, world.types, strict=True):
        if dtype.container == "map" and isinstance(value, list):
            # Arrow's pairs: their order too is the same everywhere.
            keys = [key for key, _ in value]
            assert keys == sorted(keys)
    return canonical(values, world.types)


def _compare_offline(world: _World, repository: Repository) -> int:
    questions = world.questions()
    references = [f"v:{name}" for name in world.view.features]
    compared = 0
    for knowledge in ("healed", "known"):
        result = repository.store.get_historical_features(
            world.entity_rows(questions), references, knowledge=knowledge
        ).to_arrow()
        found = result.select(list(world.view.features)).to_pylist()
        expected = join(
            world.rows,
            world.key_types,
            world.types,
            questions,
            ttl=world.view.ttl_us,
            knowledge=knowledge,
        )
        for question, row, match in zip(questions, found, expected, strict=True):
            wanted = match.values if match else (None,) * len(world.types)
            assert _bits(world, list(row.values())) == _bits(world, wanted), (knowledge, question)
            compared += 1
    return compared


def _compare_online(world: _World, repository: Repository) -> int:
    references = [f"v:{name}" for name in world.view.features]
    compared = 0
    for key, as_of in world.questions():
        own = [row for row in world.rows if row.key == key]
        last = newest(own, world.types, 2**62, "healed")
        rows = world.entity_rows([(key, as_of)])
        if last is not None and last.event > as_of:
            with pytest.raises(AsOfBeforeRowError):
                repository.store.get_online_features(references, rows, as_of=to_datetime(as_of))
            continue
        (match,) = join(own, world.key_types, world.types, [(key, as_of)], ttl=world.view.ttl_us)
        response = repository.store.get_online_features(references, rows, as_of=to_datetime(as_of))
        table = response.to_arrow()
        values = [table[name][0].as_py() for name in world.view.features]
        wanted = match.values if match else (None,) * len(world.types)
        assert _bits(world, values) == _bits(world, wanted), (key, as_of)
        for name, value in zip(world.view.features, wanted, strict=True):
            status = "NOT_FOUND" if last is None else "OUTSIDE_MAX_AGE"
            if match:
                status = "NULL_VALUE" if value is None else "PRESENT"
            assert response.statuses[name] == [status]
            event = to_datetime(last.event) if last is not None else None
            assert response.event_timestamps[name] == [event]
        compared += 1
    return compared


@pytest.mark.parametrize("seed", range(_ROUNDS))
def test_v1_reference_offline_and_online_agree(seed: int, online_url: str, tmp_path: Path) -> None:
    world = _World(random.Random(f"{seed} {online_url.partition(':')[0]}"))  # noqa: S311
    repository = Repository(tmp_path, online_url)
    repository.define(world.view)
    repository.append(world.view, world.deliver(), rewrite=False)
    repository.store.apply()
    for _ in range(world.chance.randint(1, 3)):
        if world.chance.random() < 0.5:
            start = to_datetime(world.base + world.chance.randrange(3) * _SECOND)
            repository.store.materialize(start, start + timedelta(seconds=2))
        else:
            repository.store.materialize_incremental()
        repository.append(world.view, world.deliver(), rewrite=world.chance.random() < 0.3)
    repository.store.materialize_incremental()
    assert _compare_offline(world, repository) > 0
    assert _compare_online(world, repository) > 0
