"""Declarations become the catalog: names are resolved, columns get types, SQL is checked.

The engine is asked what a query would return; nothing is read or written. Every error names the
declaration with file and line. Views are compiled here, what refers to views in `references`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from featurestore.compile.aggregates import Compiled, compile_aggregates
from featurestore.compile.declared import KINDS, Declarations, Declared
from featurestore.compile.fingerprints import (
    code_fingerprint,
    definition_fingerprint,
    table_fingerprint,
)
from featurestore.compile.plan import (
    Catalog,
    Column,
    EntityPlan,
    FeaturePlan,
    SourcePlan,
    ViewPlan,
)
from featurestore.compile.references import CodeOf, compile_on_demand, compile_services
from featurestore.compile.source_sql import (
    Describe,
    MappedSource,
    located,
    map_source,
    row_types,
    timestamp_sql,
)
from featurestore.compile.source_types import value_type
from featurestore.dtypes import parse
from featurestore.errors import DefinitionError, RequestError, SourceError
from featurestore.model.columns import Field
from featurestore.model.sources import FileSource, StreamSource

if TYPE_CHECKING:
    from datetime import timedelta

    from featurestore.model.declarations import Entity, FeatureView

__all__ = ["KINDS", "Declarations", "Declared", "SourceEyes", "compile_catalog"]

Kind = Literal["parquet", "csv", "delta", "query"]


@dataclass(frozen=True)
class SourceEyes:
    """What the compiler sees of the world.

    Attributes:
        describe: Returns the columns of a query without running it.
        relation: Returns SQL, to stand behind FROM, of a source under its own column names.
        kind: Returns the format of a path whose source declares none.
    """

    describe: Describe
    relation: Callable[[SourcePlan], str]
    kind: Callable[[str], Kind]


def compile_catalog(
    project: str,
    declarations: Declarations,
    eyes: SourceEyes,
    *,
    code_of: CodeOf = code_fingerprint,
) -> Catalog:
    """Return the catalog of all declarations.

    An entity that no view uses has no types, and is left out.

    Args:
        project: The project's name.
        declarations: What was found; what they refer to as objects is added.
        eyes: Looks at the sources.
        code_of: Returns the fingerprint of an on-demand function.

    Raises:
        DefinitionError: A declaration is wrong, or two do not go together.
        SourceError: A source cannot be read, or its columns differ from what is declared.
    """
    declared = declarations.complete()
    compiler = _ViewCompiler(declared, eyes)
    views = {view.name: compiler.compile(view) for view in declared.views}
    catalog = Catalog(project=project, entities=compiler.entities, views=views)
    catalog = compile_on_demand(catalog, declared, code_of)
    return compile_services(catalog, declared)


class _ViewCompiler:
    """Compiles views one by one and collects the types of their entities' join keys."""

    def __init__(self, declared: Declarations, eyes: SourceEyes) -> None:
        self._declared = declared
        self._eyes = eyes
        self._mapped: dict[str, MappedSource] = {}
        self._users: dict[str, FeatureView] = {}
        self.entities: dict[str, EntityPlan] = {}

    def compile(self, view: FeatureView) -> ViewPlan:
        """Return the plan of a view."""
        with located(self._declared.label(view)):
            mapped = self._source(view.source)
            keys = {name: self._key(mapped, name) for name in view.join_keys}
            for entity in view.entities:
                self._enter(entity, tuple(keys[name] for name in entity.join_keys), view)
            for role in ("event_timestamp", "created_timestamp"):
                timestamp_sql(mapped, role)
            where = _tidy(view.where)
            made = self._compiled(view, mapped, where)
            plan = ViewPlan(
                name=view.name,
                entities=tuple(entity.name for entity in view.entities),
                join_keys=tuple(keys.values()),
                features=made.features,
                source=mapped.source,
                aggregates=made.aggregates,
                inputs=made.inputs,
                where=where,
                ttl_us=_microseconds(view.ttl),
                online=view.online,
                schedule=view.schedule,
                description=view.description,
                owner=view.owner,
                tags=view.tags,
            )
        plan = plan.model_copy(update={"table_fingerprint": table_fingerprint(plan)})
        return plan.model_copy(update={"fingerprint": definition_fingerprint(plan)})

    def _compiled(self, view: FeatureView, mapped: MappedSource, where: str | None) -> Compiled:
        if view.aggregates:
            return compile_aggregates(view, mapped, where, self._eyes.describe)
        return Compiled(self._features(view, mapped, where), (), ())

    def _source(self, declared: FileSource | StreamSource) -> MappedSource:
        source = declared if isinstance(declared, FileSource) else declared.history
        if source.name not in self._mapped:
            place = self._declared.label(declared)
            with located(place):
                try:
                    mapped = self._look(source)
                    if isinstance(declared, StreamSource):
                        stream = mapped.source.model_copy(update={"stream": declared.stream})
                        mapped = replace(mapped, source=stream)
                    self._mapped[source.name] = mapped
                except SourceError as error:
                    if error.where:
                        error.where = f"{error.where} ({place})"
                    raise
                except RequestError as error:
                    raise _unreadable(source, error) from error
        return self._mapped[source.name]

    def _look(self, source: FileSource) -> MappedSource:
        plan = source_plan(source, self._eyes.kind)
        relation = self._eyes.relation(plan)
        return map_source(plan, relation, self._eyes.describe(f"SELECT * FROM {relation}"))

    def _key(self, mapped: MappedSource, name: str) -> Column:
        arrow = mapped.columns[mapped.column(name, "a join key")]
        dtype = value_type(name, "join key", arrow, None, mapped.source)
        return Column(name=name, dtype=str(dtype))

    def _features(
        self, view: FeatureView, mapped: MappedSource, where: str | None
    ) -> tuple[FeaturePlan, ...]:
        fields = [f for f in view.features if isinstance(f, Field)]
        expressions = {f.name: _tidy(f.expression) or "" for f in fields if f.expression}
        types = row_types(mapped, expressions, where, self._eyes.describe)

        def feature(field: Field) -> FeaturePlan:
            arrow = types.get(field.name)
            if arrow is None:
                arrow = mapped.columns[mapped.column(field.name, "a feature")]
            declared = parse(field.dtype) if field.dtype else None
            dtype = value_type(field.name, "feature", arrow, declared, mapped.source)
            return FeaturePlan(
                name=field.name,
                dtype=str(dtype),
                expression=expressions.get(field.name),
                description=field.description,
            )

        return tuple(feature(field) for field in fields)

    def _enter(self, entity: Entity, keys: tuple[Column, ...], view: FeatureView) -> None:
        plan = EntityPlan(
            name=entity.name,
            join_keys=keys,
            description=entity.description,
            owner=entity.owner,
            tags=entity.tags,
        )
        held = self.entities.setdefault(entity.name, plan)
        first = self._users.setdefault(entity.name, view)
        for ours, theirs in zip(keys, held.join_keys, strict=True):
            if ours.dtype != theirs.dtype:
                raise DefinitionError(
                    f"The join key '{ours.name}' of Entity '{entity.name}' has two types.",
                    where=f"{self._declared.label(first)}; {self._declared.label(view)}",
                    got=f"{theirs.dtype} in '{first.name}', {ours.dtype} in '{view.name}'",
                    allowed="one type: a key of another type matches nothing",
                    hint="Cast it in one of the sources with query=.",
                )


