"""What a store delegates to: the services of one repository, each made on first use.

Which adapters stand behind them is `wiring`'s business. Nobody here asks who calls: the store does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from featurestore.clock import Clock
    from featurestore.compile.catalog import Declarations
    from featurestore.model.settings import Settings
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import Registry
    from featurestore.services.historical import HistoricalReader
    from featurestore.services.ingestion import Ingestor, Tell
    from featurestore.services.jobs import Materializer
    from featurestore.services.online import OnlineReader
    from featurestore.services.pushing_events import EventPusher
    from featurestore.services.registration import Registration
    from featurestore.services.served_log import ServedLog
    from featurestore.services.served_log_reading import ServedReader
    from featurestore.services.served_log_replay import ServedVerifier
    from featurestore.services.state import StateCache
    from featurestore.services.status import StatusReader
    from featurestore.services.value_explaining import ValueExplainer
    from featurestore.services.verification import Verifier


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
    @property
    def served_log(self) -> ServedLog: ...  # noqa: D102
    @property
    def served_reader(self) -> ServedReader: ...  # noqa: D102
    @property
    def served_verifier(self) -> ServedVerifier: ...  # noqa: D102
    def ingestor(  # noqa: D102
        self, member: str, *, sources: Sequence[str] = ..., workers: int = ..., tell: Tell = ...
    ) -> Ingestor: ...
    def declarations(self) -> Declarations: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
