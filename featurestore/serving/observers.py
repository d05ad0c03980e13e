"""Which observers the settings ask for, made in one place for every front of a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.clock import Clock
from featurestore.errors import SettingsError
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader
from featurestore.services.served_log import ServedLog
from featurestore.serving.call_log import CallLog
from featurestore.serving.observing import Observer

if TYPE_CHECKING:
    from featurestore.serving.metrics.recorder import Metrics


def observers_of(
    settings: ServingSettings,
    folder: Path,
    reader: OnlineReader,
    clock: Clock,
    log: Any,
    *,
    metrics_folder: Path | None = None,
    served_log: Callable[[], ServedLog] | None = None,
) -> list[Observer]:
    """Return the observers that the settings ask for; whoever serves closes them.

    Args:
        settings: What is set up.
        folder: Where paths in the settings begin: the repository.
        reader: Answers the lookups.
        clock: Tells the time.
        log: Told what goes wrong.
        metrics_folder: Where a worker puts its numbers, for its supervisor to show; without it
            this process shows its own.
        served_log: Returns what writes the log of what was served; without it there is no log.

    Raises:
        SettingsError: What is set up cannot be used.
    """
    del folder
    metrics: Metrics | None = None
    observers: list[Observer] = [CallLog(settings.slow_seconds, clock, log)]
    if settings.metrics_address is not None:
        metrics = _metrics(settings.metrics_address, reader, clock, log, metrics_folder)
        observers.append(metrics)
    if settings.traces is not None:
        from featurestore.serving.tracing import traces_to

        observers.append(traces_to(settings.traces, reader, clock, log))
    if settings.served_log_sample and served_log is not None:
        from featurestore.serving.served_log import ServedLogObserver

        logging = ServedLogObserver(served_log(), reader.state.get, settings, clock, log)
        if metrics is not None:
            logging.count_by(metrics.logged)
        # Closed before the numbers are: what it still writes is counted.
        observers.insert(0, logging)
    return observers


def _metrics(
    address: str, reader: OnlineReader, clock: Clock, log: Any, folder: Path | None
) -> Metrics:
    from featurestore.serving.metrics.board import Board
    from featurestore.serving.metrics.exposition import MetricsServer
    from featurestore.serving.metrics.gathering import new_board
    from featurestore.serving.metrics.recorder import Metrics

    if folder is not None:
        try:
            return Metrics(new_board(folder), reader, clock)
        except OSError as error:
            raise SettingsError(
                "The numbers of this worker cannot be written.", where=str(folder), got=str(error)
            ) from error
    board = Board()
    server = MetricsServer(address, board.read, whole=True)
    log.info("metrics", address=server.address)
    return Metrics(board, reader, clock, closed=server.close)
