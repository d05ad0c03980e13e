"""Online reads: the newest row of each entity as of an instant (laws T3, K2, O1-O4, V2).

A request is checked whole before anything is read; then one round trip fetches every key of every
view. What is visible is decided here, by the clock or by `as_of`, never by what the store has
thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from featurestore.clock import Clock
from featurestore.compile.request import FeaturesArgument, OnDemandStep, resolve, slot
from featurestore.errors import (
    AsOfBeforeRowError,
    FeatureStoreError,
    NameClashError,
    RequestError,
    listing,
)
from featurestore.ports.online import OnlineStore
from featurestore.ports.registry import ProjectState
from featurestore.semantics.packed import ManyHeads, OneHead
from featurestore.semantics.timeline import (
    MAX_INSTANT,
    MIN_INSTANT,
    format_instant,
    to_instant,
)
from featurestore.services.columns import InputRows
from featurestore.services.lookup import Lookup, LookupJoin, features_key
from featurestore.services.lookup_keys import (
    echoed_keys,
    encode_rows,
    read_once,
    spread,
    wanted_keys,
)
from featurestore.services.on_demand import OnDemandFunctions, run_steps
from featurestore.services.response import ArrowBlock, Block, OnlineResponse
from featurestore.services.state import StateCache
from featurestore.services.state_reading import StateReading, read_deeper, read_together

if TYPE_CHECKING:
    import pyarrow as pa

_REMEMBERED = 256
# Up to so many rows a lookup takes less than a millisecond.
_SMALL_ROWS = 128


@dataclass(frozen=True, slots=True)
class Prepared:
    """A lookup that was checked whole; nothing of it has been read.

    Attributes:
        lookup: What is asked for.
        rows: The entity rows.
        as_of: The instant, None for now.
        fields: The request fields of on-demand views.
        keys: The key of each row, by key group.
    """

    lookup: Lookup
    rows: InputRows
    as_of: int | None
    fields: dict[str, pa.Array]
    keys: Sequence[Sequence[bytes | None]]

    @property
    def is_small(self) -> bool:
        """Whether it reads not too many plain rows and nothing else, so that it holds up nobody."""
        lookup = self.lookup
        return not lookup.has_windows and not lookup.plan.steps and self.rows.rows <= _SMALL_ROWS


class OnlineReader:
    """Looks up the newest values of features.

    Args:
        project: The project's name.
        state: The applied definitions.
        online: The store.
        functions: The functions of on-demand views.
        clock: Says what "now" is.
    """

    def __init__(
        self,
        project: str,
        state: StateCache,
        online: OnlineStore,
        functions: OnDemandFunctions,
        clock: Clock,
    ) -> None:
        self.project = project
        self.state = state
        self._online = online
        self._functions = functions
        self._clock = clock
        self._prepared: tuple[ProjectState | None, dict[Hashable, Lookup]] = (None, {})

    def get_online_features(
        self,
        features: FeaturesArgument,
        entity_rows: Any,
        *,
        as_of: datetime | str | int | None = None,
        request: Any = None,
        full_feature_names: bool = False,
        timeout: float | None = None,
    ) -> OnlineResponse:
        """Return the features of entities as of an instant.

        Args:
            features: A service, its name, or a list of `view:feature` references.
            entity_rows: The join keys: a list of dicts, a dict of lists, or a pyarrow, polars or
                pandas table. Columns that are no join key are ignored.
            as_of: The instant; an integer is microseconds. None is now, and never before the
                newest row that was read: clocks of two machines may differ.
            request: The fields of on-demand views: one row an entity row, or a dict of single
                values for all of them. Fields that are missing are taken from the entity rows.
            full_feature_names: Name the result's columns `view__feature`.
            timeout: Seconds to wait for the store at most; None takes the store's setting.

        Raises:
            RequestError: Something asked for makes no sense; its subclasses say what.
            AsOfBeforeRowError: A stored row is newer than `as_of` (law O1).
            NotMaterializedError: A feature has no complete table, or no code, to answer from.
            DataError: A stored row has another schema (law O4), or an on-demand view failed.
            OnlineStoreUnavailableError: The store does not answer in time (law O5).
        """
        prepared = self.prepare(
            features,
            entity_rows,
            as_of=as_of,
            request=request,
            full_feature_names=full_feature_names,
        )
        return self.look_up(prepared, timeout)

    def prepare(
        self,
        features: FeaturesArgument,
        entity_rows: Any,
        *,
        as_of: datetime | str | int | None = None,
        request: Any = None,
        full_feature_names: bool = False,
    ) -> Prepared:
        """Return a lookup that is ready to be made; arguments and errors as above."""
        lookup = self._resolved(features, full_feature_names=full_feature_names)
        rows = InputRows.of(entity_rows)
        instant = None if as_of is None else checked_as_of(as_of)
        if not lookup.output_names.isdisjoint(rows.columns):
            raise _clash(lookup, rows)
        fields = {}
        if lookup.plan.request_fields:
            fields = self._request_fields(lookup, rows, request)
        return Prepared(
            lookup, rows, instant, fields, [encode_rows(rows, g) for g in lookup.groups]
        )

    def look_up(self, prepared: Prepared, timeout: float | None = None) -> OnlineResponse:
        """Return the answer to a lookup; errors as above."""
        lookup, rows = prepared.lookup, prepared.rows
        if not lookup.has_windows:
            wanted = wanted_keys(lookup.joins, prepared.keys)
            return self._answer(prepared, self._fetch(wanted, timeout))
        instant, blocks = self._look_at_states(lookup, prepared.keys, rows, prepared.as_of, timeout)
        return self._response(prepared, instant, blocks)

    def look_up_together(
        self, asked: Sequence[Prepared], timeout: float | None = None
    ) -> list[OnlineResponse | FeatureStoreError]:
        """Return the answers to lookups without windows, or why one has none, by one round trip.

        Raises:
            OnlineStoreUnavailableError: The store does not answer in time (law O5).
        """
        wanted = [wanted_keys(each.lookup.joins, each.keys) for each in asked]
        reads = [read_once(each) for each in wanted]
        keys = [key for each in reads for key in each]
        values = iter(self._online.read(keys, timeout=timeout) if keys else ())
        found: list[OnlineResponse | FeatureStoreError] = []
        for each, mine, read in zip(asked, wanted, reads, strict=True):
            held: list[bytes | None] = list(islice(values, len(read)))
            try:
                found.append(self._answer(each, spread(held, read, mine)))
            except FeatureStoreError as error:
                found.append(error)
        return found

    def read_through(self, wrap: Callable[[OnlineStore], OnlineStore]) -> None:
        """Read the store by what wraps it, such as a stopwatch; before the first lookup."""
        self._online = wrap(self._online)

    def ping(self, timeout: float | None = None) -> None:
        """Return when the online store answers.

        Raises:
            OnlineStoreUnavailableError: It does not.
        """
        self._online.ping(timeout=timeout)

    def cautions(self) -> list[str]:
        """Return what threatens what the online store keeps, a sentence each.

        Raises:
            FeatureStoreError: The store does not tell.
        """
        return self._online.cautions()

    def _answer(self, prepared: Prepared, values: Sequence[bytes | None]) -> OnlineResponse:
        """Return the answer to a lookup without windows."""
        lookup, rows = prepared.lookup, prepared.rows
        heads = self._heads(lookup.joins, values, rows)
        instant = self._instant(lookup.joins, rows, heads, prepared.as_of)
        return self._response(prepared, instant, _seen(lookup.joins, heads, instant))

    def _response(self, prepared: Prepared, instant: int, blocks: list[Block]) -> OnlineResponse:
        lookup, rows = prepared.lookup, prepared.rows
        if lookup.plan.steps:
            blocks += self._run_steps(lookup, blocks, prepared.fields, rows.rows)
        echo = ArrowBlock(lambda: echoed_keys(lookup, rows))
        return OnlineResponse(lookup.layout, rows.rows, instant, echo, blocks)

    def _resolved(self, features: FeaturesArgument, *, full_feature_names: bool) -> Lookup:
        state = self.state.get()
        held, lookups = self._prepared
        if held is not state:
            lookups = {}
            self._prepared = (state, lookups)
        key = features_key(features)
        found = lookups.get((key, full_feature_names))
        if found is None:
            plan = resolve(
                state.answering, state.serving, features, full_feature_names=full_feature_names
            )
            found = Lookup(self.project, plan)
            if len(lookups) >= _REMEMBERED:
                lookups.clear()
            lookups[key, full_feature_names] = found
        return found

    def _request_fields(self, lookup: Lookup, rows: InputRows, request: Any) -> dict[str, pa.Array]:
        given = None if request is None else InputRows.of_request(request, rows.rows)
        columns = {}
        for field in lookup.plan.request_fields:
            held = given is not None and field.name in given.columns
            source = rows if given is None or (not held and field.name in rows.columns) else given
            columns[field.name] = source.column(
                field.name, field.type, _readers_of(lookup, field.name), rounding=True
            )
        return columns

    def _look_at_states(
        self,
        lookup: Lookup,
        keys: Sequence[Sequence[bytes | None]],
        rows: InputRows,
        as_of: int | None,
        timeout: float | None,
    ) -> tuple[int, list[Block]]:
        """Return the instant and the parts of an answer that has aggregated views in it."""
        plain = [item for item in lookup.joins if item.windows is None]
        readings = {
            place: StateReading.of(item.windows, item.namespace, keys[item.group])
            for place, item in enumerate(lookup.joins)
            if item.windows is not None
        }
        now = self._clock.now_us()
        asked = now if as_of is None else as_of
        wanted = wanted_keys(plain, keys)
        unique = [key for key in dict.fromkeys(wanted) if key is not None]
        states = list(readings.values())
        read = read_together(self._online, states, unique, asked, timeout)
        found: dict[bytes | None, bytes | None] = dict(zip(unique, read, strict=True))
        heads = self._heads(plain, [found.get(key) for key in wanted], rows)
        instant = self._instant(plain, rows, heads, as_of, now)
        read_deeper(self._online, states, instant, asked, timeout)
        seen = iter(_seen(plain, heads, instant))
        blocks: list[Block] = [
            readings[place].block(instant, now) if place in readings else next(seen)
            for place in range(len(lookup.joins))
        ]
        return instant, blocks

    def _heads(
        self, items: Sequence[LookupJoin], values: Sequence[bytes | None], rows: InputRows
    ) -> list[OneHead | ManyHeads]:
        count = rows.rows
        if count == 1:
            return [OneHead(item.reader, value) for item, value in zip(items, values, strict=True)]
        return [
            item.reader.heads(values[i * count : (i + 1) * count]) for i, item in enumerate(items)
        ]

    def _fetch(
        self, wanted: Sequence[bytes | None], timeout: float | None
    ) -> Sequence[bytes | None]:
        """Return the value of each key, None for no key; each key is read once."""
        keys = read_once(wanted)
        held = self._online.read(keys, timeout=timeout) if keys else []
        return spread(held, keys, wanted)

    def _instant(
        self,
        items: Sequence[LookupJoin],
        rows: InputRows,
        heads: Sequence[OneHead | ManyHeads],
        as_of: int | None,
        now: int | None = None,
    ) -> int:
        if as_of is None:
            events = [head.newest for head in heads]
            now = self._clock.now_us() if now is None else now
            return max([now, *(e for e in events if e is not None)])
        for item, head in zip(items, heads, strict=True):
            after = head.first_after(as_of)
            if after is not None:
                raise _too_early(item, rows, *after, as_of)
        return as_of

    def _run_steps(
        self, lookup: Lookup, blocks: Sequence[Block], fields: dict[str, pa.Array], rows: int
    ) -> list[Block]:
        joins = len(blocks)
        slots = {
            name: blocks[source].array(index)
            for name, source, index in lookup.step_inputs
            if source < joins
        }
        filled = run_steps(lookup.plan, slots, fields, rows, self._functions)
        return [_step_block(step, filled) for step in lookup.plan.steps]


def _seen(
    items: Sequence[LookupJoin], heads: Sequence[OneHead | ManyHeads], instant: int
) -> list[Block]:
    return [
        head.at(instant, item.join.view.ttl_us) for head, item in zip(heads, items, strict=True)
    ]


def _step_block(step: OnDemandStep, filled: dict[str, pa.Array]) -> ArrowBlock:
    arrays = [filled[slot(step.plan.name, feature.name)] for feature in step.plan.features]
    return ArrowBlock(lambda: arrays)


def checked_as_of(as_of: datetime | str | int) -> int:
    """Return `as_of` in microseconds.

    Raises:
        NaiveTimestampError: It has no time zone.
        RequestError: It is no instant, or outside of the years 1 to 9999.
    """
    instant = to_instant(as_of, "as_of")
    if not MIN_INSTANT <= instant <= MAX_INSTANT:
        raise RequestError(
            "'as_of' is no instant of the years 1 to 9999.",
            got=f"{instant} microseconds",
            allowed="microseconds since 1970-01-01T00:00:00Z",
        )
    return instant


def _readers_of(lookup: Lookup, field: str) -> str:
    names = [s.plan.name for s in lookup.plan.steps if any(f.name == field for f in s.request)]
    return f"on-demand view {listing(names)}"


def _clash(lookup: Lookup, rows: InputRows) -> NameClashError:
    names = sorted(lookup.output_names & rows.columns.keys())
    return NameClashError(
        f"The feature '{names[0]}' is named like a column of the entity rows.",
        got=listing(names),
        hint="Ask with full_feature_names=True, or leave the column out.",
    )


def _too_early(
    item: LookupJoin, rows: InputRows, row: int, event: int, as_of: int
) -> AsOfBeforeRowError:
    view = item.join.view.name
    pairs = zip(item.join.key_columns, item.join.view.join_keys, strict=True)
    keys = [f"{name}={rows.key(name, key.type, view)[row].as_py()!r}" for name, key in pairs]
    return AsOfBeforeRowError(
        f"The row of '{view}' that is kept online is newer than 'as_of'.",
        where=f"view '{view}', {', '.join(keys) or 'no entity'}",
        got=f"as_of {format_instant(as_of)}, row of {format_instant(event)}",
        allowed=f"as_of of {format_instant(event)} or later",
        hint="The online store keeps the newest row only; get_historical_features knows the past.",
    )
