"""Every error of casstore, grouped by what the caller does next.

Each has a stable `code`, its facts as attributes (also `.fields`), and a `hint`. Fields go positionally to
`Exception.__init__`, so that errors pickle; the message is made when it is asked for.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar

from casstore.times import shown_time


class CodedError(Exception):
    """Base of the errors of both packages. `code` is stable and meant for programs; `hint` says what to do."""

    code: ClassVar[str] = "error"
    hint: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ("message",)
    template: ClassVar[str] = "{message}"

    def __init__(self, *fields: Any) -> None:
        super().__init__(*fields)
        for name, value in zip(self.names, fields, strict=False):
            setattr(self, name, value)

    @property
    def fields(self) -> dict[str, Any]:
        """The facts by name."""
        return dict(zip(self.names, self.args, strict=False))

    def _shown(self) -> dict[str, Any]:
        return {name: self.fields.get(name, "") for name in self.names}

    def _listed(self, name: str) -> Any:
        """A fact of several parts, as people write it."""
        value = self.fields.get(name, "")
        return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    def __str__(self) -> str:
        text = self.template.format(**self._shown())
        return f"{text}. {self.hint}" if self.hint else text


class StoreError(CodedError):
    """Base of all errors of casstore."""

    code = "store_error"


# -- fix the argument ---------------------------------------------------------------------------------


class InvalidArgument(StoreError, ValueError):
    """An argument is of the wrong type or out of range. Nothing was touched."""

    code = "invalid_argument"
    names = ("argument", "reason")
    template = "{argument}: {reason}"


class InvalidId(StoreError, ValueError):
    """Not an artifact id. Nothing was touched."""

    code = "invalid_id"
    names = ("value", "reason")
    template = "not an artifact id: {value!r:.100} ({reason})"


class InvalidValue(StoreError, ValueError):
    """A value outside the DAG-CBOR profile; `path` points at it, such as `$.messages[3].cost`."""

    code = "invalid_value"
    names: ClassVar[tuple[str, ...]] = ("path", "reason")
    template = "value cannot be stored: {path}: {reason}"


class UndecodableValue(InvalidValue):
    """Bytes that are no value in its only form: damage, another program, or no value at all. `offset` is where, in
    bytes from their start, and `path` in which part of the value, as far as it could be read."""

    code = "undecodable_value"
    names = ("path", "reason", "offset")
    template = "not the bytes of a value: {path}: {reason}, at byte {offset}"


class InvalidCar(StoreError, ValueError):
    """A file that is no CAR, is damaged or cut short, or names its blocks by another hash. `offset` is where, in
    bytes from its start. What was imported before stays, each block under its own right id."""

    code = "invalid_car"
    hint = "Get the file again, then import it again: what is there already is not repeated."
    names = ("path", "offset", "reason")
    template = "{path}, byte {offset}: {reason}"


class InvalidPolicy(StoreError, ValueError):
    """A policy file that cannot be read; `key` is the one to put right, "" where the file as a whole is wrong."""

    code = "invalid_policy"
    hint = "docs/GC.md lists the keys."
    names = ("path", "key", "reason")
    template = "{path}: {where}{reason}"

    def _shown(self) -> dict[str, Any]:
        key = self.fields.get("key", "")
        return {**super()._shown(), "where": f"{key} " if key else ""}


class AmbiguousPrefix(StoreError, LookupError):
    """More than one artifact id begins like that."""

    code = "ambiguous_prefix"
    hint = "Give more digits."
    names = ("prefix", "matches")
    template = "prefix {prefix!r} fits several artifacts: {matches}"

    def _shown(self) -> dict[str, Any]:
        return {**super()._shown(), "matches": self._listed("matches")}


class AlreadyOpen(StoreError):
    """The same home is open in this process with other options."""

    code = "already_open"
    hint = "Use the handle that is open, or close it first."
    names = ("path", "reason")
    template = "{path} is already open in this process: {reason}"


# -- it is not there ----------------------------------------------------------------------------------


class NotFound(StoreError, LookupError):
    """No artifact of this id, and none was ever collected under it."""

    code = "not_found"
    names: ClassVar[tuple[str, ...]] = ("id",)
    template = "no artifact {id}"


class Collected(NotFound):
    """There was one; a gc removed it. `when_s` is unix time, `gc` the number of the collection."""

    code = "collected"
    hint = "Put the bytes again if they are still needed; pin what must stay."
    names: ClassVar[tuple[str, ...]] = ("id", "when_s", "gc")
    template = "artifact {id} was collected by gc {gc} at {when}"

    def _shown(self) -> dict[str, Any]:
        return {**super()._shown(), "when": shown_time(self.fields.get("when_s", 0))}


class Quarantined(Collected):
    """A gc removed it, and its bytes are still kept, at least until the unix time `until_s`."""

    code = "quarantined"
    hint = "Bring it back with `casstore undelete` or Store.undelete, or put the bytes again."
    names = ("id", "when_s", "gc", "until_s")
    template = "artifact {id} was collected by gc {gc} at {when}; its bytes are kept until {until}"

    def _shown(self) -> dict[str, Any]:
        return {**super()._shown(), "until": shown_time(self.fields.get("until_s", 0))}


class MissingArtifact(StoreError, LookupError):
    """A value or event names an artifact that is not in the store. Nothing was written."""

    code = "missing_artifact"
    hint = "Put the named artifact first, then this one."
    names = ("id", "field")
    template = "artifact {id}, named by {field}, is not in the store"


class PinNotFound(StoreError, LookupError):
    """No pin of this name."""

    code = "pin_not_found"
    names = ("name",)
    template = "no pin {name!r}"


class NotAStore(StoreError, LookupError):
    """There is no store at this path."""

    code = "no_store"
    hint = "Make one with `casstore init`, or name another with --home."
    names = ("path",)
    template = "no store at {path}"


# -- retry later --------------------------------------------------------------------------------------


class Busy(StoreError):
    """Somebody else does this just now."""

    code = "busy"
    hint = "Wait for it to end, then try again."
    names = ("what",)
    template = "busy: {what}"


class StoreFull(StoreError):
    """Disk, map or quota is full. Nothing of this call was kept; reading goes on."""

    code = "store_full"
    hint = "Free space (gc works on a full store), or raise the limit."
    names = ("path", "reason")
    template = "{path} is full: {reason}"


class LeaseLost(StoreError):
    """The lease expired and a gc removed it; what it protected may be gone."""

    code = "lease_lost"
    hint = "Begin again under a new lease."
    names = ("lease",)
    template = "lease {lease} is lost"


# -- reopen -------------------------------------------------------------------------------------------


class ClosedHandle(StoreError):
    """The handle was closed."""

    code = "closed"
    names = ("path",)
    template = "{path} is closed"


class ForkedHandle(StoreError):
    """The handle was opened in another process, before a fork."""

    code = "forked_handle"
    hint = "Open the home again in the child."
    names = ("path", "pid")
    template = "{path} was opened by process {pid}, before a fork"


class PoisonedHandle(StoreError):
    """A flush or commit failed: whether the last write is on disk is not known."""

    code = "poisoned"
    hint = "Reopen; then look whether the write is there."
    names = ("path", "reason")
    template = "{path}: {reason}; the outcome of the last write is not known"


# -- refused ------------------------------------------------------------------------------------------


class ReadOnly(StoreError):
    """A write through a handle that was opened read-only."""

    code = "read_only"
    names = ("path",)
    template = "{path} is open read-only"


class InvalidHome(StoreError, OSError):
    """HOME is a file, cannot be made or cannot be written."""

    code = "invalid_home"
    names = ("path", "reason")
    template = "{path} cannot be used as a home: {reason}"


class UnsupportedFilesystem(StoreError):
    """Shared locks and memory maps do not work there."""

    code = "unsupported_filesystem"
    hint = "Use a local disk."
    names = ("path", "filesystem")
    template = "{path} is on {filesystem}, which cannot keep a store safe"


class UnsupportedFormat(StoreError):
    """Written by another version. The files were not touched."""

    code = "unsupported_format"
    hint = "Use the version that wrote it, or a newer one."
    names = ("path", "found", "supported")
    template = "{path} has format {found}; this version reads {supported}"


class GcRefused(StoreError):
    """A safety rule stopped gc. Nothing was removed. `reason` is a short stable word."""

    code = "gc_refused"
    names = ("reason", "detail")
    template = "gc refused ({reason}): {detail}"


# -- restore ------------------------------------------------------------------------------------------


class Corrupt(StoreError):
    """Stored bytes do not give what they should. Wrong bytes never leave the store."""

    code = "corrupt"
    hint = "Put the good bytes again to heal it, or restore; `casstore verify` lists all damage."
    names = ("id", "detail")
    template = "artifact {id} is damaged: {detail}"


class DamagedStore(StoreError):
    """The store's own files are damaged beyond one artifact."""

    code = "damaged_store"
    hint = "`casstore verify --repair` puts rows right; else restore from a backup."
    names = ("path", "detail")
    template = "{path} is damaged: {detail}"


def from_os(error: OSError, path: object, other: type[StoreError] = DamagedStore) -> StoreError:
    """An error of the operating system at one of the store's own files, as one of ours; `other` where it says nothing
    of the disk, of permission, or of what this process may have."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFull(str(path), said)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InvalidHome(str(path), said)
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return Busy(f"{path}: {said}")
    return other(str(path), said)
