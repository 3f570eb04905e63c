"""All partial files of the store: one shared instance each, found by name or by digest, few of them open."""

import functools
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from snapshotter.errors import FormatError
from snapshotter.store.identity import FileIdentity, encode_identity, partial_name
from snapshotter.store.partial import MapMark, PartialFile
from snapshotter.store.partial_files import remove_files
from snapshotter.store.partial_map import MAGIC, boot_tag
from snapshotter.store.tree import DomainDirectories

OPEN_LIMIT = 64
_MAP = re.compile(r"([0-9a-f]{64})\.map")
_DATA = re.compile(r"([0-9a-f]{64})\.data")

Key = tuple[str, str]  # (domain, name)


@dataclass(slots=True)
class PartialEntry:
    """What is known of a partial file without opening it."""

    domain: str
    name: str
    digest: bytes
    size: int
    disk_bytes: int


class PartialSet:
    """The directory `<root>/partial`, also the place where single files are written aside (`temporary`)."""

    def __init__(self, top: Path, boot_id: str, on_change: Callable[[str, int, int], None]) -> None:
        """Read the names that an earlier daemon left; what it was writing aside is removed.

        `on_change` hears (domain, files, bytes) for everything that comes, grows or goes.

        Raises:
            OSError: the disk refused.
        """
        self._directories = DomainDirectories(top)
        self._boot = boot_tag(boot_id)
        self._on_change = on_change
        self._counter = itertools.count()
        self._lock = threading.Lock()  # guards everything below
        self._load_lock = threading.Lock()  # one load or creation at a time; taken before _lock
        self._entries: dict[Key, PartialEntry] = {}
        self._by_digest: dict[tuple[str, bytes], set[str]] = {}
        self._instances: WeakValueDictionary[Key, PartialFile] = WeakValueDictionary()
        self._recent: OrderedDict[Key, PartialFile] = OrderedDict()
        self._unsynced: dict[Key, PartialFile] = {}
        for domain in self._directories.domains():
            self._scan(domain)

    def directory(self, domain: str) -> int:
        """The domain's directory, made when it is missing."""
        return self._directories.make_domain(domain)

    def temporary(self) -> str:
        """A name that nobody uses, for a file on its way into the objects."""
        return f"{next(self._counter)}.tmp"

    def get(self, domain: str, identity: FileIdentity) -> PartialFile | None:
        """The partial file of exactly this identity; None if there is none. The first call for a file does I/O.

        Raises:
            OSError: the disk refused.
        """
        return self._find((domain, partial_name(encode_identity(identity))))

    def obtain(self, domain: str, identity: FileIdentity) -> PartialFile:
        """The partial file of this identity, made when it is missing.

        Raises:
            OSError: the disk refused.
        """
        key = (domain, partial_name(encode_identity(identity)))
        while (partial := self._find(key)) is None:
            with self._load_lock:
                with self._lock:
                    if key in self._entries:
                        continue
                partial = PartialFile.create(self.directory(domain), identity, self._boot)
                entry = PartialEntry(domain, key[1], identity.digest, identity.size, 0)
                with self._lock:
                    self._add(key, entry)
                    self._share(key, partial)
                self._on_change(domain, 1, 0)
                self.changed(domain, partial)
                return partial
        return partial

    def open(self, entry: PartialEntry) -> PartialFile | None:
        """The partial file of an entry; None if it has gone.

        Raises:
            OSError: the disk refused.
        """
        return self._find((entry.domain, entry.name))

    def changed(self, domain: str, partial: PartialFile) -> None:
        """Chunks were written: account for them and let the next sync know."""
        key = (domain, partial.name)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            size = partial.disk_bytes()
            growth = size - entry.disk_bytes
            entry.disk_bytes = size
            if partial.unsynced:
                self._unsynced[key] = partial
        self._on_change(domain, 0, growth)

    def entries(self, domain: str) -> list[PartialEntry]:
        """The partial files of a domain."""
        with self._lock:
            return [entry for entry in self._entries.values() if entry.domain == domain]

    def of_digest(self, domain: str, digest: bytes) -> list[PartialEntry]:
        """The partial files that would become this object."""
        with self._lock:
            return [self._entries[domain, name] for name in self._by_digest.get((domain, digest), ())]

    def domains(self) -> list[str]:
        """Domains with a directory here."""
        return self._directories.domains()

    def remove(self, entry: PartialEntry, *, unless_busy: bool = False) -> int:
        """Remove a partial file; bytes freed, 0 if it had gone or is being used and `unless_busy`.

        Raises:
            OSError: the disk refused.
        """
        with self._load_lock:
            key = (entry.domain, entry.name)
            with self._lock:
                if self._entries.get(key) is not entry:
                    return 0
                partial = self._instances.get(key)
                if unless_busy and partial is not None and partial.busy:
                    return 0
            if partial is not None:
                # Before the files go: from now on nobody appends to the map, and a writer begins anew elsewhere.
                partial.retire()
            try:
                remove_files(self.directory(entry.domain), entry.name)
            except OSError:
                self._recount(entry)
                raise
            return self._retire(key)

    def begin_sync(self) -> list[tuple[str, PartialFile, MapMark]]:
        """What a syncfs that starts now will cover; hand it to `end_sync` afterwards."""
        with self._lock:
            return [(domain, partial, partial.map_mark) for (domain, _), partial in self._unsynced.items()]

    def end_sync(self, covered: list[tuple[str, PartialFile, MapMark]]) -> None:
        """The syncfs has ended well.

        Raises:
            OSError: the disk refused a mark; the chunks stay unsynced.
        """
        for domain, partial, mark in covered:
            partial.record_synced(mark)
            with self._lock:
                if not partial.unsynced:
                    self._unsynced.pop((domain, partial.name), None)

    @property
    def unsynced(self) -> bool:
        """Some chunk is on record that no syncfs covered."""
        return bool(self._unsynced)

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            for partial in self._instances.values():
                partial.retire()
            self._recent.clear()
            self._unsynced.clear()
        self._directories.close()

    def _find(self, key: Key) -> PartialFile | None:
        with self._lock:
            if (partial := self._known(key)) is not None:
                return partial
            if key not in self._entries:
                return None
        with self._load_lock:
            with self._lock:
                if (partial := self._known(key)) is not None:
                    return partial
                if key not in self._entries:
                    return None
            domain, name = key
            directory = self.directory(domain)
            try:
                partial = PartialFile.load(directory, name, self._boot)
            except (FormatError, FileNotFoundError):
                remove_files(directory, name)
                self._retire(key)
                return None
            with self._lock:
                self._share(key, partial)
        self.changed(domain, partial)
        return partial

    def _known(self, key: Key) -> PartialFile | None:
        partial = self._instances.get(key)
        if partial is None or partial.gone:
            return None
        self._use(key, partial)
        return partial

    def _share(self, key: Key, partial: PartialFile) -> None:
        self._instances[key] = partial
        partial.on_open = functools.partial(self._opened, key)
        self._use(key, partial)

    def _opened(self, key: Key, partial: PartialFile) -> None:
        with self._lock:
            if self._instances.get(key) is partial:
                self._use(key, partial)

    def _use(self, key: Key, partial: PartialFile) -> None:
        self._recent[key] = partial
        self._recent.move_to_end(key)
        if len(self._recent) > OPEN_LIMIT:
            self._recent.popitem(last=False)[1].close_idle()

    def _add(self, key: Key, entry: PartialEntry) -> None:
        self._entries[key] = entry
        self._by_digest.setdefault((entry.domain, entry.digest), set()).add(entry.name)

    def _retire(self, key: Key) -> int:
        """Forget a partial file whose names are gone; bytes that it held."""
        with self._lock:
            partial = self._instances.pop(key, None)
            self._recent.pop(key, None)
            self._unsynced.pop(key, None)
            entry = self._entries.pop(key, None)
            if entry is None:
                return 0
            names = self._by_digest[entry.domain, entry.digest]
            names.discard(entry.name)
            if not names:
                del self._by_digest[entry.domain, entry.digest]
        if partial is not None:
            partial.retire()
        self._on_change(entry.domain, -1, -entry.disk_bytes)
        return entry.disk_bytes

    def _recount(self, entry: PartialEntry) -> None:
        """A partial file could not be removed, or not all of it: account for what is left."""
        left = _disk_bytes(self.directory(entry.domain), entry.name)
        with self._lock:
            growth, entry.disk_bytes = left - entry.disk_bytes, left
        self._on_change(entry.domain, 0, growth)

    def _scan(self, domain: str) -> None:
        directory = self._directories.domain(domain)
        if directory is None:
            return
        names = os.listdir(directory)
        maps = {match[1] for name in names if (match := _MAP.fullmatch(name))}
        data = {match[1] for name in names if (match := _DATA.fullmatch(name))}
        for name in names:
            if name.endswith(".tmp"):
                os.unlink(name, dir_fd=directory)
        for name in maps | data:
            entry = _read_entry(domain, directory, name) if name in maps & data else None
            if entry is None:
                remove_files(directory, name)
                continue
            self._add((domain, name), entry)
            self._on_change(domain, 1, entry.disk_bytes)


def _disk_bytes(directory: int, name: str) -> int:
    found = 0
    for file in (f"{name}.data", f"{name}.map"):
        with suppress(OSError):
            found += os.stat(file, dir_fd=directory, follow_symlinks=False).st_blocks * 512
    return found


def _read_entry(domain: str, directory: int, name: str) -> PartialEntry | None:
    """An entry from the first bytes of a map file; they are checked as a whole when the file is first used."""
    try:
        fd = os.open(f"{name}.map", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
        try:
            head = os.pread(fd, len(MAGIC) + 40, 0)
            blocks = os.fstat(fd).st_blocks
        finally:
            os.close(fd)
        data = os.stat(f"{name}.data", dir_fd=directory, follow_symlinks=False)
        blocks += data.st_blocks
    except OSError:
        return None
    # It became an object and did not lose its name here: what is written into it would be written into that.
    if data.st_nlink > 1:
        return None
    if len(head) < len(MAGIC) + 40 or not head.startswith(MAGIC):
        return None
    digest = head[len(MAGIC) : len(MAGIC) + 32]
    return PartialEntry(domain, name, digest, int.from_bytes(head[len(MAGIC) + 32 :], "little"), blocks * 512)
