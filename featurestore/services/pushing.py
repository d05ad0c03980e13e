"""Pushes the newest row of each entity to the online store (laws T2, O1, M7).

Rows are packed a batch at a time; the store keeps the newer one, so pushing twice or in any order
changes nothing. Rows dated ahead of now are not pushed: they would hide what is true now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.semantics import keys, rows

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.online import OnlineStore

_HOUR_US = 3_600_000_000


class Pusher:
    """Packs and writes rows of one project.

    Args:
        project: The project, part of every key's namespace.
        online: The store.
        batch_rows: Rows in one round trip.
        gc_grace_hours: How long past its ttl a value is kept, to be told as expired.
    """

    def __init__(
        self, project: str, online: OnlineStore, *, batch_rows: int, gc_grace_hours: float
    ) -> None:
        self._project = project
        self._online = online
        self._batch_rows = batch_rows
        self._grace_us = int(gc_grace_hours * _HOUR_US)

    @property
    def batch_rows(self) -> int:
        """Rows in one round trip."""
        return self._batch_rows

    def push(self, view: ViewPlan, reader: pa.RecordBatchReader, now_us: int) -> int:
        """Write rows of a view's table; return how many became the newest of their entity.

        Args:
            view: The view whose table the rows are of.
            reader: Batches with the table's columns.
            now_us: The instant of the push, from which expiry is counted at the earliest.
        """
        return sum(self._push_batch(view, batch, now_us) for batch in reader if batch.num_rows)

    def _push_batch(self, view: ViewPlan, batch: pa.RecordBatch, now_us: int) -> int:
        import numpy as np

        events = _instants(batch.column("event_timestamp"))
        created = batch.column("created_timestamp")
        if not view.source.tells_created:
            created_us = events
        else:
            created_us = _instants(created.fill_null(0))
            if created.null_count:
                missing = created.is_null().to_numpy(zero_copy_only=False)
                created_us = np.where(missing, np.int64(rows.NULL_CREATED), created_us)
        features = [
            _exact(batch.column(feature.name), feature.type.arrow) for feature in view.features
        ]
        values = rows.pack(view.row_schema, events, created_us, features)
        lead = keys.namespace(self._project, view.name, view.table_fingerprint)
        if view.join_keys:
            parts = [batch.column(key.name) for key in view.join_keys]
            encoded = keys.encode_columns(parts, [key.type for key in view.join_keys])
            names = [lead + key for key in encoded if key is not None]
        else:
            names = [lead] * batch.num_rows
        expires = None
        if view.ttl_us is not None:
            limit = np.iinfo(np.int64).max - self._grace_us - view.ttl_us
            late = np.maximum(np.minimum(events, limit) + view.ttl_us, now_us) + self._grace_us
            expires = late.tolist()
        return self._online.write(names, values, expires)


def _instants(column: pa.Array) -> Any:
    import pyarrow as pa

    return column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()


def _exact(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    return column if column.type.equals(wanted) else column.cast(wanted)
