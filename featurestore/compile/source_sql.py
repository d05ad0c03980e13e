"""SQL over a source: its rows under the declared names, as instants, typed as declared (law T1).

Dialect: DuckDB. Everything that is named is quoted. Expressions and conditions of users are taken
as they stand; they see the source's columns under their new names, with naive timestamps already
made instants where the source declares `timezone=`. They may look at one row only and give the same
at any time: windows, aggregates, random numbers and the clock are refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile import event_sql
from featurestore.compile.plan import EVENT_COLUMNS, EVENT_ID, SourcePlan, ViewPlan
from featurestore.compile.source_types import (
    convert,
    instant_expression,
    is_naive,
    refuse_unlike,
)
from featurestore.compile.table_sql import quote
from featurestore.errors import (
    DataError,
    DefinitionError,
    FeatureStoreError,
    RequestError,
    SourceSchemaError,
    listing,
    near_miss,
)
from featurestore.model.base import repeated

if TYPE_CHECKING:
    import pyarrow as pa

Describe = Callable[[str], "pa.Schema"]
"""Returns the columns that a query would have, without running it."""

_UNSTABLE = (
    r"random|setseed|uuid|uuidv4|uuidv7|gen_random_uuid|now|today|get_current_timestamp|"
    r"get_current_time|transaction_timestamp|current_localtimestamp|current_localtime|nextval"
)
_UNSTABLE_CALL = re.compile(
    rf"\b({_UNSTABLE})\s*\(|\b(current_date|current_timestamp|current_time|localtimestamp|localtime)\b",
    re.IGNORECASE,
)
# No feature can be called so.
_WHERE = "where="
_TEXTS_AND_COMMENTS = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL
)


@dataclass(frozen=True)
class MappedSource:
    """A source's relation under the declared names.

    Attributes:
        source: The source.
        relation: SQL that can stand behind FROM.
        columns: The Arrow type of each column by its new name; naive timestamps are instants where
            the source declares its zone.
    """

    source: SourcePlan
    relation: str
    columns: Mapping[str, pa.DataType]

    def column(self, name: str, role: str) -> str:
        """Return a column's name if there is one.

        Args:
            name: The new name.
            role: What the column is for, as in "join key", for the error.

        Raises:
            SourceSchemaError: There is none; the near miss is suggested.
        """
        if name in self.columns:
            return name
        renamed = self.source.field_mapping.get(name)
        hint = f"field_mapping= calls it '{renamed}'." if renamed else None
        raise SourceSchemaError(
            f"FileSource '{self.source.name}' has no column '{name}', declared as {role}.",
            allowed=listing(self.columns),
            hint=hint or near_miss(name, self.columns),
        )

    def timestamp_column(self, role: str, name: str) -> str:
        """Return the column of `event_timestamp` or `created_timestamp`; its old name works too."""
        if name not in self.columns:
            name = self.source.field_mapping.get(name, name)
        return self.column(name, f"its {role}")


def map_source(
    source: SourcePlan,
    relation: str,
    columns: pa.Schema,
    extras: Mapping[str, str] | None = None,
) -> MappedSource:
    """Return the source's relation under the names of `field_mapping`, naive columns as instants.

    Args:
        source: The source.
        relation: SQL over its files, under their own column names.
        columns: The columns of that relation.
        extras: Further columns of the result, {name: SQL}; nobody can ask for them by name.

    Raises:
        SourceSchemaError: `field_mapping` names no column, or makes two columns of one name.
    """
    _check_mapping(source, columns.names)
    selected: list[str] = []
    mapped: dict[str, Any] = {}
    changed = False
    for field in columns:
        name = source.field_mapping.get(field.name, field.name)
        expression, mapped[name] = quote(field.name), field.type
        if source.timezone and is_naive(field.type):
            expression, mapped[name] = instant_expression(expression, field.type, source.timezone)
            changed = True
        changed = changed or name != field.name
        selected.append(f"{expression} AS {quote(name)}")
    selected += [f"{sql} AS {name}" for name, sql in (extras or {}).items()]
    if changed or extras:
        relation = f"(SELECT {', '.join(selected)} FROM {relation})"
    return MappedSource(source, relation, mapped)


def mapped_relation(source: SourcePlan, relation_sql: str, columns: pa.Schema) -> str:
    """Return SQL, to stand behind FROM, of the source's rows under the declared names."""
    return map_source(source, relation_sql, columns).relation


