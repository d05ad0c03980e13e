"""The repository of the soak: a plain view, a windowed view over a stream, an on-demand view.

Its values tell on themselves: `scaled` is `level` times the edition of the definitions that made
it, each event adds the same amount, and what the on-demand view returns is a sum of the others. So
an answer that mixes two states of anything shows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

USERS = 2_000
AMOUNT = 3
SOURCE = "payments"
SERVICE = "soak"
# What is looked up in all editions.
REFERENCES = (
    "profile:level",
    "profile:edition",
    "profile:scaled",
    "spend:count_1m",
    "spend:count_lifetime",
    "spend:amount_sum_lifetime",
    "blend:total",
)
# Users to whom the soak alone gives levels and events, so that it knows what they must have.
MARKED = tuple(range(1_000_000, 1_000_004))
_EVENTS_A_USER = 2
_DEFINITIONS = """
from datetime import timedelta

import polars as pl

from featurestore import (Aggregate, Entity, FeatureService, FeatureView, Field, FileSource,
                          RequestSource, StreamSource, on_demand_feature_view)

user = Entity(name="user", join_keys=["user_id"])
profiles = FileSource(name="profiles", path="profiles", event_timestamp="at",
                      created_timestamp="seen")
past = FileSource(name="past", path="payments.parquet", event_timestamp="at")
payments = StreamSource(name="{source}", batch=past, stream="{stream}", event_id="id")
bonus = RequestSource(name="bonus", fields=[Field(name="bonus", dtype="int64")])

profile = FeatureView(
    name="profile", entities=[user], source=profiles, ttl=timedelta(days=365),
    schedule="* * * * *",
    features=["level",
              Field(name="edition", dtype="int64", expression="CAST({edition} AS BIGINT)"),
              Field(name="scaled", dtype="int64", expression="level * {edition}"),{extra}])
spend = FeatureView(
    name="spend", entities=[user], source=payments, where="amount > {bound}",
    features=[Aggregate("count", windows=["1m", "lifetime"]),
              Aggregate("sum", column="amount", windows=["lifetime"])])


@on_demand_feature_view(sources=[profile["scaled"], spend["count_lifetime"], bonus],
                        features=[Field(name="total", dtype="int64")])
def blend(inputs: pl.DataFrame) -> pl.DataFrame:
    total = pl.col("scaled") + pl.col("count_lifetime") + pl.col("bonus")
    return inputs.select(total.cast(pl.Int64).alias("total"))


{service} = FeatureService(name="{service}", features=[profile, spend, blend])
"""
_EXTRA = '\n              Field(name="extra", dtype="float64", expression="level / 2.0"),'


@dataclass(frozen=True)
class Edition:
    """What the definitions say now.

    Attributes:
        number: What `level` is multiplied by; another one is another expression.
        extra: Whether the plain view has a feature more.
        bound: In the condition of the windowed view; any of them lets every event in.
    """

    number: int = 1
    extra: bool = False
    bound: int = 0

    def after(self, step: int) -> Edition:
        """Return the next one: another expression, a feature more or less, or a condition."""
        if step % 3 == 0:
            return replace(self, number=self.number + 1)
        if step % 3 == 1:
            return replace(self, extra=not self.extra)
        return replace(self, bound=self.bound - 1)


class Repository:
    """Files of the repository.

    Args:
        folder: Where, an empty folder.
        valkey: The URL of the Valkey that holds online values and the stream.
    """

    def __init__(self, folder: Path, valkey: str) -> None:
        self.folder = folder
        self._stream = f"{valkey}/payments"
        self._files = 0
        (folder / "definitions").mkdir(parents=True)
        (folder / "profiles").mkdir()
        (folder / "featurestore.toml").write_text(
            f'project = "soak"\n[online]\nurl = "{valkey}"\n[offline]\nmemory_limit = "512MiB"\n',
            encoding="utf-8",
        )
        self.define(Edition())
        self.write_levels([*range(USERS), *MARKED], 1)
        self._write_past()

    def define(self, edition: Edition) -> None:
        """Write the definitions, all at once."""
        text = _DEFINITIONS.format(
            source=SOURCE,
            service=SERVICE,
            stream=self._stream,
            edition=edition.number,
            extra=_EXTRA if edition.extra else "",
            bound=edition.bound,
        )
        # Outside of the folder, where it is no module.
        draft = self.folder / "draft.txt"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.folder / "definitions" / "views.py")

    def write_levels(self, users: Sequence[int], level: int) -> None:
        """Add a file that says that these users have this level from now on."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        count, now = len(users), _now()
        table = pa.table(
            {
                "user_id": pa.array(users, pa.int64()),
                "level": pa.array([level] * count, pa.int64()),
                "at": pa.array([now] * count, _instant()),
                "seen": pa.array([now] * count, _instant()),
            }
        )
        self._files += 1
        draft = self.folder / "draft.parquet"
        pq.write_table(table, draft)
        draft.replace(self.folder / "profiles" / f"{self._files:05d}.parquet")

    def _write_past(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = USERS * _EVENTS_A_USER
        first = _now() - timedelta(days=2)
        table = pa.table(
            {
                "id": pa.array(range(count), pa.int64()),
                "user_id": pa.array([i % USERS for i in range(count)], pa.int64()),
                "at": pa.array([first + timedelta(seconds=i) for i in range(count)], _instant()),
                "amount": pa.array([AMOUNT] * count, pa.int64()),
            }
        )
        pq.write_table(table, self.folder / "payments.parquet")


def events(first: int, users: Sequence[int]) -> dict[str, list[object]]:
    """Return events of these users that happen now, with ids from `first` on."""
    now = _now()
    return {
        "id": list(range(first, first + len(users))),
        "user_id": list(users),
        "at": [now] * len(users),
        "amount": [AMOUNT] * len(users),
    }


def request(users: Sequence[int], folder: Path) -> Path:
    """Write the message of a lookup of these users as it travels; return its file."""
    from featurestore.serving.v1 import serving_pb2 as pb

    keys = pb.Column(name="user_id", int64s=pb.Int64Values(values=users))
    bonus = pb.Column(name="bonus", int64s=pb.Int64Values(values=[0] * len(users)))
    asked = pb.FeatureReferences()
    for reference in REFERENCES:
        view, _, feature = reference.partition(":")
        asked.references.append(pb.FeatureReference(view=view, features=[feature]))
    message = pb.GetOnlineFeaturesRequest(references=asked, entity_rows=[keys], request=[bonus])
    path = folder / f"request-{len(users)}"
    path.write_bytes(message.SerializeToString())
    return path


def _now() -> datetime:
    # A producer of its own: its clock is the machine's.
    return datetime.now(UTC)  # noqa: TID251


def _instant() -> pa.DataType:
    import pyarrow as pa

    return pa.timestamp("us", tz="UTC")