def _unreadable(source: FileSource, error: RequestError) -> DefinitionError:
    if source.query is None:
        return DefinitionError(
            f"The engine cannot read FileSource '{source.name}'.",
            got=error.got or error.what,
            hint="Say format=, or read it by query= with the reader's own options.",
        )
    return DefinitionError(
        f"The engine refuses the query of FileSource '{source.name}'.",
        got=error.got or error.what,
        allowed="one SELECT in DuckDB's SQL; paths are relative to the repository",
    )


def source_plan(source: FileSource, kind_of: Callable[[str], Kind]) -> SourcePlan:
    """Return how the engine reads a source.

    Args:
        source: The source.
        kind_of: Returns the format of a path; asked only where the source declares none.
    """
    kind: Kind = "query"
    if source.path is not None:
        kind = source.format or kind_of(source.path)
    return SourcePlan(
        name=source.name,
        kind=kind,
        path=source.path,
        query=_query(source.query),
        event_timestamp=source.event_timestamp,
        created_timestamp=source.created_timestamp,
        timezone=source.timezone,
        field_mapping=source.field_mapping,
        event_id=source.event_id,
        version=source.version,
        deleted=source.deleted,
    )


def _query(text: str | None) -> str | None:
    tidy = _tidy(text)
    if tidy is None:
        return None
    tidy = tidy.rstrip("; \n\t")
    # The query is put in brackets; a comment in its last line would swallow the closing one.
    return f"{tidy}\n" if "--" in tidy.rsplit("\n", 1)[-1] else tidy


def _tidy(text: str | None) -> str | None:
    return None if text is None else textwrap.dedent(text).strip()


def _microseconds(ttl: timedelta | None) -> int | None:
    if ttl is None:
        return None
    return (ttl.days * 86_400 + ttl.seconds) * 1_000_000 + ttl.microseconds
