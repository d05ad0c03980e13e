"""Commands that read features: `get-historical-features` and `get-online-features`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Output, Table, count, plain

if TYPE_CHECKING:
    from featurestore.dtypes import DType
    from featurestore.services.historical import RetrievalJob
    from featurestore.services.response import OnlineResponse
    from featurestore.serving.info import ServingInfo
    from featurestore.wiring import FeatureStore

_SHOWN_ROWS = 20
_features = click.option(
    "--features",
    required=True,
    metavar="SERVICE|REFS",
    help="A feature service, or references such as view:feature,view:feature.",
)
_full_names = click.option(
    "--full-feature-names", is_flag=True, help="Name result columns view__feature."
)


@click.command(
    "get-historical-features",
    cls=Command,
    short_help="Make a training set: features as of each row.",
    interrupted="No file was written.",
)
@click.option(
    "--entity-rows",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A Parquet or CSV file of join keys and instants.",
)
@click.option("--sql", metavar="QUERY", help="Instead of a file: a query that gives them.")
@_features
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"The Parquet file to write. Without it the first {_SHOWN_ROWS} rows are shown.",
)
@click.option(
    "--timestamp-column",
    default="event_timestamp",
    show_default=True,
    metavar="COLUMN",
    help="The column of the instants.",
)
@click.option(
    "--knowledge",
    type=click.Choice(["healed", "known"]),
    default="healed",
    show_default=True,
    help="Use all that is known today, or only what was known at each row's instant.",
)
@_full_names
@click.option("--include-timestamps", is_flag=True, help="Add the matched rows' timestamps.")
@click.option("--materialize-missing", is_flag=True, help="Materialize first what is missing.")
@click.option("--explain", is_flag=True, help="Show how it would be done, and do not do it.")
@pass_invocation
def get_historical_features(
    invocation: Invocation,
    /,
    entity_rows: Path | None,
    sql: str | None,
    features: str,
    out: Path | None,
    *,
    explain: bool,
    **options: Any,
) -> Output:
    """Join features to entity rows, each as of its own instant: a training set."""
    if (entity_rows is None) == (sql is None):
        raise click.UsageError("Give either --entity-rows or --sql.")
    rows = sql if entity_rows is None else _rows_of_file(entity_rows)
    with invocation.store() as store, invocation.working("Joining features"):
        job = store.get_historical_features(rows, applied_features(store, features), **options)
        if explain:
            text = job.explain()
            return Output({"plan": text}, [Cell(text)])
        return _shown_job(job) if out is None else _written_job(job, out)


def applied_features(store: FeatureStore, features: str) -> str | list[str]:
    """Return what `--features` names: a service, or a list of references."""
    from featurestore.cli import arguments

    catalog = store.services.state.get().catalog
    return arguments.feature_list(features, catalog.services, {*catalog.views, *catalog.on_demand})


def _rows_of_file(path: Path) -> str:
    """Return the entity rows of a file as the store takes them."""
    full = str(path.resolve())
    if path.suffix.lower() == ".parquet":
        return full
    quoted = full.replace("'", "''")
    if path.suffix.lower() == ".csv":
        return f"SELECT * FROM read_csv('{quoted}')"
    raise click.UsageError(f"--entity-rows takes a .parquet or .csv file, not '{path.name}'.")


def _written_job(job: RetrievalJob, out: Path) -> Output:
    import pyarrow.parquet as pq

    job.to_parquet(out.resolve())
    written = pq.read_metadata(out)
    columns = [field.name for field in written.schema.to_arrow_schema()]
    text = f"{count(written.num_rows, 'row')} of {count(len(columns), 'column')} written to {out}."
    data = {"path": str(out.resolve()), "rows": written.num_rows, "columns": columns}
    return Output(data, [Cell(text, "good")])


def _shown_job(job: RetrievalJob) -> Output:
    table = job.to_arrow()
    columns = tuple(table.column_names)
    shown = table.slice(0, _SHOWN_ROWS).to_pylist(maps_as_pydicts="lossy")
    blocks: list[Block] = [
        Table(
            [f"~{c}" for c in columns],
            [[_text(row[c]) for c in columns] for row in shown],
            empty="No rows.",
        )
    ]
    if table.num_rows > _SHOWN_ROWS:
        rest = count(table.num_rows - _SHOWN_ROWS, "more row")
        blocks.append(Cell(f"{rest}; --out FILE.parquet writes all.", "faint"))
    return Output({"columns": columns, "rows": table.to_pylist(maps_as_pydicts="lossy")}, blocks)


@click.command(
    "get-online-features", cls=Command, short_help="Look up the newest features of entities."
)
@_features
@click.option(
    "--entity",
    "entities",
    multiple=True,
    metavar="KEY=VALUE[,...]",
    help="The join keys of an entity; repeat it for more entities.",
)
@click.option(
    "--request",
    "requests",
    multiple=True,
    metavar="FIELD=VALUE[,...]",
    help="Fields for on-demand views: once for all entities, or once for each.",
)
@click.option("--as-of", metavar="INSTANT", help="The instant to answer for. By default now.")
@_full_names
@click.option("--server", metavar="HOST:PORT", help="Ask this feature server over gRPC.")
@pass_invocation
def get_online_features(
    invocation: Invocation,
    features: str,
    entities: tuple[str, ...],
    requests: tuple[str, ...],
    as_of: str | None,
    *,
    full_feature_names: bool,
    server: str | None,
) -> Output:
    """Look up the newest features of entities."""
    from featurestore.cli import arguments

    options: Any = {"as_of": as_of, "full_feature_names": full_feature_names}
    if server is not None:
        from featurestore.cli.connecting import client_of

        with client_of(server) as client:
            info = client.serving_info()
            wanted = arguments.feature_list(features, info.services, info.views)
            keys, fields = _served_types(info, wanted)
            rows, request = _asked(entities, requests, keys, fields, exact=False)
            return _answer(client.get_online_features(wanted, rows, request=request, **options))
    with invocation.store() as store:
        wanted = applied_features(store, features)
        keys, fields = _local_types(store, wanted)
        rows, request = _asked(entities, requests, keys, fields, exact=True)
        return _answer(store.get_online_features(wanted, rows, request=request, **options))


def _local_types(
    store: FeatureStore, features: str | list[str]
) -> tuple[dict[str, DType], dict[str, DType]]:
    """Return the join keys and the request fields that features need, with their types."""
    from featurestore.compile.request import resolve

    state = store.services.state.get()
    # Full names: what two features would be called in the result is no matter here.
    plan = resolve(state.answering, state.serving, features, full_feature_names=True)
    keys = {name: key.type for name, key in plan.key_columns}
    return keys, {field.name: field.type for field in plan.request_fields}


def _served_types(
    info: ServingInfo, features: str | list[str]
) -> tuple[dict[str, DType], dict[str, DType]]:
    """Return what the views of a server take; what of it a service needs, the server knows."""
    from featurestore.dtypes import parse

    views = list(info.views.values())
    if not isinstance(features, str):
        names = {reference.partition(":")[0] for reference in features}
        views = [info.views[name] for name in names if name in info.views] or views
        # An on-demand view has the keys of views that the server does not name here.
        views = list(info.views.values()) if any(view.on_demand for view in views) else views
    keys = {name: parse(dtype) for view in views for name, dtype in view.join_keys.items()}
    return keys, {name: parse(dtype) for view in views for name, dtype in view.request.items()}


def _asked(
    entities: tuple[str, ...],
    requests: tuple[str, ...],
    keys: Mapping[str, DType],
    fields: Mapping[str, DType],
    *,
    exact: bool,
) -> tuple[list[dict[str, Any]], Any]:
    """Return entity rows and request rows of the command line's texts."""
    from featurestore.cli import arguments

    if not entities and keys and exact:
        raise click.UsageError(
            f"The features need an entity: --entity {','.join(f'{name}=...' for name in keys)}"
        )
    if not requests and fields and exact:
        raise click.UsageError(
            f"The features need more: --request {','.join(f'{name}=...' for name in fields)}"
        )
    rows = arguments.records("--entity", entities, keys, exact=exact) or [{}]
    if not requests:
        return rows, None
    asked = arguments.records("--request", requests, fields, exact=exact)
    return rows, asked * len(rows) if len(asked) == 1 else asked


