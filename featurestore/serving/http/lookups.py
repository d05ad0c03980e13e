"""A lookup as JSON: what came becomes the arguments of `get_online_features`.

The types of keys and request fields are those of the definitions that are asked for, so texts
become bytes, dates and instants where these are declared, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.compile.request import FeaturesArgument, resolve
from featurestore.dtypes import DType
from featurestore.errors import DefinitionError, RequestError, listing, near_miss
from featurestore.model.declarations import FeatureSelection
from featurestore.ports.registry import ProjectState
from featurestore.services.columns import InputRows
from featurestore.services.lookup import features_key
from featurestore.services.online import checked_as_of
from featurestore.services.state import StateCache
from featurestore.serving.http.parsing import shown
from featurestore.serving.http.values import read_column, read_instant
from featurestore.serving.requests import ReadRequest

_FIELDS = ("features", "entity_rows", "request", "as_of", "full_feature_names")
_REFERENCE_FIELDS = ("view", "features", "alias", "join_keys")
_REMEMBERED = 256
# A value, a status and an instant, each with a comma.
_LEAST_CELL_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Types:
    """What a request's columns are read as.

    Attributes:
        entity_rows: {column: type}, fields of on-demand views that may stand there included.
        request: {field: type}.
        features: How many features the answer has.
    """

    entity_rows: Mapping[str, DType]
    request: Mapping[str, DType]
    features: int


class Reader:
    """Reads lookups.

    Args:
        state: The applied definitions.
        max_bytes: The size of the largest answer.
    """

    def __init__(self, state: StateCache, max_bytes: int) -> None:
        self._state = state
        self._limit = max_bytes
        self._types: tuple[ProjectState | None, dict[Hashable, _Types]] = (None, {})

    def untyped(self, body: dict[str, Any]) -> ReadRequest:
        """Return a request whose values are still as JSON has them.

        Raises:
            RequestError: It is none.
        """
        check_fields(body, _FIELDS, ("features",), "the body")
        full = body.get("full_feature_names", False)
        if not isinstance(full, bool):
            raise _unfit("full_feature_names", full, "true or false")
        as_of = body.get("as_of")
        given = body.get("request")
        _check_rows(body.get("entity_rows", []), "entity_rows")
        _check_rows({} if given is None else given, "request")
        # As over gRPC: without any column there is one row.
        rows = InputRows.of(body.get("entity_rows", [{}]))
        return ReadRequest(
            features=_features(body["features"]),
            entity_rows=rows,
            request=None if given is None else InputRows.of_request(given, rows.rows),
            as_of=None if as_of is None else checked_as_of(read_instant(as_of, "as_of")),
            full_feature_names=full,
            sent={},
        )

    def typed(self, asked: ReadRequest) -> ReadRequest:
        """Return a request whose values are of the types that the definitions declare.

        Raises:
            RequestError: They are not, or the answer would be too large.
            FeatureStoreError: What is asked for cannot be answered.
        """
        types = self._types_of(asked.features, full_feature_names=asked.full_feature_names)
        rows = asked.entity_rows.rows
        if rows * types.features * _LEAST_CELL_BYTES > self._limit:
            raise too_large(f"{rows} entity rows of {types.features} features", self._limit)
        request = asked.request
        return ReadRequest(
            asked.features,
            _typed(asked.entity_rows, types.entity_rows),
            None if request is None else _typed(request, types.request),
            asked.as_of,
            asked.full_feature_names,
            asked.sent,
        )

    def _types_of(self, features: FeaturesArgument, *, full_feature_names: bool) -> _Types:
        state = self._state.get()
        held, known = self._types
        if held is not state:
            known = {}
            self._types = (state, known)
        key = (features_key(features), full_feature_names)
        found = known.get(key)
        if found is None:
            plan = resolve(
                state.answering, state.serving, features, full_feature_names=full_feature_names
            )
            request = {field.name: field.type for field in plan.request_fields}
            keys = {name: column.type for name, column in plan.key_columns}
            found = _Types({**request, **keys}, request, len(plan.outputs))
            if len(known) >= _REMEMBERED:
                known.clear()
            known[key] = found
        return found


def check_fields(
    found: Mapping[str, Any], allowed: tuple[str, ...], needed: tuple[str, ...], where: str
) -> None:
    """Return if an object has what it needs, and nothing that nobody knows.

    Raises:
        RequestError: It lacks something, or has something else.
    """
    for name in found:
        if name not in allowed:
            raise RequestError(
                f"There is no field '{name[:80]}'.",
                where=where,
                allowed=listing(allowed),
                hint=near_miss(name[:80], allowed),
            )
    for name in needed:
        if found.get(name) is None:
            raise RequestError(f"The field '{name}' is missing.", where=where, got=listing(found))


def too_large(got: str, limit: int) -> RequestError:
    """Return the error of an answer that is too large."""
    return RequestError(
        "The answer is larger than the server sends.",
        got=got,
        allowed=f"{limit} bytes",
        hint="Ask for fewer entity rows at once, or raise serving.max_message_bytes.",
    )


def _typed(rows: InputRows, types: Mapping[str, DType]) -> InputRows:
    columns = {
        name: values
        if (dtype := types.get(name)) is None
        else read_column(values, dtype, f"column '{name}' of '{rows.what}'")
        for name, values in rows.columns.items()
    }
    return InputRows(columns, rows.rows, rows.what)


def _check_rows(value: Any, what: str) -> None:
    """Refuse what JSON has for rows and Python has not: the same words for both would mislead."""
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return
    if isinstance(value, dict) and (
        what == "request" or all(isinstance(column, list) for column in value.values())
    ):
        return
    raise _unfit(what, value, "a list of objects, or an object of lists")


def _features(value: Any) -> FeaturesArgument:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _unfit("features", value, "the name of a service, or a list of 'view:feature'")
    return [_feature(item, f"features[{place}]") for place, item in enumerate(value)]


def _feature(item: Any, where: str) -> str | FeatureSelection:
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        raise _unfit(where, item, "'view', 'view:feature', or an object with the key 'view'")
    check_fields(item, _REFERENCE_FIELDS, ("view",), where)
    try:
        return FeatureSelection(
            view=item["view"],
            features=item.get("features"),
            alias_name=item.get("alias"),
            join_keys=item.get("join_keys") or {},
        )
    except DefinitionError as error:
        raise RequestError(
            "A reference to features makes no sense.", where=where, got=error.what
        ) from error


def _unfit(what: str, value: Any, allowed: str) -> RequestError:
    return RequestError(f"'{what}' is of another kind.", got=shown(value), allowed=allowed)
