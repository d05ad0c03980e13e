"""The repository that `featurestore init` begins: definitions that teach, and data that fits them.

The files stand in `template/`; the data is made up here, the same on every machine but for its
instants, which end at the present hour so that nothing has expired. A folder that holds anything is
refused.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import RequestError, StorageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from featurestore.clock import Clock

CUSTOMERS = 20
_HOUR = 3_600_000_000
_DAYS = 14
_STEP_HOURS = 6
_SUFFIX = ".tmpl"
_PLANS = ("free", "plus", "business")


def write_repository(folder: Path, clock: Clock) -> tuple[str, list[Path]]:
    """Write a new repository; return its project's name and its files, relative to the folder.

    Args:
        folder: A folder that is empty or does not exist yet.
        clock: Tells when the made-up history ends.

    Raises:
        RequestError: The folder holds something, or is a file.
        StorageError: It cannot be written.
    """
    project = _project_name(folder.resolve().name)
    try:
        _require_empty(folder)
        texts = _texts(project)
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        tables = _tables(clock.now_us() // _HOUR * _HOUR)
        for name, columns in tables.items():
            _write_parquet(folder / name, columns)
    except OSError as error:
        raise StorageError(
            "The repository cannot be written.", where=str(folder), got=str(error)
        ) from error
    return project, [Path(name) for name in sorted((*texts, *tables))]


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(
            "A repository begins in an empty folder.",
            where=str(folder.resolve()),
            got="a file" if folder.is_file() else "a folder that holds something",
            hint="Name a folder that does not exist yet.",
        )


def _project_name(folder: str) -> str:
    name = re.sub(r"\W+", "_", folder, flags=re.ASCII).strip("_").lower()
    return name or "features"


def _texts(project: str) -> dict[str, str]:
    """Return {path: text} of the template, filled in."""
    found: dict[str, str] = {}
    for path, file in _files(resources.files("featurestore.cli") / "template", ""):
        text = file.read_text(encoding="utf-8")
        name = path.removesuffix(_SUFFIX)
        if not name.endswith(".py"):
            text = text.format(project=project, customers=CUSTOMERS)
        found[".gitignore" if name == "gitignore" else name] = text
    return found


def _files(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for item in folder.iterdir():
        if item.is_dir():
            found += _files(item, f"{prefix}{item.name}/")
        elif item.name.endswith(_SUFFIX):
            found.append((f"{prefix}{item.name}", item))
    return found


def _tables(end_us: int) -> dict[str, dict[str, tuple[str, list[Any]]]]:
    """Return {path: {column: (value type, values)}}."""
    return {
        "sources/profiles.parquet": _profiles(end_us),
        "sources/activity.parquet": _activity(end_us),
        "purchases.parquet": _purchases(end_us),
    }


def _draw(*numbers: int) -> int:
    """Return a number from 0 to 999 that looks random and never changes."""
    state = 17
    for number in numbers:
        state = (state * 1_103_515_245 + number * 12_345 + 1) % 2**31
        state ^= state >> 11
    return state % 1000


def _profiles(end_us: int) -> dict[str, tuple[str, list[Any]]]:
    rows = [
        (
            customer,
            end_us
            - (_DAYS + 6 - 8 * change) * 24 * _HOUR
            + _draw(customer, change, 1) * _HOUR // 9,
            _PLANS[(_draw(customer, 2) + change) % len(_PLANS)],
            500.0 * (1 + (_draw(customer, 3) + change) % 6),
        )
        for customer in range(1, CUSTOMERS + 1)
        for change in range(1 + _draw(customer, 4) % 2)
    ]
    return _columns(
        rows,
        customer_id="int64", changed_at="timestamp", plan="string", credit_limit="float64",
    )  # fmt: skip


def _activity(end_us: int) -> dict[str, tuple[str, list[Any]]]:
    rows = []
    for customer in range(1, CUSTOMERS + 1):
        for step in range(_DAYS * 24 // _STEP_HOURS):
            measured = end_us - step * _STEP_HOURS * _HOUR
            late_hours = 9 if _draw(customer, step, 5) < 50 else 0  # noqa: PLR2004
            recorded = min(measured + late_hours * _HOUR, end_us) + _HOUR // 60
            orders = _draw(customer, step, 6) % 4
            spend = orders * (10 + _draw(customer, step, 7) // 8 * 0.25)
            rows.append((customer, measured, recorded, orders, spend))
    return _columns(
        rows,
        customer_id="int64", measured_at="timestamp", recorded_at="timestamp",
        orders_24h="int64", spend_24h="float64",
    )  # fmt: skip


def _purchases(end_us: int) -> dict[str, tuple[str, list[Any]]]:
    rows = [
        (
            1 + _draw(number, 8) % CUSTOMERS,
            end_us - (1 + _draw(number, 9) * (_DAYS - 1) * 24 // 1000) * _HOUR,
            round(5 + _draw(number, 10) / 3, 2),
            _draw(number, 11) < 150,  # noqa: PLR2004
        )
        for number in range(200)
    ]
    return _columns(
        sorted(rows, key=lambda row: row[1]),
        customer_id="int64", event_timestamp="timestamp", amount="float64", was_fraud="bool",
    )  # fmt: skip


def _columns(rows: list[Any], **dtypes: str) -> dict[str, tuple[str, list[Any]]]:
    return {
        name: (dtype, [row[index] for row in rows])
        for index, (name, dtype) in enumerate(dtypes.items())
    }


def _write_parquet(path: Path, columns: dict[str, tuple[str, list[Any]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from featurestore.dtypes import parse

    arrays = {
        name: pa.array(values, pa.int64()).cast(parse(dtype).arrow)
        if dtype == "timestamp"
        else pa.array(values, parse(dtype).arrow)
        for name, (dtype, values) in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)
