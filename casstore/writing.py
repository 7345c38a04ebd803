"""From bytes to a stored artifact: hash, choose a base, encode, put (docs/GC.md, section 2, "Put")."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO, Final, final

from blake3 import blake3

from casstore import codec, dictionaries, frames
from casstore.ahead import threads
from casstore.backend import BlobBackend, EncodeAgain, NewArtifact, Outcome, PutResult, Row, UploadLost, Walk
from casstore.chains import CHAIN_MAX, RecentChains, last_of_walk, skip
from casstore.errors import (
    Corrupt,
    DamagedStore,
    InvalidArgument,
    MissingArtifact,
    NotFound,
    StoreError,
    StoreFull,
)
from casstore.hints import Hints
from casstore.ids import ArtifactId
from casstore.items import PreparedPut, PutItem, links_of
from casstore.processes import current_process
from casstore.reading import Reader
from casstore.recent import RecentBytes
from casstore.similar import SIZE_MIN
from casstore.stage import Stage, Staged
from casstore.steps import reach
from casstore.uploads import frames_of, read_up_to, write_frames

BATCH_BYTES: Final = 4 << 20
BATCH_ITEMS: Final = 2000
LOOK_EVERY_PUTS: Final = 1000
THREADS_FROM_BYTES: Final = 16 << 10  # of an item on average: below, handing it over costs more than it saves
UPLOAD_TRIES: Final = 3
DISK_RESERVE_BYTES: Final = 2 << 20  # what puts leave free, so that gc can always commit
ROWS_BYTES: Final = 512  # about what the rows of an artifact take besides its pieces
_LINKS_CAME_LATER: Final = "these bytes were stored before as a stream, and link to artifacts that came later"
_UPLOAD_LOST: Final = "the upload was given up: a gc took this process for dead. Put it again"


@final
class Writer:
    """Puts artifacts into one backend. Nothing is hashed or encoded inside a transaction."""

    def __init__(
        self, backend: BlobBackend, reader: Reader, recent: RecentBytes, stage: Stage, clock: Callable[[], float], *,
        quota: int | None, path: str,
    ) -> None:  # fmt: skip
        self._backend, self._reader, self._recent, self._stage = backend, reader, recent, stage
        self._clock = clock
        self._quota, self._path = quota, path
        self._hints, self._chains = Hints(), RecentChains()
        self._dictionaries: dict[str, bytes] = {}
        self._until_look = 0
        self._map_room = 0
        self.healed: list[ArtifactId] = []  # whose damaged copy a put replaced

    def over(self, backend: BlobBackend) -> Writer:
        """This writer, putting into another backend of the same store."""
        twin = copy.copy(self)
        twin._backend = backend
        return twin

    def put(
        self, item: PutItem, *, lease: str | None = None, durable: bool = True, verify: bool = False,
        links: tuple[ArtifactId, ...] | None = None,
    ) -> ArtifactId:  # fmt: skip
        """`links` where the caller knows them already. Raises: MissingArtifact (a link is not there), StoreFull,
        LeaseLost."""
        if len(item.data) > frames.FRAME_SIZE:
            return self._put_large(item, lease, durable, verify)
        digest = blake3(item.data).digest()
        known = None if links is None else tuple(link.digest for link in links)
        prepared = self._prepare(item, digest, known)
        commit = self._write([prepared], [item], lease)
        self._remember(item, digest, prepared)
        self._flush(durable, commit)
        return ArtifactId(digest)

    def prepare(self, item: PutItem, known: tuple[bytes, ...]) -> PreparedPut | ArtifactId:
        """All of a put that needs no transaction. What is too large to go with others is put now: then its id."""
        digest = blake3(item.data).digest()
        if len(item.data) > frames.FRAME_SIZE:
            there = self._backend.rows([digest])[0] is not None
            delta = None if there else self._delta(item, digest, known)
            if delta is None:
                return self._put_large(item, None, False, False)
        else:
            delta = self._prepare(item, digest, known)
        self._remember(item, digest, delta)
        return PreparedPut(ArtifactId(digest), item, delta)

    def put_prepared(self, prepared: Sequence[PreparedPut]) -> None:
        """In one transaction; durable with the next flush. Raises: MissingArtifact, StoreFull: then none is put."""
        self._write([put.artifact for put in prepared], [put.item for put in prepared], None)

    def put_staged(self, rows: Sequence[Staged]) -> None:
        """Staged artifacts, in their order, in one transaction; durable with the next flush. What cannot be put stays
        staged: its row is damaged, or what it needs is. Raises: StoreFull (none is put)."""
        prepared = [row.artifact() for row in rows]
        try:
            self._put_items(prepared, self._whole_staged, settling=True)
        except (MissingArtifact, Corrupt, NotFound):
            for one in prepared:
                with suppress(MissingArtifact, Corrupt, NotFound):
                    self._put_items([one], self._whole_staged, settling=True)

    def stored(self, digests: Sequence[bytes]) -> None:
        """See to it that none of these is only staged: a pin or a lease holds what is in the store."""
        self._unstage(digests)

    def put_many(self, items: Sequence[PutItem], *, lease: str | None = None) -> list[ArtifactId]:
        """In order; one transaction for each 4 MiB. Durable on return, all of them; a failure keeps a prefix."""
        ids: list[ArtifactId] = []
        for batch in _batches(items):
            if len(batch[0].data) > frames.FRAME_SIZE:
                ids.append(self._put_large(batch[0], lease, False, False))
                continue
            digests = [blake3(item.data).digest() for item in batch]
            self._write(self._prepare_all(batch, digests), batch, lease)
            for item, digest in zip(batch, digests, strict=True):
                self._remember(item, digest)
            ids.extend(map(ArtifactId, digests))
        self._flush(True)
        return ids

    def put_stream(
        self,
        source: BinaryIO,
        kind: str,
        *,
        lease: str | None = None,
        progress: Callable[[int], None] | None = None,
        durable: bool = True,
    ) -> ArtifactId:
        """Any size in constant memory: frames go into an upload, the last transaction makes them visible."""
        first = read_up_to(source, frames.FRAME_SIZE + 1)
        if len(first) <= frames.FRAME_SIZE:
            if progress:
                progress(len(first))
            return self.put(PutItem(data=first, kind=kind), lease=lease, durable=durable)
        head = blake3(first).digest()  # stands for the whole, which is not read yet
        hint = self._hints.find(head, kind, first)
        if hint is not None:
            first += read_up_to(source, codec.DELTA_RAW_MAX + 1 - len(first))
            done = self._put_alike(PutItem(data=first, kind=kind), hint, lease, durable)
            if done is not None:
                self._hints.keep(head, done.digest)
                if progress:
                    progress(len(first))
                return done
        try:
            name = self._upload(frames_of(first, source), kind, (), lease, progress, durable)
        except UploadLost as error:
            raise StoreError(_UPLOAD_LOST) from error
        self._hints.keep(head, name.digest)
        return name

    # -- inside

    def _prepare(self, item: PutItem, digest: bytes, known: tuple[bytes, ...] | None = None) -> NewArtifact:
        """Encode, unless a copy is there and sound: whether it still is then is decided in the transaction."""
        if item.base is None:
            return self._encode(item, digest, self._backend.rows([digest])[0], known)
        row, walk = self._row_and_walk(digest, item.base.digest)
        return self._encode(item, digest, row, known, walk)

    def _prepare_all(self, batch: Sequence[PutItem], digests: Sequence[bytes]) -> list[NewArtifact]:
        """As `_prepare` for each, after one look; large ones are encoded by several threads, which zstd allows."""
        rows = self._backend.rows(digests)
        if sum(len(item.data) for item in batch) < THREADS_FROM_BYTES * len(batch) or len(batch) == 1:
            made = self._small_at_once(batch, digests, rows)
            return [
                self._encode(item, digest, row) if done is None else done
                for item, digest, row, done in zip(batch, digests, rows, made, strict=True)
            ]
        with threads() as pool:
            return list(pool.map(self._encode, batch, digests, rows))

    def _small_at_once(
        self, batch: Sequence[PutItem], digests: Sequence[bytes], rows: Sequence[Row | None]
    ) -> list[NewArtifact | None]:
        """Of new ones that are too small for a base other than their kind's dictionary: they are encoded together."""
        kinds = {item.kind for item in batch}
        each = len(batch) // len(kinds)
        found = {kind: None if kind == dictionaries.KIND else self._dictionary(kind, each) for kind in kinds}
        places: dict[tuple[bytes, bytes] | None, list[int]] = {}
        for place, (item, row) in enumerate(zip(batch, rows, strict=True)):
            if row is None and len(item.data) < SIZE_MIN and item.base is None:
                places.setdefault(found[item.kind], []).append(place)
        made: list[NewArtifact | None] = [None] * len(batch)
        for dictionary, alike in places.items():
            many = [batch[place].data for place in alike]
            encoded = codec.encode_all(many) if dictionary is None else codec.encode_all_with(many, dictionary[1])
            for place, one in zip(alike, encoded, strict=True):
                item = batch[place]
                made[place] = _encoded_with(item, digests[place], links_of(item.data), one, dictionary)
        return made

    def _encode(
        self, item: PutItem, digest: bytes, row: Row | None, known: tuple[bytes, ...] | None = None,
        walk: Walk | None = None,
    ) -> NewArtifact:
        links = links_of(item.data) if known is None else known
        if row is not None and self._reader.is_sound(digest):
            return NewArtifact(digest, item.kind, len(item.data), links, 0, None, 0)
        if row is not None:
            return _whole(item, digest, links)._replace(heal=True)
        delta = self._delta(item, digest, links, walk=walk)
        return delta or self._small(item, digest, links) or _whole(item, digest, links)

    def _small(self, item: PutItem, digest: bytes, links: tuple[bytes, ...]) -> NewArtifact | None:
        """With its kind's dictionary as base, where there is one and it helps."""
        if len(item.data) > dictionaries.SMALL_MAX or item.kind == dictionaries.KIND:
            return None
        found = self._dictionary(item.kind)
        if found is None:
            return None
        return _encoded_with(item, digest, links, codec.encode_with(item.data, found[1]), found)

    def _dictionary(self, kind: str, puts: int = 1) -> tuple[bytes, bytes] | None:
        """(digest, bytes) of the kind's dictionary. Looked for now and then: an old one is as right as a new one."""
        if self._until_look <= 0:
            self._until_look = LOOK_EVERY_PUTS
            pins = self._backend.pins()
            self._dictionaries = {
                name.removeprefix(dictionaries.PIN): digest
                for name, digest in pins.items() if name.startswith(dictionaries.PIN)
            }  # fmt: skip
        self._until_look -= puts
        digest = self._dictionaries.get(kind)
        if digest is None:
            return None
        data = self._recent.get(digest)
        if data is None:
            try:
                data = self._reader.get(digest)
            except (Corrupt, NotFound):
                del self._dictionaries[kind]
                return None
            self._recent.add(digest, data)
        return digest, data

    def look_again(self) -> None:
        """A dictionary was trained: use it with the next put."""
        self._until_look = 0

    def _delta(
        self, item: PutItem, digest: bytes, links: tuple[bytes, ...], hint: bytes | None = None,
        walk: Walk | None = None,
    ) -> NewArtifact | None:
        """Against the base that the item names (`walk`: its base walk, if known), else one that was found (`hint`), or
        is looked for."""
        if len(item.data) > codec.DELTA_RAW_MAX:
            return None
        if hint is None:
            hint = self._hints.find(digest, item.kind, item.data) if item.base is None else item.base.digest
        found = None if hint is None else self._base(self._row_and_walk(digest, hint)[1] if walk is None else walk)
        if found is None:
            return None
        base_digest, base, chain = found
        encoded = codec.encode(item.data, base)
        if item.base is None and base_digest == hint:  # else it was too far back in the chain
            self._hints.tell(item.kind, helped=codec.is_delta(encoded.codec))
        if not codec.is_delta(encoded.codec):
            return None
        return _encoded(item, digest, links, encoded, base_digest, chain)

    def _put_alike(self, item: PutItem, hint: bytes, lease: str | None, durable: bool) -> ArtifactId | None:
        """A new stream that turned out to be short enough, as a delta, where that helps."""
        digest = blake3(item.data).digest()
        delta = self._delta(item, digest, (), hint) if self._backend.rows([digest])[0] is None else None
        if delta is None or not self._try(delta, lease):
            return None
        self._recent.add(digest, item.data)
        self._flush(durable)
        return ArtifactId(digest)

    def _base(self, walk: Walk) -> tuple[bytes, bytes, int] | None:
        """(digest, bytes, chain of the new artifact) of the base to use: the one on the hint's base walk whose
        number is n with its lowest digit, in base 4, made smaller by one."""
        if not walk:
            return None
        chain = walk[0][2] + 1
        if chain > CHAIN_MAX:
            return None
        for digest, data_id, number in walk:
            if number == skip(chain):
                data = self._recent.get(digest)
                if data is None:
                    try:  # and it is in recent then
                        data = self._reader.data(data_id, digest) if data_id else self._reader.get(digest)
                    except (Corrupt, NotFound):
                        return None  # a hint: a damaged base is no reason to refuse good bytes
                return digest, data, chain
        return None

    def _row_and_walk(self, digest: bytes, base: bytes) -> tuple[Row | None, Walk]:
        """See BlobBackend.row_and_walk; as far as `_base` needs it. What is staged, or was put by this process, has the
        data_id 0."""
        at_hand = self._chains.walk(base, last_of_walk)
        if at_hand is not None:
            return self._backend.rows([digest])[0], at_hand
        staged = self._stage.walk(base, last_of_walk)
        # First that look: what it does not show was settled before the second one.
        if not staged:
            return self._backend.row_and_walk(digest, base, last_of_walk)
        last, below = last_of_walk(staged[0].chain), staged[-1].base
        walk = [(row.digest, 0, row.chain) for row in staged]
        if below is None or staged[-1].chain <= last:
            return self._backend.rows([digest])[0], walk
        row, rest = self._backend.row_and_walk(digest, below, lambda _: last)
        return row, walk + rest

    def _write(self, prepared: list[NewArtifact], items: Sequence[PutItem], lease: str | None) -> int:
        of = dict(zip([put.digest for put in prepared], items, strict=True))
        return self._put_items(prepared, lambda put: _whole(of[put.digest], put.digest, put.links), lease)

    def _put_items(
        self, prepared: list[NewArtifact], whole: Callable[[NewArtifact], NewArtifact], lease: str | None = None, *,
        settling: bool = False,
    ) -> int:  # fmt: skip
        """One transaction: its commit, 0 where it wrote nothing. What turns out to need its bytes whole is encoded
        again; what needs something staged has that put first: in the store, artifacts need what is in the store."""
        while True:
            self.check_room(sum(item.stored_len for item in prepared))
            reach("put.before_commit")
            try:
                result = self._backend.put(prepared, int(self._clock()), lease)
            except EncodeAgain as again:
                gone = set(again.digests)
                bases = [put.base for put in prepared if put.digest in gone and put.base is not None]
                for base in bases:
                    self._chains.forget(base)
                if settling or not self._unstage(bases):
                    prepared = [whole(old) if old.digest in gone else old for old in prepared]
                continue
            except MissingArtifact as missing:
                if settling or not self._unstage([missing.fields["id"].digest]):
                    raise
                continue
            except UploadLost as error:
                raise InvalidArgument("data", _LINKS_CAME_LATER) from error
            reach("put.after_commit")
            self._put_done(prepared, result)
            return result.commit

    def _unstage(self, digests: Sequence[bytes]) -> bool:
        """Put what is staged into the store if one of these is, and say so. Rows that were put before are gone from
        the stage at the next settling; here they must not be taken for news."""
        rows = self._stage.rows() if any(self._stage.find(digest) is not None for digest in digests) else []
        there = self._backend.rows([row.digest for row in rows])
        wanted = [row for row, found in zip(rows, there, strict=True) if found is None]
        if not {row.digest for row in wanted} & set(digests):
            return False
        self.put_staged(wanted)
        return any(found is not None for found in self._backend.rows(digests))

    def _whole_staged(self, put: NewArtifact) -> NewArtifact:
        """A staged artifact whose base is not in the store. Raises: Corrupt, NotFound."""
        data = self._reader.get(put.digest)
        return _whole(PutItem(data=data, kind=put.kind), put.digest, put.links)

    def _put_done(self, prepared: Sequence[NewArtifact], result: PutResult) -> None:
        """Note what was healed. What was put again is good: where an earlier copy that deltas are made of is damaged,
        it is rewritten in place, so that they read again. The put is done either way. Very large ones (put as streams)
        are left."""
        if Outcome.HEALED in result.outcomes:
            outcomes = zip(prepared, result.outcomes, strict=True)
            self.healed += [ArtifactId(item.digest) for item, outcome in outcomes if outcome is Outcome.HEALED]
        for digest, data_id in result.kept:
            with suppress(StoreFull, NotFound, Corrupt, DamagedStore):
                if self._reader.is_sound_copy(data_id, digest):
                    continue
                if self._reader.head(digest).raw_len > codec.DELTA_RAW_MAX:
                    continue
                whole = _whole(PutItem(data=self._reader.get(digest)), digest, ())
                self.check_room(whole.stored_len)
                if self._backend.heal_kept(data_id, whole):
                    self.healed.append(ArtifactId(digest))
                reach("put.healed_kept")

    def _put_large(self, item: PutItem, lease: str | None, durable: bool, verify: bool) -> ArtifactId:
        """More than one frame: a hit or a delta goes in one transaction, anything else as an upload."""
        digest = blake3(item.data).digest()
        links = links_of(item.data)
        tries = 0
        while True:
            try:
                self._put_large_once(item, digest, links, lease, verify)
                break
            except UploadLost as error:  # what it links to became younger than it, or gc took us for dead: begin again
                tries += 1
                if tries == UPLOAD_TRIES:
                    raise StoreError(_UPLOAD_LOST) from error
        self._remember(item, digest)
        self._flush(durable)
        return ArtifactId(digest)

    def _put_large_once(
        self, item: PutItem, digest: bytes, links: tuple[bytes, ...], lease: str | None, verify: bool
    ) -> None:
        if links:
            self._unstage(links)  # an upload takes its number now, and what it needs must have a smaller one
        prepared: NewArtifact | None = None
        if self._backend.rows([digest])[0] is not None:
            if self._reader.is_sound(digest) if verify else self._reader.has_all_pieces(digest):
                prepared = NewArtifact(digest, item.kind, len(item.data), links, 0, None, 0)
        else:
            prepared = self._delta(item, digest, links)
        done = prepared is not None and self._try(prepared, lease)
        if not done:
            self._upload(frames_of(item.data, None), item.kind, links, lease, None, False)

    def _try(self, prepared: NewArtifact, lease: str | None) -> bool:
        """Put what may turn out to need its bytes whole. Whether it went in."""

        def give_up(put: NewArtifact) -> NewArtifact:
            raise EncodeAgain((put.digest,))

        try:
            self._put_items([prepared], give_up, lease)
        except EncodeAgain:
            return False
        return True

    def _upload(
        self,
        raw_frames: Callable[[], Iterator[bytes]],
        kind: str,
        links: tuple[bytes, ...],
        lease: str | None,
        progress: Callable[[int], None] | None,
        durable: bool,
    ) -> ArtifactId:
        backend = self._backend
        upload = backend.upload_open(int(self._clock()), current_process())
        reach("upload.opened")
        try:
            digest, raw_len, stored_len, seal = write_frames(backend, upload, raw_frames(), self.check_room, progress)
            row = backend.rows([digest])[0]
            if row is None:
                self.check_room(0, stored_len)  # others have put as well
            heal = row is not None and not self._reader.is_sound(digest)
            reach("upload.written")
            finished = [
                NewArtifact(
                    digest, kind, raw_len, links, codec.Codec.FRAMES, None, stored_len,
                    extra=seal, upload=upload, heal=heal,
                )
            ]  # fmt: skip
            result = backend.put(finished, int(self._clock()), lease)
        except BaseException:
            backend.upload_abort(upload)
            raise
        if result.outcomes[0] is not Outcome.NEW:
            while backend.purge(BATCH_ITEMS):
                pass
        reach("upload.committed")
        self._put_done(finished, result)
        self._flush(durable)
        return ArtifactId(digest)

    def _remember(self, item: PutItem, digest: bytes, prepared: NewArtifact | None = None) -> None:
        """What a later version may be a delta of is kept at hand; with how it is made, where that is known."""
        if prepared is not None and prepared.stored is not None:
            self._chains.add(digest, prepared.chain, prepared.base)
        alike = len(item.data) >= SIZE_MIN and self._hints.keep(digest)  # what is smaller has no hint
        if alike or item.base is not None or item.kind == "context_snapshot":
            self._recent.add(digest, item.data)

    def _flush(self, durable: bool, commit: int = 0) -> None:
        """Also after a hit that wrote nothing: another writer's row may not be on disk yet (H23)."""
        if durable:
            self._backend.sync(commit)
            reach("put.after_sync")

    def check_room(self, stored_len: int, before: int = 0) -> None:
        """Raises: StoreFull where so many bytes more would pass the quota or take the disk's reserve. `before` were
        written and do not count yet: the beginning of an upload."""
        if self._quota is not None:
            counters = self._backend.counters()
            if counters.stored_bytes + counters.kept_bytes + before + stored_len > self._quota:
                raise StoreFull(self._path, f"the quota of {self._quota} bytes would be passed")
        if self._path and stored_len:
            disk = os.statvfs(self._path)
            wanted = stored_len + DISK_RESERVE_BYTES
            if disk.f_bavail * disk.f_frsize < wanted and self._reusable(self._backend.info()) < wanted:
                raise StoreFull(self._path, "only the reserve that gc needs is left on the disk")
            self._check_map(stored_len + ROWS_BYTES)

    def _check_map(self, size: int) -> None:
        """The memory map is far larger than any disk, but where address space is scarce. What room a look found is
        used up to a quarter before the next look, since other processes use it as well."""
        self._map_room -= size
        if self._map_room > 0:
            return
        info = self._backend.info()
        reserve = min(DISK_RESERVE_BYTES, info["map_bytes"] // 8)
        room = info["map_bytes"] - info["file_bytes"] + self._reusable(info) - reserve
        if room < size:
            self._map_room = 0
            raise StoreFull(self._path, "only the reserve that gc needs is left of the memory map")
        self._map_room = room // 4

    @staticmethod
    def _reusable(info: dict[str, int]) -> int:
        """Bytes of pages that gc freed inside of the file: they need no disk."""
        return info["pages_free"] * info["page_bytes"]


def _whole(item: PutItem, digest: bytes, links: tuple[bytes, ...]) -> NewArtifact:
    return _encoded(item, digest, links, codec.encode_whole(item.data))


def _encoded(
    item: PutItem, digest: bytes, links: tuple[bytes, ...], encoded: codec.Encoded, base: bytes | None = None,
    chain: int = 0,
) -> NewArtifact:  # fmt: skip
    how, stored = encoded
    return NewArtifact(digest, item.kind, len(item.data), links, how, stored, len(stored), base, chain)


def _encoded_with(
    item: PutItem, digest: bytes, links: tuple[bytes, ...], encoded: codec.Encoded,
    dictionary: tuple[bytes, bytes] | None,
) -> NewArtifact:  # fmt: skip
    """Its base is the dictionary, (digest, bytes), where that was of use."""
    if dictionary is None or encoded.codec != codec.Codec.ZSTD_DICTIONARY:
        return _encoded(item, digest, links, encoded)
    return _encoded(item, digest, links, encoded, dictionary[0])


def _batches(items: Sequence[PutItem]) -> Iterator[list[PutItem]]:
    batch: list[PutItem] = []
    size = 0
    for item in items:
        large = len(item.data) > frames.FRAME_SIZE
        if batch and (large or size + len(item.data) > BATCH_BYTES or len(batch) >= BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        if large:
            yield [item]
            continue
        batch.append(item)
        size += len(item.data)
    if batch:
        yield batch
