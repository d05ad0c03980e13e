"""What belongs to the log of what was served, made of a repository's services; part of `wiring`.

Knows no adapter.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from featurestore.model.settings import parse_size

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.model.settings import Settings
    from featurestore.ports.engine import Engine
    from featurestore.ports.registry import Registry
    from featurestore.ports.tables import Tables
    from featurestore.services.on_demand import OnDemandFunctions
    from featurestore.services.served_log import ServedLog
    from featurestore.services.served_log_reading import ServedReader
    from featurestore.services.served_log_replay import ServedVerifier


class ServedServices:
    """The services of the served log, each made on first use; `wiring` gives the others."""

    settings: Settings
    clock: Clock
    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...  # noqa: D102
        @property
        def tables(self) -> Tables: ...  # noqa: D102
        @property
        def registry(self) -> Registry: ...  # noqa: D102
        @property
        def functions(self) -> OnDemandFunctions: ...  # noqa: D102

    @cached_property
    def served_log(self) -> ServedLog:
        """Writes what was served."""
        from featurestore.services.served_log import ServedLog

        return ServedLog(
            self.settings.project,
            self.tables,
            self.clock,
            target_file_size=parse_size(self.settings.offline.target_file_size),
            retention_days=self.settings.serving.served_log_retention_days or None,
        )

    @cached_property
    def served_reader(self) -> ServedReader:
        """Reads it back."""
        from featurestore.services.served_log_reading import ServedReader

        return ServedReader(self.settings.project, self.tables)

    @cached_property
    def served_verifier(self) -> ServedVerifier:
        """Computes it again."""
        from featurestore.services.served_log_replay import ServedVerifier

        return ServedVerifier(
            self.settings.project,
            reader=self.served_reader,
            tables=self.tables,
            engine=self.engine,
            registry=self.registry,
            functions=self.functions,
            clock=self.clock,
            memory_limit=parse_size(self.settings.offline.memory_limit),
        )
