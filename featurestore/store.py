"""The facade: one object with the verbs of a feature store, each delegated to its service.

Instants come as aware datetimes or ISO 8601 texts and go on as microseconds (law T1). Who may use
which verb is the gate's business; which adapters stand behind the services is `wiring`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from featurestore.access.gate import OPEN, Gate
from featurestore.semantics.timeline import to_instant

if TYPE_CHECKING:
    from featurestore.compile.catalog import Declarations
    from featurestore.compile.diff import ApplyPlan
    from featurestore.compile.request import FeaturesArgument
    from featurestore.services.historical import RetrievalJob
    from featurestore.services.jobs import MaterializationReport
    from featurestore.services.materialization import Progress
    from featurestore.services.provided import Services
    from featurestore.services.pushing_events import PushReceipt
    from featurestore.services.registration import ApplyResult
    from featurestore.services.response import OnlineResponse
    from featurestore.services.served_log_reading import ServedJob
    from featurestore.services.served_log_replay import ServedReport
    from featurestore.services.status import ViewStatus
    from featurestore.services.value_report import ValueReport
    from featurestore.services.verification_reading import Answering
    from featurestore.services.verification_report import VerificationReport

Instant = datetime | str


class BaseStore:
    """A feature store over given services; `featurestore.FeatureStore` opens one from a folder.

    Where its gate asks who calls (the section [access] of the settings), every verb raises
    `UnauthenticatedError` or `AccessDeniedError` before it reads or writes anything.
    """

    def __init__(self, services: Services, gate: Gate = OPEN) -> None:
        self.services = services
        self.gate = gate

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
        services = self.services
        with self.gate.looking("plan"):
            return services.registration.plan(declarations or services.declarations()).plan

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
        services = self.services
        with self.gate.looking("apply") as call:
            planned = services.registration.plan(declarations or services.declarations())
            call.permit_change(planned.plan, planned.base, planned.catalog)
            result = services.registration.apply(
                planned,
                allow_destructive=allow_destructive,
                applied_by=applied_by or call.who or _user(),
            )
        services.state.invalidate()
        return result

    def teardown(self) -> tuple[str, ...]:
        """Delete this project's tables, online values and definitions, and nothing else (law M7).

        Returns:
            The ids of the tables.
        """
        with self.gate.changing("teardown", "apply", "*"):
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
        with self.gate.changing("materialize", "write", "view", views or None) as call:
            report = self.services.materializer.materialize(
                to_instant(start, "start"),
                to_instant(end, "end"),
                views,
                attempt=attempt,
                progress=progress,
            )
            call.rows = report.rows_written
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
        with self.gate.changing("materialize_incremental", "write", "view", views or None) as call:
            report = self.services.materializer.materialize_incremental(
                until, views, attempt=attempt, progress=progress
            )
            call.rows = report.rows_written
        self.services.state.invalidate()
        return report

    def push(self, source: str, events: Any, *, timeout: float | None = None) -> PushReceipt:
        """Append live events to the stream of a source, durably.

        `featurestore ingest` puts them online within milliseconds, and into the tables. Pushing
        events again changes nothing.

        Args:
            source: The name of a `StreamSource` that an applied view has.
            events: A list of dicts, a dict of lists, or a pyarrow, polars or pandas table, with the
                columns of the source's history; those that are missing are null.
            timeout: Seconds to wait for the stream at most; None takes its setting.

        Raises:
            FeatureNotFoundError: No applied view has a source of this name.
            RequestError: The source has no stream, or the events do not fit its history.
            StreamUnavailableError: The stream is gone; push all of them again later.
        """
        with self.gate.changing("push", "write", "source", [source]) as call:
            receipt = self.services.event_pusher.push(source, events, timeout=timeout)
            call.rows = receipt.accepted
        return receipt

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
        verb = "get_historical_features"
        with self.gate.reading(verb, "read_offline", features, filling=materialize_missing) as call:
            call.count(entity_rows)
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
        with self.gate.reading("get_snapshot", "read_offline", features):
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
        with self.gate.reading("get_online_features", "read_online", features) as call:
            answer = self.services.online.get_online_features(
                features,
                entity_rows,
                as_of=None if as_of is None else to_instant(as_of, "as_of"),
                request=request,
                full_feature_names=full_feature_names,
            )
            call.rows = answer.rows
        return answer

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
        with self.gate.reading("verify", "read_offline", features) as call:
            report = self.services.verifier.verify(
                features,
                sample=sample,
                entities=entities,
                as_of=[to_instant(instant, "as_of") for instant in given],
                seed=seed,
                ask=None if client is None else client.get_online_features,
            )
            call.rows = report.entities
        return report

    def verify_served(
        self,
        features: FeaturesArgument | None = None,
        *,
        since: Instant | None = None,
        until: Instant | None = None,
        sample: int | None = None,
        seed: int = 0,
    ) -> ServedReport:
        """Compute again what was served, from the log of it, and compare it bit for bit (law L4).

        Args:
            features: A service, or references as they were asked for; None is all that was logged.
            since: Only what was served from this instant on.
            until: Only what was served before this one.
            sample: How many rows to draw, another one by another seed; None takes all of them.
            seed: See there.
        """
        services = self.services
        with self.gate.reading_log("verify_served", features) as call:
            call.permit_logged(lambda: services.served_reader.views(features, since, until))
            report = services.served_verifier.verify(
                features, since, until, sample=sample, seed=seed
            )
            call.rows = report.rows
        return report

    def get_served_features(
        self,
        features: FeaturesArgument,
        start: Instant | None = None,
        end: Instant | None = None,
        *,
        full_feature_names: bool = False,
        include_metadata: bool = False,
    ) -> ServedJob:
        """Return what was served in `[start, end)`: keys, instants and the very values (law L5).

        Args:
            features: A service, its name, or references as they were asked for.
            start: The first instant; None for all that is kept.
            end: The first instant that is not wanted.
            full_feature_names: Name result columns `view__feature`.
            include_metadata: Add when and by what each row was served, and the views' statuses.
        """
        reader = self.services.served_reader
        with self.gate.reading_log("get_served_features", features) as call:
            call.permit_logged(lambda: reader.views(features, start, end))
            return reader.job(
                features,
                start,
                end,
                full_feature_names=full_feature_names,
                include_metadata=include_metadata,
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
        with self.gate.reading("explain", "read_offline", [reference]):
            return self.services.value_explainer.explain(reference, entity, instant)

    def status(self) -> list[ViewStatus]:
        """Return for each view its freshness, runs, rows, and whether it is late."""
        with self.gate.looking("status"):
            return self.services.status.views()

    def close(self) -> None:
        """Let go of files and connections."""
        self.services.close()
        self.gate.close()

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
