"""Try a definition on a handful of events: no store, no files of yours, no clock.

    values = feed(view, events=[{"card_id": 1, "amount": 9.5, "at": "2024-01-01T09:30:00Z"}])
    values.at("2024-01-01T10:00:00Z", card_id=1)      # {"amount_sum_1h": 9.5}

What answers is what answers in production: the definition is compiled, its SQL makes rows of the
events, the training set's join computes the features; and the online store, in memory, is fed with
the same rows and must give the same bits, or an error is raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from featurestore.errors import DataError, RequestError, listing, near_miss
from featurestore.semantics.timeline import to_datetime, to_instant

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import ViewPlan
    from featurestore.model.declarations import FeatureView
    from featurestore.model.sources import FileSource

Instant = datetime | str
Knowledge = Literal["healed", "known"]


def feed(view: FeatureView, events: Any, *, dtypes: Mapping[str, str] | None = None) -> Fed:
    """Return a view fed with events, ready to be asked.

    Args:
        view: A feature view, of newest rows or of aggregates.
        events: What the view's source would hold, under the source's own column names: a list of
            dicts, or a pyarrow, polars or pandas table. The source's timestamp columns also take
            ISO 8601 texts. A row's position is its place in the list.
        dtypes: {column: value type}, such as {"amount": "float64"}, for columns whose type the
            values do not tell: all of them None, or no events at all.

    Raises:
        DefinitionError: The definition does not compile.
        SourceError: The events lack a column, or have another type than is needed.
        DataError: The view's SQL cannot be computed for an event.
    """
    from featurestore.model.sources import FileSource
    from featurestore.testing.trial import Trial

    source = view.source if isinstance(view.source, FileSource) else view.source.history
    table = _table(events, source, dtypes or {})
    return Fed(Trial(_without_renaming(view, table.column_names), table))


class Fed:
    """A view that was fed with events; made by `feed`.

    Attributes:
        rejected: How many events had no key or no instant, and are no rows of the view.
    """

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.rejected: int = trial.rejected

    def at(
        self, as_of: Instant | Sequence[Instant], *, knowledge: Knowledge = "healed", **keys: Any
    ) -> Any:
        """Return the features as of an instant.

        Args:
            as_of: An aware instant or an ISO 8601 text; a list asks for several.
            knowledge: "healed" uses all events, "known" only those that had been learnt by then.
            keys: The join keys, a value each; lists ask for several entities.

        Returns:
            {feature: value}; where anything was a list, a list of these, one an item. Lists go
            together item by item, single values with each of them.

        Raises:
            RequestError: A join key is missing or unknown, or lists differ in length.
            DataError: The online store gives other bits. That is a bug of featurestore.
        """
        given = {"as_of": as_of, **keys}
        self._check_keys(keys)
        lengths = {len(value) for value in given.values() if isinstance(value, list | tuple)}
        if len(lengths) > 1:
            raise RequestError("The lists differ in length.", got=f"{sorted(lengths)}")
        rows = lengths.pop() if lengths else 1
        columns = {
            name: list(value) if isinstance(value, list | tuple) else [value] * rows
            for name, value in given.items()
        }
        instants = [to_instant(value, "as_of") for value in columns.pop("as_of")]
        found: list[dict[str, Any]] = self._trial.answer(instants, columns, knowledge)
        is_single = not any(isinstance(value, list | tuple) for value in given.values())
        return found[0] if is_single else found

    def _check_keys(self, keys: Mapping[str, Any]) -> None:
        plan: ViewPlan = self._trial.plan
        wanted = [key.name for key in plan.join_keys]
        missing = [name for name in wanted if name not in keys]
        unknown = [name for name in keys if name not in wanted]
        if missing or unknown:
            raise RequestError(
                "The join keys are not those of the view.",
                where=f"FeatureView '{plan.name}'",
                got=listing(keys),
                allowed=listing(wanted),
                hint=near_miss(unknown[0], wanted) if unknown else None,
            )


def _without_renaming(view: FeatureView, columns: Sequence[str]) -> FeatureView:
    """Let columns be left out that the source renames and the view does not need."""
    from featurestore.model.sources import StreamSource

    source = view.source
    files = source.batch if isinstance(source, StreamSource) else source
    mapping = {old: new for old, new in files.field_mapping.items() if old in columns}
    files = files.model_copy(update={"field_mapping": mapping})
    is_stream = isinstance(source, StreamSource)
    changed = source.model_copy(update={"batch": files}) if is_stream else files
    return view.model_copy(update={"source": changed})


def _table(events: Any, source: FileSource, types: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    from featurestore.dtypes import parse
    from featurestore.services.event_table import events_table

    if isinstance(events, list | tuple):
        if not events:
            empty = {name: pa.array([], parse(text).arrow) for name, text in types.items()}
            return pa.table(empty)
        events = [_with_instants(dict(event), source) for event in events]
        events = _complete(events)
    table = events_table(events)
    for name, text in types.items():
        wanted = parse(text).arrow
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, wanted))
            continue
        place = table.column_names.index(name)
        try:
            column = table.column(name).cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"The column '{name}' of 'events' cannot be read as {text}.",
                got=str(table.column(name).type),
                allowed=text,
            ) from error
        table = table.set_column(place, name, column)
    return table


def _complete(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let events leave columns out that others have: they are null there."""
    names = dict.fromkeys(name for event in events for name in event)
    return [{name: event.get(name) for name in names} for event in events]


def _with_instants(event: dict[str, Any], source: FileSource) -> dict[str, Any]:
    """Read texts in the source's timestamp columns; one without a zone is an instant in none."""
    back = {new: old for old, new in source.field_mapping.items()}
    for declared in (source.event_timestamp, source.created_timestamp):
        if declared is None:
            continue
        name = declared if declared in event else back.get(declared, declared)
        if isinstance(event.get(name), str):
            event[name] = _instant(event[name], name, source)
    return event


def _instant(text: str, name: str, source: FileSource) -> datetime:
    if source.timezone is None:
        return to_datetime(to_instant(text, name))
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(
            f"'{name}' is no instant.", got=repr(text), allowed="ISO 8601: 2013-01-31T12:00:00"
        ) from error
