"""The facade: one object with the verbs of a feature store, each delegated to its service.

Instants come as aware datetimes or ISO 8601 texts and go on as microseconds (law T1). Which
adapters stand behind the services is `wiring`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from featurestore.semantics.timeline import to_instant

if TYPE_CHECKING:
    from pathlib import Path

    from featurestore.clock import Clock
    from featurestore.compile.catalog import Declarations
    from featurestore.compile.diff import ApplyPlan
    from featurestore.compile.request import FeaturesArgument
    from featurestore.model.settings import Settings
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import Registry
    from featurestore.services.historical import HistoricalReader, RetrievalJob
    from featurestore.services.ingestion import Ingestor, Tell
    from featurestore.services.jobs import MaterializationReport, Materializer
    from featurestore.services.materialization import Progress
    from featurestore.services.online import OnlineReader
    from featurestore.services.pushing_events import EventPusher, PushReceipt
    from featurestore.services.registration import ApplyResult, Registration
    from featurestore.services.response import OnlineResponse
    from featurestore.services.state import StateCache
    from featurestore.services.status import StatusReader, ViewStatus
    from featurestore.services.value_explaining import ValueExplainer
    from featurestore.services.value_report import ValueReport
    from featurestore.services.verification import Verifier
    from featurestore.services.verification_reading import Answering
    from featurestore.services.verification_report import VerificationReport

Instant = datetime | str


class Services(Protocol):
    """What a store delegates to; each is made on first use."""

    settings: Settings
    folder: Path
    clock: Clock

    @property
    def registry(self) -> Registry: ...  # noqa: D102
    @property
    def online_store(self) -> OnlineStore: ...  # noqa: D102
    @property
    def state(self) -> StateCache: ...  # noqa: D102
    @property
    def registration(self) -> Registration: ...  # noqa: D102
    @property
    def materializer(self) -> Materializer: ...  # noqa: D102
    @property
    def event_pusher(self) -> EventPusher: ...  # noqa: D102
    @property
    def historical(self) -> HistoricalReader: ...  # noqa: D102
    @property
    def online(self) -> OnlineReader: ...  # noqa: D102
    @property
    def status(self) -> StatusReader: ...  # noqa: D102
    @property
    def verifier(self) -> Verifier: ...  # noqa: D102
    @property
    def value_explainer(self) -> ValueExplainer: ...  # noqa: D102
    def ingestor(  # noqa: D102
        self, member: str, *, sources: Sequence[str] = ..., workers: int = ..., tell: Tell = ...
    ) -> Ingestor: ...
    def declarations(self) -> Declarations: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class BaseStore:
    """A feature store over given services; `featurestore.FeatureStore` opens one from a folder."""

    def __init__(self, services: Services) -> None:
        self.services = services

    @property
    def project(self) -> str:
        """The project's name."""
        return self.services.settings.project

    def plan(self, declarations: Declarations | None = None) -> ApplyPlan:
        """Return what `apply` would change; nothing is written.

        Args:
            declarations: By default those of the repository's definitions folder.

        Raises:
            DefinitionError: A definition is wrong; names file and line.
            SourceError: A source cannot be read or has other columns.
        """
        return self.services.registration.plan(declarations or self.services.declarations()).plan

    def apply(
        self,
        declarations: Declarations | None = None,
        *,
        allow_destructive: bool = False,
        applied_by: str | None = None,
    ) -> ApplyResult:
        """Make the definitions the applied ones, all at once.

        Raises:
            DestructiveChangeError: Data would be dropped and `allow_destructive` is not set.
            ConflictError: Somebody else applied since; nothing was changed.
        """
        result = self.services.registration.apply(
            declarations or self.services.declarations(),
            allow_destructive=allow_destructive,
            applied_by=applied_by or _user(),
        )
        self.services.state.invalidate()
        return result

    def teardown(self) -> tuple[str, ...]:
        """Delete this project's tables, online values and definitions, and nothing else (law M7).

        Returns:
            The ids of the tables.
        """
        deleted = self.services.registration.teardown()
        self.services.state.invalidate()
        return deleted

    def materialize(
        self,
        start: Instant,
        end: Instant,
        views: Sequence[str] | None = None,
        *,
        attempt: int = 1,
        progress: Progress = lambda *_: None,
    ) -> MaterializationReport:
        """Write the rows of `[start, end)` to the views' tables and push the newest online.

        Running it again, or twice at once, changes nothing (law M3).
        """
        report = self.services.materializer.materialize(
            to_instant(start, "start"),
            to_instant(end, "end"),
            views,
            attempt=attempt,
            progress=progress,
        )
        self.services.state.invalidate()
        return report

    def materialize_incremental(
        self,
        end: Instant | None = None,
        views: Sequence[str] | None = None,
        *,
        attempt: int = 1,
        progress: Progress = lambda *_: None,
    ) -> MaterializationReport:
        """Do the same for all that is new up to `end`, late rows included (law M6)."""
        until = None if end is None else to_instant(end, "end")
        report = self.services.materializer.materialize_incremental(
            until, views, attempt=attempt, progress=progress
        )
        self.services.state.invalidate()
        return report

    def push(self, source: str, events: Any) -> PushReceipt:
        """Append live events to the stream of a source, durably.

        `featurestore ingest` puts them online within milliseconds, and into the tables. Pushing
        events again changes nothing.

        Args:
            source: The name of a `StreamSource` that an applied view has.
            events: A list of dicts, a dict of lists, or a pyarrow, polars or pandas table, with the
                columns of the source's history; those that are missing are null.

        Raises:
            FeatureNotFoundError: No applied view has a source of this name.
            RequestError: The source has no stream, or the events do not fit its history.
            StreamUnavailableError: The stream is gone; push all of them again later.
        """
        return self.services.event_pusher.push(source, events)

    def get_historical_features(
        self,
        entity_rows: Any,
        features: FeaturesArgument,
        *,
        timestamp_column: str = "event_timestamp",
        knowledge: Literal["healed", "known"] = "healed",
        full_feature_names: bool = False,
        include_timestamps: bool = False,
        materialize_missing: bool = False,
    ) -> RetrievalJob:
        """Join features to entity rows as of each row's instant (laws T, K, J).

        Args:
            entity_rows: A pyarrow, polars or pandas table, a Parquet path or a SQL string, with
                the join keys and an instant in each row.
            features: A service, its name, or a list of `view:feature` references.
            timestamp_column: The column of the instants.
            knowledge: "healed" uses all that the tables hold now, "known" only what had been
                learnt by each row's instant.
            full_feature_names: Name result columns `view__feature`.
            include_timestamps: Add the matched rows' timestamps, `view__event_timestamp` and so on.
            materialize_missing: Materialize first what the entity rows need and is missing.
        """
        return self.services.historical.get_historical_features(
            entity_rows,
            features,
            timestamp_column=timestamp_column,
            knowledge=knowledge,
            full_feature_names=full_feature_names,
            include_timestamps=include_timestamps,
            materialize_missing=materialize_missing,
        )

    def get_snapshot(
        self,
        features: FeaturesArgument,
        *,
        as_of: Instant,
        knowledge: Literal["healed", "known"] = "healed",
        full_feature_names: bool = False,
        include_timestamps: bool = False,
    ) -> RetrievalJob:
        """Return the features of every entity that is known at an instant, for batch scoring."""
        return self.services.historical.get_snapshot(
            features,
            as_of=to_instant(as_of, "as_of"),
            knowledge=knowledge,
            full_feature_names=full_feature_names,
            include_timestamps=include_timestamps,
        )

    def get_online_features(
        self,
        features: FeaturesArgument,
        entity_rows: Any,
        *,
        as_of: Instant | None = None,
        request: Any = None,
        full_feature_names: bool = False,
    ) -> OnlineResponse:
        """Look up the newest values of entities as of an instant; now by default (laws T3, O1-O4).

        Args:
            features: A service, its name, or a list of `view:feature` references.
            entity_rows: The join keys: a list of dicts, a dict of lists or a table.
            as_of: The instant; one before the stored row is refused, never answered wrongly.
            request: Values for on-demand views, one row an entity.
            full_feature_names: Name result columns `view__feature`.
        """
        return self.services.online.get_online_features(
            features,
            entity_rows,
            as_of=None if as_of is None else to_instant(as_of, "as_of"),
            request=request,
            full_feature_names=full_feature_names,
        )

    def verify(
        self,
        features: FeaturesArgument,
        *,
        sample: int | None = None,
        entities: Any = None,
        as_of: Instant | Sequence[Instant] | None = None,
        seed: int = 0,
        client: Answering | None = None,
    ) -> VerificationReport:
        """Compute again what is served online, and compare it bit for bit (laws V1, V2).

        Args:
            features: A service, its name, or a list of `view:feature` references.
            sample: How many entities to draw from the views' tables; None takes all of them.
            entities: Instead of these: a Parquet or CSV file, or a table, with the join keys.
            as_of: The instants to ask for; one, several, or now.
            seed: Draws another sample.
            client: An `OnlineClient`, to ask its server; without one, this process reads the store.

        Raises:
            RequestError: Nothing could be compared.
        """
        given = [] if as_of is None else [as_of] if isinstance(as_of, Instant) else as_of
        return self.services.verifier.verify(
            features,
            sample=sample,
            entities=entities,
            as_of=[to_instant(instant, "as_of") for instant in given],
            seed=seed,
            ask=None if client is None else client.get_online_features,
        )

    def explain(
        self, reference: str, entity: Mapping[str, Any], *, as_of: Instant | None = None
    ) -> ValueReport:
        """Return where a value comes from: its rows or events, and what is served online.

        Args:
            reference: `view:feature`.
            entity: A value for each join key.
            as_of: The instant; None is now.
        """
        instant = None if as_of is None else to_instant(as_of, "as_of")
        return self.services.value_explainer.explain(reference, entity, instant)

    def status(self) -> list[ViewStatus]:
        """Return for each view its freshness, runs, rows, and whether it is late."""
        return self.services.status.views()

    def close(self) -> None:
        """Let go of files and connections."""
        self.services.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