def view_rows(
    view: ViewPlan,
    relation_sql: str,
    describe: Describe,
    *,
    live: bool = False,
    carried: Sequence[str] = (),
) -> str:
    """Return the SELECT of a view's rows: join keys, both timestamps, features.

    Rows of an aggregated view's log are events: their features are the event's own columns and the
    view's inputs.

    Every column has exactly its compiled type (a vector is a list, its length not checked here);
    `created_timestamp` is null throughout where the source declares none and has no stream. The
    history of a stream that declares none counts as learnt when it happened. The rows are looked at
    anew, so that a source whose columns have changed since the view was applied is refused and not
    misread.

    Args:
        view: The view.
        relation_sql: SQL over some of the source's files, under their own column names.
        describe: Tells the columns of a query.
        live: Whether the relation is the log of the source's stream: its rows count as learnt when
            the stream took them.
        carried: Columns of a live relation that come along behind the view's own.

    Raises:
        SourceSchemaError: The source no longer has the columns or types that the view needs.
        DefinitionError: The engine refuses an expression or the condition.
    """
    with located(f"FeatureView '{view.name}'"):
        schema = describe(f"SELECT * FROM {relation_sql}")
        extras = event_sql.extras(view.source, relation_sql, live=live) if view.is_log else None
        mapped = map_source(view.source, relation_sql, schema, extras)
        expressions = {f.name: f.expression for f in view.features if f.expression}
        types = row_types(mapped, expressions, view.where, describe)
        return _select(view, mapped, types, live=live, carried=carried)


def row_types(
    mapped: MappedSource, expressions: Mapping[str, str], where: str | None, describe: Describe
) -> dict[str, pa.DataType]:
    """Return the Arrow type of each feature's expression, after checking them and the condition.

    Raises:
        DefinitionError: The engine refuses one of them, or one looks further than at its row.
    """
    tried = [*expressions.items()]
    if where is not None:
        tried.append((_WHERE, where))
    for label, text in tried:
        _refuse_unstable(label, text)
    if not tried:
        return {}
    try:
        schema = _try(mapped, [text for _, text in tried], describe)
    except (RequestError, DataError):
        _blame(mapped, tried, describe)
        raise
    if where is not None:
        _require_condition(where, schema.field(len(tried) - 1).type)
    return {name: schema.field(index).type for index, name in enumerate(expressions)}


@contextlib.contextmanager
def located(place: str | None) -> Iterator[None]:
    """Add a place to the project's errors that pass and know none."""
    try:
        yield
    except FeatureStoreError as error:
        error.where = error.where or place
        raise


def _check_mapping(source: SourcePlan, names: Iterable[str]) -> None:
    known = list(names)
    for old in source.field_mapping:
        if old not in known:
            raise SourceSchemaError(
                f"FileSource '{source.name}' has no column '{old}', renamed by field_mapping=.",
                allowed=listing(known),
                hint=near_miss(old, known),
            )
    twice = repeated(source.field_mapping.get(name, name) for name in known)
    if twice and source.field_mapping:
        raise SourceSchemaError(
            f"field_mapping= of FileSource '{source.name}' gives two columns the name '{twice}'.",
            allowed="names that no other column has (case does not count)",
            hint="Choose another name, or rename the other column too.",
        )


def _select(
    view: ViewPlan,
    mapped: MappedSource,
    types: Mapping[str, pa.DataType],
    *,
    live: bool,
    carried: Sequence[str],
) -> str:
    outputs = _outputs(view, mapped, types, live=live)
    outputs += [(name, quote(name)) for name in carried]
    named = view.is_log and mapped.source.event_id is None
    if named:
        outputs = [output for output in outputs if output[0] != EVENT_ID]
    # Two levels: an expression must not see the name of another output.
    inner = ", ".join(f"{sql} AS __{i}" for i, (_, sql) in enumerate(outputs))
    outer = ", ".join(f"__{i} AS {quote(name)}" for i, (name, _) in enumerate(outputs))
    condition = "" if view.where is None else f" WHERE (\n{view.where}\n)"
    if not named:
        return f"SELECT {outer} FROM (SELECT {inner} FROM {mapped.relation}{condition})"
    file = event_sql.FILE
    rows = f"SELECT {outer}, {file} FROM (SELECT {inner}, {file} FROM {mapped.relation}{condition})"
    names = [name if name.endswith("_timestamp") else quote(name) for name, _ in outputs]
    order = [*(quote(k.name) for k in view.join_keys), "event_timestamp", "created_timestamp"]
    listed = [*order, *(quote(feature.name) for feature in view.features)]
    return f"SELECT {', '.join(listed)} FROM ({event_sql.with_identity(rows, names)})"


