"""Peers of the object workload: many objects in, all of them out."""

from __future__ import annotations

import hashlib
import sqlite3
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import blake3
import lmdb
import zstandard

import casstore
from benchmarks.measure import OURS
from benchmarks.peers import AnyPeer

# the batches of the store's put_many: who else writes in batches writes in the same ones
BATCH_BYTES: Final = 4 << 20
BATCH_ITEMS: Final = 2000
READ_ITEMS: Final = 500  # read in one transaction, as get_many of the store does


class ObjectPeer(AnyPeer):
    """A store of objects that its names are made from. `put_many` returns when all are on disk."""

    @abstractmethod
    def put_many(self, items: Sequence[bytes]) -> list[Any]:
        """Store them all; their keys in order."""

    @abstractmethod
    def get_many(self, keys: Sequence[Any]) -> list[bytes]:
        """Read them all, in order, the way that this store reads many."""

    def get_each(self, keys: Sequence[Any]) -> list[bytes] | None:
        """The same by a call for each; None where `get_many` is that, or nobody asked."""
        return None


class OursObjects(ObjectPeer):
    """casstore: put_many and get_many, and a get for each."""

    name = OURS
    note = "BLAKE3 checked at each read"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._store = casstore.open(home / "home")

    def put_many(self, items: Sequence[bytes]) -> list[Any]:
        return list(self._store.put_many(items))

    def get_many(self, keys: Sequence[Any]) -> list[bytes]:
        return list(self._store.get_many(keys))

    def get_each(self, keys: Sequence[Any]) -> list[bytes]:
        return [self._store.get(key) for key in keys]

    def close(self) -> None:
        self._store.close()


class Floor(ObjectPeer):
    """The least that it can cost: BLAKE3, zstd 3, one index row and one data row each in bare LMDB, in as many
    commits with as many flushes as ours."""

    name = "floor"
    note = "bare LMDB, the same bytes and commits"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._env = lmdb.open(str(home / "l"), map_size=1 << 36, max_dbs=2, metasync=False, readahead=False)
        self._index = self._env.open_db(b"ix")
        self._data = self._env.open_db(b"da")

    def put_many(self, items: Sequence[bytes]) -> list[Any]:
        keys, number = [], 0
        compressor = zstandard.ZstdCompressor(level=3)
        for batch in batches(items):
            prepared = [(blake3.blake3(item).digest(), compressor.compress(item), len(item)) for item in batch]
            with self._env.begin(write=True) as txn:
                for digest, stored, size in prepared:
                    number += 1
                    place = number.to_bytes(8, "big")
                    txn.put(digest, place + size.to_bytes(24, "big"), db=self._index)
                    txn.put(place, stored, db=self._data, append=True)
            keys += [digest for digest, _, _ in prepared]
        self._env.sync(True)
        return keys

    def get_many(self, keys: Sequence[Any]) -> list[bytes]:
        return self._read(keys, READ_ITEMS)

    def get_each(self, keys: Sequence[Any]) -> list[bytes]:
        return self._read(keys, 1)

    def _read(self, keys: Sequence[Any], at_once: int) -> list[bytes]:
        decompressor = zstandard.ZstdDecompressor()
        found = []
        for start in range(0, len(keys), at_once):
            with self._env.begin() as txn:
                for key in keys[start : start + at_once]:
                    stored = txn.get((txn.get(key, db=self._index) or b"")[:8], db=self._data) or b""
                    item = decompressor.decompress(stored)
                    if blake3.blake3(item).digest() != key:
                        raise AssertionError("damaged")
                    found.append(item)
        return found

    def close(self) -> None:
        self._env.close()


class SqliteObjects(ObjectPeer):
    """A table of blobs named by their SHA-256; WAL, synchronous=FULL."""

    name = "sqlite_wal"
    note = "one table, not compressed"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._db = sqlite3.connect(home / "x.db", isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.execute("create table if not exists snap(id text primary key, body blob)")

    def put_many(self, items: Sequence[bytes]) -> list[Any]:
        keys = []
        for batch in batches(items):
            rows = [(hashlib.sha256(item).hexdigest(), item) for item in batch]
            self._db.execute("begin immediate")
            self._db.executemany("insert or ignore into snap values(?,?)", rows)
            self._db.execute("commit")
            keys += [key for key, _ in rows]
        return keys

    def get_many(self, keys: Sequence[Any]) -> list[bytes]:
        ask = "select body from snap where id=?"
        return [self._db.execute(ask, (key,)).fetchone()[0] for key in keys]

    def close(self) -> None:
        self._db.close()


class DiskObjectStorePacked(ObjectPeer):
    """disk-objectstore, straight into packs, as it does by default: not compressed."""

    name = "disk_objectstore"
    requires = ("disk_objectstore",)
    note = "add_objects_to_pack, bulk read"
    compress: ClassVar[bool] = False

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        from disk_objectstore import Container

        self._container = Container(home / "c")
        if not self._container.is_initialised:
            self._container.init_container()

    def put_many(self, items: Sequence[bytes]) -> list[Any]:
        return list(self._container.add_objects_to_pack(list(items), compress=self.compress))

    def get_many(self, keys: Sequence[Any]) -> list[bytes]:
        found = self._container.get_objects_content(list(keys))
        return [found[key] or b"" for key in keys]

    def close(self) -> None:
        self._container.close()


class DiskObjectStoreCompressed(DiskObjectStorePacked):
    """The same, compressed with zlib."""

    name = "disk_objectstore_zlib"
    note = "the same with compress=True"
    compress = True


class DiskCacheObjects(ObjectPeer):
    """diskcache, a transaction for each batch."""

    name = "diskcache"
    requires = ("diskcache",)
    note = "not compressed; above 32 KiB files without fsync"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        import diskcache

        self._cache = diskcache.Cache(str(home / "dc"), size_limit=1 << 40, cull_limit=0, sqlite_synchronous=2)

    def put_many(self, items: Sequence[bytes]) -> list[Any]:
        keys = []
        for batch in batches(items):
            with self._cache.transact():
                for item in batch:
                    keys.append(hashlib.sha256(item).hexdigest())
                    self._cache.set(keys[-1], item)
        return keys

    def get_many(self, keys: Sequence[Any]) -> list[bytes]:
        return [self._cache[key] for key in keys]

    def close(self) -> None:
        self._cache.close()


PEERS: Final[list[type[ObjectPeer]]] = [
    OursObjects, Floor, SqliteObjects, DiskObjectStorePacked, DiskObjectStoreCompressed, DiskCacheObjects,
]  # fmt: skip


def batches(items: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The batches that put_many of the store makes."""
    batch: list[bytes] = []
    size = 0
    for item in items:
        if batch and (size + len(item) > BATCH_BYTES or len(batch) >= BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield batch
