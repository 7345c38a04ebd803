"""The files of an environment as the disk has them: on what file system, how long, and whether there is room."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

from casstore.errors import UnsupportedFilesystem, from_os

_LOCK_BYTES: Final = 8192
_NETWORK_FILESYSTEMS: Final = (
    "nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "lustre", "fuse.sshfs", "fuse.s3", "fuse.rclone", "ncp",
)  # fmt: skip


def check_filesystem(path: Path) -> None:
    """Raises: UnsupportedFilesystem where shared locks and maps are known not to work."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts:
        _, mount, fstype, *_ = line.split(" ")
        mount = mount.encode(errors="surrogateescape").decode("unicode_escape", errors="replace")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fstype
    if kind.startswith(_NETWORK_FILESYSTEMS):
        raise UnsupportedFilesystem(str(path), kind)


def data_size(path: Path) -> int:
    """Bytes of the data file, 0 where there is none."""
    try:
        return (path / "data.mdb").stat().st_size
    except FileNotFoundError:
        return 0


def flush(path: Path) -> None:
    """A file, or the names in a directory, are on disk on return."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_is_full(path: Path, page_size: int) -> bool:
    """Or the data file is as long as this process may make one."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and data_size(path) + page_size > limit:
        return True
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize < 4 << 20


def allot_lock_file(path: Path, readers: int) -> None:
    """LMDB maps this file and writes to it: without room for it on the disk that would end the process (SIGBUS). What
    125 readers at once take is made sure of; all of it would be 64 KiB a home. Only where nobody in this process has
    the file open: closing it gives up the process's locks on it."""
    file = path / "lock.mdb"
    try:
        with suppress(FileNotFoundError):
            if os.stat(file).st_blocks * 512 >= _LOCK_BYTES:
                return
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, min(_LOCK_BYTES, (readers - 1) * 64 + 192))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise from_os(error, file) from error