def _outputs(
    view: ViewPlan, mapped: MappedSource, types: Mapping[str, pa.DataType], *, live: bool
) -> list[tuple[str, str]]:
    """Return (name, SQL) of each column of a view's rows."""
    source = view.source
    outputs: list[tuple[str, str]] = []
    for key in view.join_keys:
        column = mapped.column(key.name, "a join key")
        arrow = mapped.columns[column]
        refuse_unlike(key.name, "join key", arrow, key.type, source, said="applied")
        outputs.append((key.name, convert(quote(column), arrow, key.type, source.timezone)))
    outputs.append(("event_timestamp", timestamp_sql(mapped, "event_timestamp")))
    learnt = "event_timestamp" if _from_history(source) else "created_timestamp"
    created = event_sql.ACCEPTED if live else timestamp_sql(mapped, learnt)
    outputs.append(("created_timestamp", created))
    told = event_sql.event_columns(mapped, created, live=live) if view.is_log else {}
    for feature in view.features:
        if feature.name in EVENT_COLUMNS:
            outputs.append((feature.name, told.get(feature.name, "''")))
            continue
        if feature.expression is None:
            arrow = mapped.columns[mapped.column(feature.name, "a feature")]
            expression = quote(feature.name)
        else:
            arrow, expression = types[feature.name], f"(\n{feature.expression}\n)"
        refuse_unlike(feature.name, "feature", arrow, feature.type, source, said="applied")
        outputs.append((feature.name, convert(expression, arrow, feature.type, source.timezone)))
    return outputs


def _from_history(source: SourcePlan) -> bool:
    """Whether rows that say nothing of when they were learnt lie beside others that do."""
    return source.created_timestamp is None and source.stream is not None


def timestamp_sql(mapped: MappedSource, role: str) -> str:
    """Return the SQL of `event_timestamp` or `created_timestamp` as TIMESTAMPTZ.

    Raises:
        SourceSchemaError: The column is missing, is no timestamp, or is naive and the source
            declares no zone.
    """
    source = mapped.source
    declared = source.event_timestamp if role == "event_timestamp" else source.created_timestamp
    if declared is None:
        return "CAST(NULL AS TIMESTAMPTZ)"
    column = mapped.timestamp_column(role, declared)
    arrow = mapped.columns[column]
    expression, _ = instant_expression(quote(column), arrow, source.timezone, role, source.name)
    return expression


def _try(mapped: MappedSource, texts: Sequence[str], describe: Describe) -> pa.Schema:
    """Return the columns that SQL expressions would give, each of one row."""
    items = ", ".join(f"(\n{text}\n) AS __{index}" for index, text in enumerate(texts))
    schema = describe(f"SELECT {items} FROM {mapped.relation}")
    # A condition may not hold what looks at other rows, so an expression is tried as one.
    rowwise = " OR ".join(f"(\n{text}\n) IS NULL" for text in texts)
    describe(f"SELECT 1 FROM {mapped.relation} WHERE {rowwise}")
    return schema


def _blame(mapped: MappedSource, tried: Sequence[tuple[str, str]], describe: Describe) -> None:
    """Raise the error of the one expression or condition that is at fault."""
    for name, text in tried:
        try:
            _try(mapped, [text], describe)
        except (RequestError, DataError) as error:
            raise DefinitionError(
                f"{_label(name)} is refused by the engine: {_brief(error)}",
                got=text,
                allowed=f"SQL over one row's columns: {listing(mapped.columns)}",
            ) from error


def _refuse_unstable(name: str, text: str) -> None:
    match = _UNSTABLE_CALL.search(_TEXTS_AND_COMMENTS.sub(" ", text))
    if match:
        raise DefinitionError(
            f"{_label(name)} gives another value each time it is run.",
            got=f"{match[1] or match[2]} in: {text}",
            allowed="SQL over the row's own columns",
            hint="What depends on the moment of asking belongs in an on-demand view.",
        )


def _require_condition(where: str, arrow: pa.DataType) -> None:
    if str(arrow) not in {"bool", "null"}:
        raise DefinitionError(
            f"{_label(_WHERE)} is neither true nor false.",
            got=f"{arrow}: {where}",
            allowed="a condition, such as amount > 0",
        )


def _label(name: str) -> str:
    return "The condition where=" if name == _WHERE else f"The expression of '{name}'"


def _brief(error: FeatureStoreError) -> str:
    """Return the engine's own message without the SQL that was compiled around it."""
    text = (error.got or error.what).split("\n\nLINE ")[0].strip()
    text = text.replace("WHERE clause cannot contain", "it may look at one row only, so no")
    return re.sub(r"^(Binder|Parser|Catalog|Conversion|Not implemented) Error: ", "", text)
