from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_STATUS_UNSPECIFIED: _ClassVar[FeatureStatus]
    FEATURE_STATUS_PRESENT: _ClassVar[FeatureStatus]
    FEATURE_STATUS_NULL_VALUE: _ClassVar[FeatureStatus]
    FEATURE_STATUS_NOT_FOUND: _ClassVar[FeatureStatus]
    FEATURE_STATUS_OUTSIDE_MAX_AGE: _ClassVar[FeatureStatus]
FEATURE_STATUS_UNSPECIFIED: FeatureStatus
FEATURE_STATUS_PRESENT: FeatureStatus
FEATURE_STATUS_NULL_VALUE: FeatureStatus
FEATURE_STATUS_NOT_FOUND: FeatureStatus
FEATURE_STATUS_OUTSIDE_MAX_AGE: FeatureStatus

class GetOnlineFeaturesRequest(_message.Message):
    __slots__ = ("service", "references", "entity_rows", "request", "as_of", "full_feature_names", "rows")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    ENTITY_ROWS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    FULL_FEATURE_NAMES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    service: str
    references: FeatureReferences
    entity_rows: _containers.RepeatedCompositeFieldContainer[Column]
    request: _containers.RepeatedCompositeFieldContainer[Column]
    as_of: int
    full_feature_names: bool
    rows: int
    def __init__(self, service: _Optional[str] = ..., references: _Optional[_Union[FeatureReferences, _Mapping]] = ..., entity_rows: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., request: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., as_of: _Optional[int] = ..., full_feature_names: _Optional[bool] = ..., rows: _Optional[int] = ...) -> None: ...

class FeatureReferences(_message.Message):
    __slots__ = ("references",)
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedCompositeFieldContainer[FeatureReference]
    def __init__(self, references: _Optional[_Iterable[_Union[FeatureReference, _Mapping]]] = ...) -> None: ...

class FeatureReference(_message.Message):
    __slots__ = ("view", "features", "alias", "join_keys")
    class JoinKeysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VIEW_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    JOIN_KEYS_FIELD_NUMBER: _ClassVar[int]
    view: str
    features: _containers.RepeatedScalarFieldContainer[str]
    alias: str
    join_keys: _containers.ScalarMap[str, str]
    def __init__(self, view: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., alias: _Optional[str] = ..., join_keys: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetOnlineFeaturesResponse(_message.Message):
    __slots__ = ("rows", "as_of", "service", "entity_keys", "features", "feature_sources", "sources")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENTITY_KEYS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    as_of: int
    service: str
    entity_keys: _containers.RepeatedCompositeFieldContainer[Column]
    features: _containers.RepeatedCompositeFieldContainer[Column]
    feature_sources: _containers.RepeatedScalarFieldContainer[int]
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    def __init__(self, rows: _Optional[int] = ..., as_of: _Optional[int] = ..., service: _Optional[str] = ..., entity_keys: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., features: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., feature_sources: _Optional[_Iterable[int]] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("view", "alias", "fingerprint", "statuses", "event_timestamps", "applied")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    view: str
    alias: str
    fingerprint: str
    statuses: _containers.RepeatedScalarFieldContainer[FeatureStatus]
    event_timestamps: _containers.RepeatedScalarFieldContainer[int]
    applied: _containers.RepeatedCompositeFieldContainer[AppliedPartition]
    def __init__(self, view: _Optional[str] = ..., alias: _Optional[str] = ..., fingerprint: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[FeatureStatus, str]]] = ..., event_timestamps: _Optional[_Iterable[int]] = ..., applied: _Optional[_Iterable[_Union[AppliedPartition, _Mapping]]] = ...) -> None: ...

class AppliedPartition(_message.Message):
    __slots__ = ("partition", "positions")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    partition: str
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, partition: _Optional[str] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "validity", "bools", "int32s", "int64s", "floats", "doubles", "strings", "binaries", "dates", "timestamps", "lists", "vectors", "maps")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    BOOLS_FIELD_NUMBER: _ClassVar[int]
    INT32S_FIELD_NUMBER: _ClassVar[int]
    INT64S_FIELD_NUMBER: _ClassVar[int]
    FLOATS_FIELD_NUMBER: _ClassVar[int]
    DOUBLES_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    BINARIES_FIELD_NUMBER: _ClassVar[int]
    DATES_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    LISTS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    name: str
    validity: bytes
    bools: BoolValues
    int32s: Int32Values
    int64s: Int64Values
    floats: FloatValues
    doubles: DoubleValues
    strings: StringValues
    binaries: BytesValues
    dates: DateValues
    timestamps: TimestampValues
    lists: ListValues
    vectors: VectorValues
    maps: MapValues
    def __init__(self, name: _Optional[str] = ..., validity: _Optional[bytes] = ..., bools: _Optional[_Union[BoolValues, _Mapping]] = ..., int32s: _Optional[_Union[Int32Values, _Mapping]] = ..., int64s: _Optional[_Union[Int64Values, _Mapping]] = ..., floats: _Optional[_Union[FloatValues, _Mapping]] = ..., doubles: _Optional[_Union[DoubleValues, _Mapping]] = ..., strings: _Optional[_Union[StringValues, _Mapping]] = ..., binaries: _Optional[_Union[BytesValues, _Mapping]] = ..., dates: _Optional[_Union[DateValues, _Mapping]] = ..., timestamps: _Optional[_Union[TimestampValues, _Mapping]] = ..., lists: _Optional[_Union[ListValues, _Mapping]] = ..., vectors: _Optional[_Union[VectorValues, _Mapping]] = ..., maps: _Optional[_Union[MapValues, _Mapping]] = ...) -> None: ...

class BoolValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, values: _Optional[_Iterable[bool]] = ...) -> None: ...

class Int32Values(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Int64Values(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class FloatValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class DoubleValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class StringValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class BytesValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DateValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class TimestampValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class ListValues(_message.Message):
    __slots__ = ("lengths", "items")
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    items: Column
    def __init__(self, lengths: _Optional[_Iterable[int]] = ..., items: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...

class VectorValues(_message.Message):
    __slots__ = ("length", "floats", "doubles")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    FLOATS_FIELD_NUMBER: _ClassVar[int]
    DOUBLES_FIELD_NUMBER: _ClassVar[int]
    length: int
    floats: FloatValues
    doubles: DoubleValues
    def __init__(self, length: _Optional[int] = ..., floats: _Optional[_Union[FloatValues, _Mapping]] = ..., doubles: _Optional[_Union[DoubleValues, _Mapping]] = ...) -> None: ...

class MapValues(_message.Message):
    __slots__ = ("lengths", "keys", "values")
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    keys: Column
    values: Column
    def __init__(self, lengths: _Optional[_Iterable[int]] = ..., keys: _Optional[_Union[Column, _Mapping]] = ..., values: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("source", "columns", "arrow_ipc")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ARROW_IPC_FIELD_NUMBER: _ClassVar[int]
    source: str
    columns: EventColumns
    arrow_ipc: bytes
    def __init__(self, source: _Optional[str] = ..., columns: _Optional[_Union[EventColumns, _Mapping]] = ..., arrow_ipc: _Optional[bytes] = ...) -> None: ...

class EventColumns(_message.Message):
    __slots__ = ("columns",)
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("accepted", "positions")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    positions: _containers.RepeatedCompositeFieldContainer[StreamPosition]
    def __init__(self, accepted: _Optional[int] = ..., positions: _Optional[_Iterable[_Union[StreamPosition, _Mapping]]] = ...) -> None: ...

class StreamPosition(_message.Message):
    __slots__ = ("partition", "position")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    partition: str
    position: int
    def __init__(self, partition: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class GetServingInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServingInfoResponse(_message.Message):
    __slots__ = ("project", "revision", "server_version", "views", "services", "now", "freshness_as_of")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_AS_OF_FIELD_NUMBER: _ClassVar[int]
    project: str
    revision: int
    server_version: str
    views: _containers.RepeatedCompositeFieldContainer[ServedView]
    services: _containers.RepeatedCompositeFieldContainer[ServedService]
    now: int
    freshness_as_of: int
    def __init__(self, project: _Optional[str] = ..., revision: _Optional[int] = ..., server_version: _Optional[str] = ..., views: _Optional[_Iterable[_Union[ServedView, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServedService, _Mapping]]] = ..., now: _Optional[int] = ..., freshness_as_of: _Optional[int] = ...) -> None: ...

class ServedView(_message.Message):
    __slots__ = ("name", "fingerprint", "join_keys", "features", "request", "on_demand", "materialized_until", "materialized_at", "newest_served_event", "materialized_positions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    JOIN_KEYS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ON_DEMAND_FIELD_NUMBER: _ClassVar[int]
    MATERIALIZED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    MATERIALIZED_AT_FIELD_NUMBER: _ClassVar[int]
    NEWEST_SERVED_EVENT_FIELD_NUMBER: _ClassVar[int]
    MATERIALIZED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    join_keys: _containers.RepeatedCompositeFieldContainer[Field]
    features: _containers.RepeatedCompositeFieldContainer[Field]
    request: _containers.RepeatedCompositeFieldContainer[Field]
    on_demand: bool
    materialized_until: int
    materialized_at: int
    newest_served_event: int
    materialized_positions: _containers.RepeatedCompositeFieldContainer[StreamPosition]
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., join_keys: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., features: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., request: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., on_demand: _Optional[bool] = ..., materialized_until: _Optional[int] = ..., materialized_at: _Optional[int] = ..., newest_served_event: _Optional[int] = ..., materialized_positions: _Optional[_Iterable[_Union[StreamPosition, _Mapping]]] = ...) -> None: ...

class ServedService(_message.Message):
    __slots__ = ("name", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Field(_message.Message):
    __slots__ = ("name", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...
