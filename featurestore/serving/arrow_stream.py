"""Tables as streams of Arrow's IPC format; what strangers send is read with suspicion.

Refuses what would become larger than the message that it came in: compressed buffers, dictionaries,
shared views, and rows without any bytes. Whatever is damaged is told as such.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pyarrow as pa

from featurestore.errors import RequestError, listing

_ALLOWED = "a stream of Arrow's IPC format, its buffers not compressed"
# By the numbers of Arrow's format.
_DICTIONARY, _RECORD_BATCH = 2, 3
_BITS = 8
_DAMAGE = (pa.ArrowException, OSError, ValueError, IndexError, OverflowError, struct.error)


def write_stream(table: pa.Table) -> bytes:
    """Return a table as a stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_stream(data: bytes) -> pa.Table:
    """Return the table of a stream that a stranger has sent.

    Raises:
        RequestError: It is none, is damaged, or would become larger than it is.
    """
    buffer = pa.py_buffer(data)
    try:
        _check_buffers(pa.ipc.MessageReader.open_stream(buffer))
        with pa.ipc.open_stream(buffer) as reader:
            _check_types(reader.schema)
            table = reader.read_all()
        table.validate(full=True)
    except RequestError:
        raise
    except _DAMAGE as error:
        raise RequestError(
            "The Arrow stream of 'events' cannot be read.",
            got=str(error).split("\n")[0],
            allowed=_ALLOWED,
        ) from error
    if table.num_rows > len(data) * _BITS:
        raise RequestError(
            "The Arrow stream of 'events' has more events than bits.",
            got=f"{table.num_rows} events in {len(data)} bytes",
            hint="Leave out columns of nothing but nulls.",
        )
    return table


def _check_buffers(messages: Iterable[pa.Message]) -> None:
    if any(_is_compressed(message) for message in messages):
        raise RequestError("The Arrow stream of 'events' is compressed.", allowed=_ALLOWED)


def _check_types(schema: pa.Schema) -> None:
    names = schema.names
    if len(set(names)) < len(names):
        raise RequestError("Two columns of 'events' share a name.", got=listing(names))
    for field in schema:
        if not all(_is_plain(kind) for kind in _nested(field.type)):
            raise RequestError(
                f"The column '{field.name}' of 'events' has a type that cannot be pushed.",
                got=str(field.type),
                allowed="plain columns: no dictionaries, views, runs or extension types",
                hint="Decode it first.",
            )


def _nested(kind: pa.DataType) -> Iterable[pa.DataType]:
    """Return a type and all types inside of it."""
    yield kind
    if pa.types.is_map(kind):
        parts = [kind.key_type, kind.item_type]
    elif pa.types.is_struct(kind):
        parts = [field.type for field in kind]
    else:
        parts = [kind.value_type] if pa.types.is_nested(kind) and _is_plain(kind) else []
    for part in parts:
        yield from _nested(part)


def _is_plain(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (
        types.is_dictionary,
        types.is_run_end_encoded,
        types.is_union,
        types.is_string_view,
        types.is_binary_view,
        types.is_list_view,
        types.is_large_list_view,
    )
    return not isinstance(kind, pa.BaseExtensionType) and not any(check(kind) for check in checks)


def _is_compressed(message: pa.Message) -> bool:
    """Whether the buffers of a message are compressed.

    A message's metadata is a flatbuffer, which Arrow has verified. Arrow itself tells only by
    decompressing.
    """
    data = message.metadata.to_pybytes()
    (root,) = struct.unpack_from("<I", data)
    kind_at, header_at = _slot(data, root, 1), _slot(data, root, 2)
    kind = data[kind_at] if kind_at else 0
    if kind not in {_DICTIONARY, _RECORD_BATCH} or not header_at:
        return False
    batch = _follow(data, header_at)
    if kind == _DICTIONARY:
        batch = _follow(data, _slot(data, batch, 1))
    return _slot(data, batch, 3) != 0


def _slot(data: bytes, table: int, index: int) -> int:
    """Return where a field of a flatbuffer's table stands, 0 where it is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", data, vtable)
    place = 4 + 2 * index
    if place >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + place)
    return table + offset if offset else 0


def _follow(data: bytes, place: int) -> int:
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)
