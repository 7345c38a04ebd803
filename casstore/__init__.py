"""A content-addressed artifact store: immutable bytes named by their BLAKE3, in one directory.

>>> import casstore, tempfile
>>> with casstore.open(tempfile.mkdtemp()) as store:
...     name = store.put(b"hello")
...     assert store.get(name) == b"hello"
"""

from casstore.backups import BackupReport
from casstore.errors import (
    AlreadyOpen,
    AmbiguousPrefix,
    Busy,
    ClosedHandle,
    CodedError,
    Collected,
    Corrupt,
    DamagedStore,
    ForkedHandle,
    GcRefused,
    InvalidArgument,
    InvalidCar,
    InvalidHome,
    InvalidId,
    InvalidValue,
    LeaseLost,
    MissingArtifact,
    NotAStore,
    NotFound,
    PinNotFound,
    PoisonedHandle,
    Quarantined,
    ReadOnly,
    StoreError,
    StoreFull,
    UnsupportedFilesystem,
    UnsupportedFormat,
)
from casstore.ids import ArtifactId
from casstore.items import PreparedPut, PutItem
from casstore.leases import Lease
from casstore.opening import open_store as open
from casstore.reports import (
    ArtifactInfo,
    Buried,
    CompactReport,
    ExportReport,
    Finding,
    GcRecord,
    GcReport,
    ImportReport,
    RepairReport,
    StoreStats,
    UndeleteReport,
    VerifyReport,
    Why,
)
from casstore.roots import RetainingSource, Retention, Root, RootSource
from casstore.store import Store

__all__ = [
    "AlreadyOpen",
    "AmbiguousPrefix",
    "ArtifactId",
    "ArtifactInfo",
    "BackupReport",
    "Buried",
    "Busy",
    "ClosedHandle",
    "CodedError",
    "Collected",
    "CompactReport",
    "Corrupt",
    "DamagedStore",
    "ExportReport",
    "Finding",
    "ForkedHandle",
    "GcRecord",
    "GcRefused",
    "GcReport",
    "ImportReport",
    "InvalidArgument",
    "InvalidCar",
    "InvalidHome",
    "InvalidId",
    "InvalidValue",
    "Lease",
    "LeaseLost",
    "MissingArtifact",
    "NotAStore",
    "NotFound",
    "PinNotFound",
    "PoisonedHandle",
    "PreparedPut",
    "PutItem",
    "Quarantined",
    "ReadOnly",
    "RepairReport",
    "RetainingSource",
    "Retention",
    "Root",
    "RootSource",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreStats",
    "UndeleteReport",
    "UnsupportedFilesystem",
    "UnsupportedFormat",
    "VerifyReport",
    "Why",
    "open",
]
