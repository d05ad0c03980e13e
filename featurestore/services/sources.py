"""One `Sources` over the readers of each kind and the logs of streams; Delta tables in queries.

A query may say `delta_scan('path')`, as with DuckDB's Delta extension, which is not required here:
the call is replaced by the relation over the table's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from featurestore.compile.plan import SourcePlan
from featurestore.ports.engine import SourceListing, Sources

if TYPE_CHECKING:
    from featurestore.services.stream_log import StreamLog

_DELTA_SCAN = re.compile(r"\bdelta_scan\(\s*'((?:[^']|'')+)'\s*\)", re.IGNORECASE)


class SourceRouter:
    """Sends each source to the reader of its kind.

    Args:
        files: Reads "parquet", "csv" and "query".
        delta: Reads "delta".
        logs: The logs of streams, where there are any.
    """

    def __init__(self, files: Sources, delta: Sources, logs: StreamLog | None = None) -> None:
        self._files = files
        self._delta = delta
        self._logs = logs

    def kind(self, path: str) -> Literal["parquet", "csv", "delta"]:
        """Return the format of a path."""
        return self._files.kind(path)

    def listing(self, source: SourcePlan) -> SourceListing:
        """Return the source's files as of now, and the log of its stream."""
        # The log first: what its claims promise of live events holds for what comes behind it.
        live = self._logs.live(source.name) if self._logs and source.stream else None
        listing = self._reader(source).listing(self._expanded(source))
        return listing if live is None else replace(listing, live=live)

    def relation(self, source: SourcePlan, files: Sequence[str]) -> str:
        """Return the SQL of a relation over some of the source's files."""
        return self._reader(source).relation(self._expanded(source), files)

    def _reader(self, source: SourcePlan) -> Sources:
        return self._delta if source.kind == "delta" else self._files

    def _expanded(self, source: SourcePlan) -> SourcePlan:
        if source.query is None:
            return source

        def replace(match: re.Match[str]) -> str:
            path = match[1].replace("''", "'")
            table = source.model_copy(update={"kind": "delta", "path": path, "query": None})
            return self._delta.listing(table).relation

        return source.model_copy(update={"query": _DELTA_SCAN.sub(replace, source.query)})
