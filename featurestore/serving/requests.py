"""A lookup as a message: written by the client, read by the server.

Both sides use the same columns as a lookup in process (`services.columns`), so that both refuse the
same things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from featurestore import dtypes
from featurestore.compile.request import FeaturesArgument
from featurestore.dtypes import DType
from featurestore.errors import (
    DefinitionError,
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
)
from featurestore.model.declarations import (
    FeatureSelection,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
)
from featurestore.semantics import maps
from featurestore.services.columns import InputRows, to_arrow
from featurestore.serving.conversion import read_columns, write_arrow
from featurestore.serving.v1 import serving_pb2 as pb

# The client does not know what a column will be read as; a string is checked for nothing.
_ANY = DType("string")
_NAIVE = "instants without a time zone"
# A row of an answer takes a status and an event timestamp at the least.
_LEAST_ROW_BYTES = 9
# Up to so many rows a lookup goes value by value (as `services.online` does).
_FEW_ROWS = 8


@dataclass(frozen=True)
class ReadRequest:
    """A request as the server understood it: the arguments of `get_online_features`.

    Attributes:
        sent: The columns of the entity rows as they came, which the answer repeats.
    """

    features: FeaturesArgument
    entity_rows: InputRows
    request: InputRows | None
    as_of: int | None
    full_feature_names: bool
    sent: Mapping[str, pb.Column]


def write_request(
    features: FeaturesArgument,
    entity_rows: InputRows,
    request: InputRows | None,
    as_of: int | None,
    *,
    full_feature_names: bool,
) -> tuple[pb.GetOnlineFeaturesRequest, dict[str, str]]:
    """Return the message of a lookup, and the columns that cannot be sent, each with the reason.

    Such columns are left out: most likely nobody asks for them, and if somebody does,
    `explain_missing` tells why they are not there.

    Raises:
        RequestError: `features` names no features.
    """
    message = pb.GetOnlineFeaturesRequest(
        full_feature_names=full_feature_names, rows=entity_rows.rows, as_of=as_of
    )
    _write_features(message, features)
    left_out: dict[str, str] = {}
    for rows, columns in ((entity_rows, message.entity_rows), (request, message.request)):
        for name, values in rows.columns.items() if rows is not None else ():
            array, reason = _sendable(values)
            if array is None:
                left_out[name] = reason
            else:
                write_arrow(columns.add(name=name), array)
    return message, left_out


def explain_missing(error: MissingColumnError, left_out: dict[str, str]) -> RequestError:
    """Return the error that the caller should see: a column may be missing as it was not sent."""
    name = error.allowed or ""
    reason = left_out.get(name)
    if reason is None:
        return error
    if reason == _NAIVE:
        return NaiveTimestampError(
            f"The column '{name}' has instants without a time zone.",
            where=error.where,
            got=reason,
            allowed="aware instants",
            hint="Say which zone they are in; it is never guessed.",
        )
    return RequestError(
        f"The column '{name}' has a type that cannot be sent.", where=error.where, got=reason
    )


def read_request(message: pb.GetOnlineFeaturesRequest, max_bytes: int) -> ReadRequest:
    """Return what a message asks for.

    Args:
        message: The request.
        max_bytes: The size of the largest answer, which bounds the number of rows.

    Raises:
        RequestError: It breaks the protocol, or asks for more rows than an answer can hold.
    """
    columns = read_columns(message.entity_rows, "entity_rows", few=_FEW_ROWS)
    lengths = {len(column) for column in columns.values()}
    if message.HasField("rows"):
        lengths.add(message.rows)
    if len(lengths) > 1:
        raise RequestError(
            "The columns of 'entity_rows' differ in length, or from 'rows'.",
            got=", ".join(str(length) for length in sorted(lengths)),
            allowed="one length",
        )
    rows = lengths.pop() if lengths else 1
    if rows > max_bytes // _LEAST_ROW_BYTES:
        raise RequestError(
            "The answer would be larger than the server sends.",
            got=f"{rows} entity rows",
            allowed=f"{max_bytes} bytes",
            hint="Ask for fewer entity rows at once.",
        )
    request = None
    if message.request:
        fields = InputRows(read_columns(message.request, "request"), rows, "request")
        for name, column in fields.columns.items():
            if len(column) != rows:
                raise RequestError(
                    f"The column '{name}' of 'request' has another length than the entity rows.",
                    got=f"{len(column)}",
                    allowed=f"{rows}",
                )
        request = fields
    return ReadRequest(
        features=_read_features(message),
        entity_rows=InputRows(columns, rows, "entity_rows"),
        request=request,
        as_of=message.as_of if message.HasField("as_of") else None,
        full_feature_names=message.full_feature_names,
        sent={column.name: column for column in message.entity_rows},
    )


def _sendable(values: Any) -> tuple[pa.Array | None, str]:
    """Return a column as an Arrow array of a type of ours, or None and the reason why not."""
    if isinstance(values, list) or str(getattr(values, "dtype", "")) == "object":
        present = [value for value in values if value is not None]
        moments = [value for value in present if isinstance(value, datetime)]
        if any(moment.tzinfo is None for moment in moments):
            return None, _NAIVE
        if moments and len(moments) < len(present):
            return None, "instants among other values"
        if any(isinstance(value, Mapping) for value in present):
            return _sendable_maps(maps.from_python(list(values)))
    array = to_arrow(values, _ANY)
    if array is None:
        kinds = sorted({type(value).__name__ for value in values})
        return None, f"values of {', '.join(kinds)}"
    pairs = maps.entries(array)
    return _sendable_array(array) if pairs is None else _sendable_maps(pairs)


def _sendable_array(array: pa.Array) -> tuple[pa.Array | None, str]:
    if pa.types.is_timestamp(array.type) and array.type.tz is None:
        return None, _NAIVE
    items = array.type.value_type if pa.types.is_list(array.type) else array.type
    if pa.types.is_null(items) or dtypes.from_arrow(array.type) is not None:
        return array, ""
    return None, str(array.type)


def _sendable_maps(found: maps.Entries | None) -> tuple[pa.Array | None, str]:
    """The same for maps, from their entries; one without any entry is a map of anything."""
    if found is None:
        return None, "dicts among other values"
    keys, reason = _sendable(found.keys)
    values, other = _sendable(found.values)
    if keys is None or values is None:
        return None, reason or other
    if pa.types.is_null(keys.type) and not len(keys):
        keys = pa.array([], pa.string())
    kind = dtypes.from_arrow(pa.map_(keys.type, pa.bool_()))
    if kind is None or keys.null_count or pa.types.is_nested(values.type):
        return None, f"maps of {values.type} by {keys.type}"
    return maps.to_arrow(replace(found, keys=keys, values=values)), ""


def _write_features(message: pb.GetOnlineFeaturesRequest, features: FeaturesArgument) -> None:
    if isinstance(features, FeatureService):
        message.service = features.name
    elif isinstance(features, str):
        message.service = features
    elif isinstance(features, Sequence):
        message.references.SetInParent()
        references = message.references.references
        for item in features:
            _write_reference(references, item)
    else:
        raise RequestError(
            "Features come as a list.", got=repr(features)[:200], hint="Write [...]."
        )


def _write_reference(references: Any, item: Any) -> None:
    if isinstance(item, str):
        view, _, feature = item.partition(":")
        last = references[-1] if references else None
        if feature and last is not None and last.view == view and _is_plain(last):
            last.features.append(feature)
        else:
            references.add(view=view, features=[feature] if feature else [])
    elif isinstance(item, FeatureSelection):
        references.add(
            view=item.view,
            features=item.features or (),
            alias=item.alias_name or "",
            join_keys=item.join_keys,
        )
    elif isinstance(item, FeatureView | OnDemandFeatureView):
        references.add(view=item.name)
    else:
        raise RequestError(
            "A feature list holds something that names no feature.",
            got=repr(item),
            allowed="'view:feature', a view, view['feature'] or view.alias(...)",
        )


def _is_plain(reference: pb.FeatureReference) -> bool:
    """Whether a reference just names some features of a view."""
    return bool(reference.features) and not reference.alias and not reference.join_keys


def _read_features(message: pb.GetOnlineFeaturesRequest) -> FeaturesArgument:
    kind = message.WhichOneof("features")
    if kind is None:
        raise RequestError("A request names neither a service nor references to features.")
    if kind == "service":
        return message.service
    return [_read_reference(reference) for reference in message.references.references]


def _read_reference(reference: pb.FeatureReference) -> str | FeatureSelection:
    renamed = reference.alias or reference.join_keys
    if not renamed and len(reference.features) <= 1:
        return ":".join([reference.view, *reference.features])
    try:
        return FeatureSelection(
            view=reference.view,
            features=tuple(reference.features) or None,
            alias_name=reference.alias or None,
            join_keys=dict(reference.join_keys),
        )
    except DefinitionError as error:
        raise RequestError(
            "A reference to features makes no sense.", got=error.what, where=reference.view
        ) from error
