from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LayerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYER_STATE_UNSPECIFIED: _ClassVar[LayerState]
    LAYER_STATE_LAZY: _ClassVar[LayerState]
    LAYER_STATE_COMPLETE: _ClassVar[LayerState]
    LAYER_STATE_FAILED: _ClassVar[LayerState]
    LAYER_STATE_ORDINARY: _ClassVar[LayerState]

class WaitKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAIT_KIND_UNSPECIFIED: _ClassVar[WaitKind]
    WAIT_KIND_READ: _ClassVar[WaitKind]
    WAIT_KIND_LOOKUP: _ClassVar[WaitKind]
LAYER_STATE_UNSPECIFIED: LayerState
LAYER_STATE_LAZY: LayerState
LAYER_STATE_COMPLETE: LayerState
LAYER_STATE_FAILED: LayerState
LAYER_STATE_ORDINARY: LayerState
WAIT_KIND_UNSPECIFIED: WaitKind
WAIT_KIND_READ: WaitKind
WAIT_KIND_LOOKUP: WaitKind

class VersionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VersionResponse(_message.Message):
    __slots__ = ("version", "python", "kernel")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    version: str
    python: str
    kernel: str
    def __init__(self, version: _Optional[str] = ..., python: _Optional[str] = ..., kernel: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("version", "pid", "started_at_ns", "plane", "plane_reason", "root", "run_dir", "address", "mountpoint", "session", "snapshots", "layers_lazy", "layers_failed", "fetched_demand", "fetched_prefetch", "fetched_background", "integrity_failures", "read_errors", "cache_used", "cache_quota", "cache_free", "problems", "fuse_requests", "take_overs", "keeper_pid", "containers_to_restart")
    class FuseRequestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    PLANE_FIELD_NUMBER: _ClassVar[int]
    PLANE_REASON_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MOUNTPOINT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_LAZY_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FAILED_FIELD_NUMBER: _ClassVar[int]
    FETCHED_DEMAND_FIELD_NUMBER: _ClassVar[int]
    FETCHED_PREFETCH_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    INTEGRITY_FAILURES_FIELD_NUMBER: _ClassVar[int]
    READ_ERRORS_FIELD_NUMBER: _ClassVar[int]
    CACHE_USED_FIELD_NUMBER: _ClassVar[int]
    CACHE_QUOTA_FIELD_NUMBER: _ClassVar[int]
    CACHE_FREE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    FUSE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TAKE_OVERS_FIELD_NUMBER: _ClassVar[int]
    KEEPER_PID_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_TO_RESTART_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    started_at_ns: int
    plane: str
    plane_reason: str
    root: str
    run_dir: str
    address: str
    mountpoint: str
    session: int
    snapshots: int
    layers_lazy: int
    layers_failed: int
    fetched_demand: int
    fetched_prefetch: int
    fetched_background: int
    integrity_failures: int
    read_errors: int
    cache_used: int
    cache_quota: int
    cache_free: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    fuse_requests: _containers.ScalarMap[str, int]
    take_overs: int
    keeper_pid: int
    containers_to_restart: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., started_at_ns: _Optional[int] = ..., plane: _Optional[str] = ..., plane_reason: _Optional[str] = ..., root: _Optional[str] = ..., run_dir: _Optional[str] = ..., address: _Optional[str] = ..., mountpoint: _Optional[str] = ..., session: _Optional[int] = ..., snapshots: _Optional[int] = ..., layers_lazy: _Optional[int] = ..., layers_failed: _Optional[int] = ..., fetched_demand: _Optional[int] = ..., fetched_prefetch: _Optional[int] = ..., fetched_background: _Optional[int] = ..., integrity_failures: _Optional[int] = ..., read_errors: _Optional[int] = ..., cache_used: _Optional[int] = ..., cache_quota: _Optional[int] = ..., cache_free: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ..., fuse_requests: _Optional[_Mapping[str, int]] = ..., take_overs: _Optional[int] = ..., keeper_pid: _Optional[int] = ..., containers_to_restart: _Optional[_Iterable[str]] = ...) -> None: ...

class LayersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LayersResponse(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    def __init__(self, layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("image", "digest", "toc_digest", "state", "reason", "detail", "size", "present", "blob_size", "number")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    BLOB_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    image: str
    digest: str
    toc_digest: str
    state: LayerState
    reason: str
    detail: str
    size: int
    present: int
    blob_size: int
    number: int
    def __init__(self, image: _Optional[str] = ..., digest: _Optional[str] = ..., toc_digest: _Optional[str] = ..., state: _Optional[_Union[LayerState, str]] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., size: _Optional[int] = ..., present: _Optional[int] = ..., blob_size: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class CacheUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheUsageResponse(_message.Message):
    __slots__ = ("domains", "deleted_open", "unreferenced", "used", "quota", "high_water", "low_water", "free", "min_free", "capacity")
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    DELETED_OPEN_FIELD_NUMBER: _ClassVar[int]
    UNREFERENCED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATER_FIELD_NUMBER: _ClassVar[int]
    LOW_WATER_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    MIN_FREE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    domains: _containers.RepeatedCompositeFieldContainer[DomainUsage]
    deleted_open: int
    unreferenced: int
    used: int
    quota: int
    high_water: int
    low_water: int
    free: int
    min_free: int
    capacity: int
    def __init__(self, domains: _Optional[_Iterable[_Union[DomainUsage, _Mapping]]] = ..., deleted_open: _Optional[int] = ..., unreferenced: _Optional[int] = ..., used: _Optional[int] = ..., quota: _Optional[int] = ..., high_water: _Optional[int] = ..., low_water: _Optional[int] = ..., free: _Optional[int] = ..., min_free: _Optional[int] = ..., capacity: _Optional[int] = ...) -> None: ...

class DomainUsage(_message.Message):
    __slots__ = ("domain", "objects", "object_bytes", "partials", "partial_bytes")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    OBJECT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARTIALS_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    domain: str
    objects: int
    object_bytes: int
    partials: int
    partial_bytes: int
    def __init__(self, domain: _Optional[str] = ..., objects: _Optional[int] = ..., object_bytes: _Optional[int] = ..., partials: _Optional[int] = ..., partial_bytes: _Optional[int] = ...) -> None: ...

class CacheListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheListResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[CachedFile]
    def __init__(self, files: _Optional[_Iterable[_Union[CachedFile, _Mapping]]] = ...) -> None: ...

class CachedFile(_message.Message):
    __slots__ = ("domain", "name", "size", "present", "complete", "referenced", "last_use_ns")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    REFERENCED_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_NS_FIELD_NUMBER: _ClassVar[int]
    domain: str
    name: str
    size: int
    present: int
    complete: bool
    referenced: bool
    last_use_ns: int
    def __init__(self, domain: _Optional[str] = ..., name: _Optional[str] = ..., size: _Optional[int] = ..., present: _Optional[int] = ..., complete: _Optional[bool] = ..., referenced: _Optional[bool] = ..., last_use_ns: _Optional[int] = ...) -> None: ...

class CacheImagesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheImagesResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[CachedImage]
    def __init__(self, images: _Optional[_Iterable[_Union[CachedImage, _Mapping]]] = ...) -> None: ...

class CachedImage(_message.Message):
    __slots__ = ("image", "lazy", "ordinary", "failed", "size", "present", "last_use_ns")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LAZY_FIELD_NUMBER: _ClassVar[int]
    ORDINARY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_NS_FIELD_NUMBER: _ClassVar[int]
    image: str
    lazy: int
    ordinary: int
    failed: int
    size: int
    present: int
    last_use_ns: int
    def __init__(self, image: _Optional[str] = ..., lazy: _Optional[int] = ..., ordinary: _Optional[int] = ..., failed: _Optional[int] = ..., size: _Optional[int] = ..., present: _Optional[int] = ..., last_use_ns: _Optional[int] = ...) -> None: ...

class ActivityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ActivityResponse(_message.Message):
    __slots__ = ("clock_ns", "plane", "started_at_ns", "layers_lazy", "fetched_demand", "fetched_prefetch", "fetched_background", "fetching_demand", "fetching_prefetch", "fetching_background", "cache_used", "cache_quota", "reads_waiting", "lookups_waiting", "longest_wait_ns", "processes_seen", "fuse_requests", "away", "waits")
    class FuseRequestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    PLANE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_LAZY_FIELD_NUMBER: _ClassVar[int]
    FETCHED_DEMAND_FIELD_NUMBER: _ClassVar[int]
    FETCHED_PREFETCH_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    FETCHING_DEMAND_FIELD_NUMBER: _ClassVar[int]
    FETCHING_PREFETCH_FIELD_NUMBER: _ClassVar[int]
    FETCHING_BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    CACHE_USED_FIELD_NUMBER: _ClassVar[int]
    CACHE_QUOTA_FIELD_NUMBER: _ClassVar[int]
    READS_WAITING_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_WAITING_FIELD_NUMBER: _ClassVar[int]
    LONGEST_WAIT_NS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_SEEN_FIELD_NUMBER: _ClassVar[int]
    FUSE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    clock_ns: int
    plane: str
    started_at_ns: int
    layers_lazy: int
    fetched_demand: int
    fetched_prefetch: int
    fetched_background: int
    fetching_demand: int
    fetching_prefetch: int
    fetching_background: int
    cache_used: int
    cache_quota: int
    reads_waiting: int
    lookups_waiting: int
    longest_wait_ns: int
    processes_seen: bool
    fuse_requests: _containers.ScalarMap[str, int]
    away: _containers.RepeatedCompositeFieldContainer[HostAway]
    waits: _containers.RepeatedCompositeFieldContainer[Wait]
    def __init__(self, clock_ns: _Optional[int] = ..., plane: _Optional[str] = ..., started_at_ns: _Optional[int] = ..., layers_lazy: _Optional[int] = ..., fetched_demand: _Optional[int] = ..., fetched_prefetch: _Optional[int] = ..., fetched_background: _Optional[int] = ..., fetching_demand: _Optional[int] = ..., fetching_prefetch: _Optional[int] = ..., fetching_background: _Optional[int] = ..., cache_used: _Optional[int] = ..., cache_quota: _Optional[int] = ..., reads_waiting: _Optional[int] = ..., lookups_waiting: _Optional[int] = ..., longest_wait_ns: _Optional[int] = ..., processes_seen: _Optional[bool] = ..., fuse_requests: _Optional[_Mapping[str, int]] = ..., away: _Optional[_Iterable[_Union[HostAway, _Mapping]]] = ..., waits: _Optional[_Iterable[_Union[Wait, _Mapping]]] = ...) -> None: ...

class HostAway(_message.Message):
    __slots__ = ("host", "failure")
    HOST_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    host: str
    failure: str
    def __init__(self, host: _Optional[str] = ..., failure: _Optional[str] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("kind", "waited_ns", "path", "path_seen", "digest", "size", "layer", "image", "reads", "pid", "process", "container", "namespace", "container_name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WAITED_NS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATH_SEEN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    kind: WaitKind
    waited_ns: int
    path: str
    path_seen: bool
    digest: str
    size: int
    layer: str
    image: str
    reads: int
    pid: int
    process: str
    container: str
    namespace: str
    container_name: str
    def __init__(self, kind: _Optional[_Union[WaitKind, str]] = ..., waited_ns: _Optional[int] = ..., path: _Optional[str] = ..., path_seen: _Optional[bool] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., layer: _Optional[str] = ..., image: _Optional[str] = ..., reads: _Optional[int] = ..., pid: _Optional[int] = ..., process: _Optional[str] = ..., container: _Optional[str] = ..., namespace: _Optional[str] = ..., container_name: _Optional[str] = ...) -> None: ...

class CachePruneRequest(_message.Message):
    __slots__ = ("include_referenced", "keep")
    INCLUDE_REFERENCED_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    include_referenced: bool
    keep: int
    def __init__(self, include_referenced: _Optional[bool] = ..., keep: _Optional[int] = ...) -> None: ...

class CachePruneResponse(_message.Message):
    __slots__ = ("files_removed", "bytes_removed", "bytes_total", "done")
    FILES_REMOVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_REMOVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    files_removed: int
    bytes_removed: int
    bytes_total: int
    done: bool
    def __init__(self, files_removed: _Optional[int] = ..., bytes_removed: _Optional[int] = ..., bytes_total: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class CacheVerifyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CacheVerifyResponse(_message.Message):
    __slots__ = ("files_checked", "bytes_checked", "bytes_total", "bad", "done", "missing")
    FILES_CHECKED_FIELD_NUMBER: _ClassVar[int]
    BYTES_CHECKED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    files_checked: int
    bytes_checked: int
    bytes_total: int
    bad: _containers.RepeatedCompositeFieldContainer[BadFile]
    done: bool
    missing: _containers.RepeatedCompositeFieldContainer[MissingFile]
    def __init__(self, files_checked: _Optional[int] = ..., bytes_checked: _Optional[int] = ..., bytes_total: _Optional[int] = ..., bad: _Optional[_Iterable[_Union[BadFile, _Mapping]]] = ..., done: _Optional[bool] = ..., missing: _Optional[_Iterable[_Union[MissingFile, _Mapping]]] = ...) -> None: ...

class BadFile(_message.Message):
    __slots__ = ("domain", "name", "problem")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    domain: str
    name: str
    problem: str
    def __init__(self, domain: _Optional[str] = ..., name: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class MissingFile(_message.Message):
    __slots__ = ("domain", "name")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    domain: str
    name: str
    def __init__(self, domain: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class TeardownRequest(_message.Message):
    __slots__ = ("force",)
    FORCE_FIELD_NUMBER: _ClassVar[int]
    force: bool
    def __init__(self, force: _Optional[bool] = ...) -> None: ...

class TeardownResponse(_message.Message):
    __slots__ = ("users", "unmounted", "done")
    USERS_FIELD_NUMBER: _ClassVar[int]
    UNMOUNTED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[User]
    unmounted: _containers.RepeatedScalarFieldContainer[str]
    done: bool
    def __init__(self, users: _Optional[_Iterable[_Union[User, _Mapping]]] = ..., unmounted: _Optional[_Iterable[str]] = ..., done: _Optional[bool] = ...) -> None: ...

class User(_message.Message):
    __slots__ = ("name", "namespace", "mountpoint", "pids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MOUNTPOINT_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    mountpoint: str
    pids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., mountpoint: _Optional[str] = ..., pids: _Optional[_Iterable[int]] = ...) -> None: ...