def _answer(answer: OnlineResponse) -> Output:
    names, keys = answer.feature_names, [name for name, _ in answer.layout.keys]
    values, statuses, events = answer.to_dict(), answer.statuses, answer.event_timestamps
    rows = [
        {
            "keys": {name: values[name][i] for name in keys},
            "values": {name: values[name][i] for name in names},
            "statuses": {name: str(statuses[name][i]) for name in names},
            "event_timestamps": {name: events[name][i] for name in names},
        }
        for i in range(answer.rows)
    ]
    data = {
        "as_of": answer.as_of,
        "service": answer.service,
        "fingerprints": answer.fingerprints,
        "rows": rows,
    }
    return Output(data, [Cell(f"As of {plain(answer.as_of)}", "faint"), _answer_table(keys, rows)])


def _answer_table(keys: list[str], rows: list[dict[str, Any]]) -> Table:
    lines = [
        [
            *(_text(row["keys"][key]) for key in keys),
            name,
            _text(value),
            _status(row["statuses"][name]),
            _text(row["event_timestamps"][name]) if row["event_timestamps"][name] else "",
        ]
        for row in rows
        for name, value in row["values"].items()
    ]
    return Table((*keys, "feature", "~value", "status", "event timestamp"), lines)


def _status(status: str) -> Cell:
    return Cell(status, "good" if status == "PRESENT" else "warning")


def _text(value: Any) -> str:
    shown = plain(value)
    if shown is None or isinstance(shown, bool | dict | list):
        return json.dumps(shown, ensure_ascii=False)
    return str(shown)


COMMANDS = (get_historical_features, get_online_features)
