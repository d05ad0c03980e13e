"""Arrow tables as Polars frames: a map is a list of structs of `key` and `value` there.

So it is in every version of Polars, in what an on-demand function is given as in what a call
returns, and so the expressions for lists work on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


def to_polars(table: pa.Table) -> pl.DataFrame:
    """Return a table as a frame."""
    import polars as pl
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_map(field.type):
            pair = pa.struct([("key", field.type.key_type), ("value", field.type.item_type)])
            table = table.set_column(index, field.name, table[index].cast(pa.list_(pair)))
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"a table became {type(frame).__name__}")
    return frame
