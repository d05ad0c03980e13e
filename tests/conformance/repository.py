"""A repository made from a vector case: definitions as Python text, sources as Parquet files."""

from __future__ import annotations

import textwrap
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore
from featurestore.dtypes import parse

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BEGINNING = "0001-01-01T00:00:00Z"
END = "9999-12-31T23:59:59.999999Z"


@dataclass
class CaseView:
    """A view as a vector case describes it."""

    name: str
    join_keys: dict[str, str]
    features: dict[str, str]
    ttl_us: int | None = None
    created: bool = False
    mapping: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Arrow types of the source's columns, under their names in the source."""
        back = {new: old for old, new in self.mapping.items()}
        types = {**self.join_keys, **self.features}
        found = {back.get(name, name): parse(dtype).arrow for name, dtype in types.items()}
        found["event_timestamp"] = pa.timestamp("us", tz="UTC")
        if self.created:
            found["created"] = pa.timestamp("us", tz="UTC")
        return found


def unique(name: str) -> str:
    """Return a name that no other test has."""
    return f"{name}_{uuid.uuid4().hex[:12]}"


class Repository:
    """A folder with settings, definitions and sources.

    Args:
        folder: Where to make it.
        online: The online store's URL.
        project: The project's name; by default one that nobody else has on a shared server.
    """

    def __init__(self, folder: Path, online: str, project: str | None = None) -> None:
        project = project or unique("vectors")
        self.folder = folder
        self.views: dict[str, CaseView] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "definitions").mkdir(exist_ok=True)
        (folder / "featurestore.toml").write_text(
            f'project = "{project}"\n[online]\nurl = "{online}"\n'
            '[offline]\nmemory_limit = "1GiB"\nworkers = 1\n',
            encoding="utf-8",
        )
        self.store = FeatureStore(folder)
        self._parts = 0

    def define(self, *views: CaseView) -> None:
        """Write the definitions of these views and no others."""
        self.views = {view.name: view for view in views}
        text = [
            "from datetime import timedelta",
            "from featurestore import Entity, FeatureView, Field, FileSource",
        ]
        text += [_definition(view) for view in views]
        if not views:
            text.append('nothing = Entity(name="nothing", join_keys=["nothing"])')
        path = self.folder / "definitions" / "case.py"
        path.write_text("\n".join(text), encoding="utf-8")

    def append(self, view: CaseView, rows: list[dict[str, Any]], *, rewrite: bool) -> None:
        """Add rows to a view's source: as another file, or by writing its one file anew."""
        folder = self.folder / "sources" / view.name
        folder.mkdir(parents=True, exist_ok=True)
        view.rows = [*view.rows, *rows]
        self._parts += 1
        name = "all.parquet" if rewrite else f"part-{self._parts}.parquet"
        data = view.rows if rewrite else rows
        extra = {k: pa.string() for row in data for k in row if k not in view.columns}
        schema = pa.schema({**view.columns, **extra})
        columns = [pa.array([row.get(f.name) for row in data], type=f.type) for f in schema]
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), folder / name)

    def materialize_everything(self) -> None:
        """Materialize all instants that there are."""
        self.store.materialize(BEGINNING, END)


def _definition(view: CaseView) -> str:
    ttl = "None" if view.ttl_us is None else f"timedelta(microseconds={view.ttl_us})"
    created = 'created_timestamp="created",' if view.created else ""
    fields = ", ".join(f'Field(name="{n}", dtype="{t}")' for n, t in view.features.items())
    entities = ""
    if view.join_keys:
        entities = f'Entity(name="entity_of_{view.name}", join_keys={list(view.join_keys)!r})'
    return textwrap.dedent(f"""
        {view.name} = FeatureView(
            name="{view.name}",
            entities=[{entities}],
            source=FileSource(
                name="source_of_{view.name}",
                path="sources/{view.name}",
                event_timestamp="event_timestamp",
                {created}
                field_mapping={view.mapping!r},
            ),
            features=[{fields}],
            ttl={ttl},
        )
        """)


def instant(value: int | str | None) -> datetime | None:
    """Return microseconds or ISO text as a datetime."""
    if value is None:
        return None
    if isinstance(value, int):
        return EPOCH + timedelta(microseconds=value)
    return datetime.fromisoformat(value)


def decode(value: Any, dtype: str) -> Any:
    """Return a JSON value of a case as the Python value that it stands for."""
    if isinstance(value, dict) and "hex" in value:
        return bytes.fromhex(value["hex"])
    if isinstance(value, dict) and "float" in value:
        return float(value["float"])
    if isinstance(value, str) and dtype == "timestamp":
        return datetime.fromisoformat(value)
    return value


def same(left: Any, right: Any) -> bool:
    """Whether two values are the same, NaN included, and of the same type."""
    if isinstance(left, float) and isinstance(right, float) and left != left:  # noqa: PLR0124
        return right != right  # noqa: PLR0124
    return type(left) is type(right) and left == right
