"""HOME: the directory that holds a store and a journal, and its FORMAT file, read before any other byte."""

from __future__ import annotations

import os
import secrets
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from casstore.disks import flush
from casstore.errors import DamagedStore, InvalidHome, NotAStore, UnsupportedFormat, from_os

__all__ = ["FORMAT_NUMBER", "Home", "format_text", "open_home", "replace_file"]

FORMAT_NUMBER: Final = 6
_FEATURES: Final = frozenset[str]()
_OURS: Final = frozenset({"store", "journal", "FORMAT", "gc.toml"})
_FIELDS: Final = ("format", "uuid", "instance", "engine", "page_size", "hash", "requires")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """An opened home. `uuid` names the store for its life, `instance` this copy of it."""

    path: Path
    uuid: str
    instance: str
    created: bool

    @property
    def store_path(self) -> Path:
        """The directory of the store's current generation."""
        return self.path / "store" / current_generation(self.path)

    @property
    def journal_path(self) -> Path:
        return self.path / "journal"


def open_home(home: str | os.PathLike[str], *, create: bool, read_only: bool = False) -> Home:
    """Read, or with `create` write, HOME/FORMAT.

    Raises: NotAStore (nothing there and not to be made), InvalidHome (a file, not writable), UnsupportedFormat,
    DamagedStore (FORMAT does not parse).
    """
    path = Path(os.path.abspath(os.fspath(home)))
    if path.exists() and not path.is_dir():
        raise InvalidHome(str(path), "it is a file")
    created = False
    if not (path / "FORMAT").exists():
        # Another process may be making it: what it made is looked at first, and FORMAT, which comes before it, again.
        has_data = has_generation(path) or has_journal(path)
        if has_data and not (path / "FORMAT").exists():
            raise UnsupportedFormat(str(path / "FORMAT"), "nothing (the file is missing)", FORMAT_NUMBER)
        if not has_data and (not create or read_only):
            raise NotAStore(str(path))
        created = not has_data and _create(path)
    fields = _parse(path / "FORMAT")
    if not read_only and not os.access(path, os.W_OK):
        raise InvalidHome(str(path), "it is not writable")
    return Home(path=path, uuid=fields["uuid"], instance=fields["instance"], created=created)


def identity(path: Path) -> tuple[str, str]:
    """Which store is at `path`, and which copy of it: uuid and instance. Raises: as `open_home`."""
    fields = _parse(path / "FORMAT")
    return fields["uuid"], fields["instance"]


def is_same_place(one: Path, other: Path) -> bool:
    """Whether both are one home, by whatever name."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def has_generation(home: Path) -> bool:
    """Whether there are artifacts, or were once; what was not finished does not count."""
    return any(found.parent.name.isdigit() for found in home.glob("store/*/data.mdb"))


def has_journal(home: Path) -> bool:
    """Whether the journal is there; whether it should be is known by the store (`BlobBackend.has_journal`)."""
    return (home / "journal" / "data.mdb").exists()


def current_generation(home: Path) -> str:
    """The name in store/CURRENT. Raises: DamagedStore."""
    current = home / "store" / "CURRENT"
    try:
        name = current.read_text("ascii").strip()
    except UnicodeDecodeError as error:
        raise DamagedStore(str(current), "cannot be read") from error
    except OSError as error:
        raise from_os(error, current) from error
    if not name.isdigit():
        raise DamagedStore(str(current), f"names no generation: {name!r:.80}")
    return name


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves the old or the new one: temporary, flush, rename, flush."""
    os.replace(_write_aside(path, text), path)
    flush(path.parent)


def place_file(path: Path, text: str) -> bool:
    """Make a small file, whole or not at all, unless there is one. Whether this made it: of all that try one does."""
    temporary = _write_aside(path, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    flush(path.parent)
    return True


def aside(path: Path) -> Path:
    """A name beside `path` that is nobody else's: what is there was not finished, and may go."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _write_aside(path: Path, text: str) -> Path:
    temporary = aside(path)
    with open(temporary, "x", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def format_text(uuid: str, instance: str) -> str:
    """The text of FORMAT, as of this version and machine."""
    fields = {
        "format": FORMAT_NUMBER,
        "uuid": uuid,
        "instance": instance,
        "engine": "lmdb-0.9",
        # Pieces fill one page: another page size is another layout.
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "hash": "blake3-256",
        "requires": "",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def _create(path: Path) -> bool:
    """Lay a new home out. FORMAT comes last: a home killed before it is made again, from nothing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        strangers = [name for name in os.listdir(path) if name not in _OURS and not name.startswith(".FORMAT")]
        if (path / "FORMAT").exists():
            return False  # another process made it meanwhile, and what it holds
        if strangers:
            raise InvalidHome(str(path), f"the directory is not empty and no store: it holds {strangers[0]!r}")
        text = format_text(str(uuids.uuid4()), str(uuids.uuid4()))
        (path / "store").mkdir(exist_ok=True)
        place_file(path / "store" / "CURRENT", "1\n")
        return place_file(path / "FORMAT", text)  # of several processes at once exactly one is the founder
    except PermissionError as error:
        raise InvalidHome(str(path), "it is not writable") from error
    except InvalidHome:
        raise
    except OSError as error:
        raise from_os(error, path, InvalidHome) from error


def _parse(path: Path) -> dict[str, str]:
    try:
        text = path.read_bytes()[:4096].decode("ascii")
    except UnicodeDecodeError as error:
        raise UnsupportedFormat(str(path), "not text", FORMAT_NUMBER) from error
    except OSError as error:
        raise from_os(error, path, InvalidHome) from error
    lines = (line.partition(":") for line in text.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    if fields.get("format") != str(FORMAT_NUMBER):
        raise UnsupportedFormat(str(path), fields.get("format", "none") or "none", FORMAT_NUMBER)
    unknown = set(fields.get("requires", "").split()) - _FEATURES
    if unknown:
        raise UnsupportedFormat(str(path), f"{FORMAT_NUMBER} with {', '.join(sorted(unknown))}", FORMAT_NUMBER)
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise DamagedStore(str(path), f"the field {missing[0]} is missing")
    if fields["page_size"] != str(os.sysconf("SC_PAGE_SIZE")):
        raise UnsupportedFormat(str(path), f"pages of {fields['page_size'] or '?'} bytes", os.sysconf("SC_PAGE_SIZE"))
    return fields
