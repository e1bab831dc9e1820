"""Doorbells: a commit wakes the watches of other openings of the store that it concerns.

    bells/<prefix hex>.<id hex>   one name of a FIFO for each prefix that its opening watches
    bells/<id hex>                the same for the moment between its making and its first name
    bells/changed                 an empty file; its modification time, drawn anew with every
                                  name, tells those who ring that their list of names is old

Guarantees that whoever commits after `announce` returned rings: it writes into the FIFOs whose
names are beginnings of keys it changed, one write for each FIFO, one byte for each of its
prefixes. A prefix is announced by its first PREFIX_BYTES, so a bell may ring in vain. Nobody
waits: a FIFO that is full will be read, and a read of many bytes counts as a ring for every
prefix. The stamp is random because time stamps of the kernel have the resolution of its tick:
a name made in the tick of a listing would never be seen.

A FIFO has an id of its own and is read before it has a name, so one that nobody reads was left
by a process that was killed; whoever rings it removes it. Other files are left alone.

Not guaranteed: that the bell rings at all. Where names cannot be made or were removed, where a
FIFO cannot be opened, and after a commit whose outcome is not known, watches find what changed
by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

from ringhold.core import checksum
from ringhold.env import Env
from ringhold.store import bell_files
from ringhold.store.sqlite.opening import Opening

logger = logging.getLogger("ringhold")

PREFIX_BYTES = 48
"""Of a prefix in a name: its hexadecimal digits and an id fit into 143 bytes, the shortest limit
of a file system in use."""

ID_BYTES = 16
STAMP_BITS = 60
"""Nanoseconds: dates between 1970 and 2006, which every file system can store."""

NAMELESS_S = 60.0
"""After so long a FIFO without a prefix in its name was left by a process that was killed."""

_NAME = re.compile(r"(?:((?:[0-9a-f]{2}){0,48})\.)?([0-9a-f]{32})")


class Prefixes:
    """A set of prefixes, asked for those that keys start with.

    One thread changes it, others may ask meanwhile: each step is atomic under the GIL.
    """

    def __init__(self, prefixes: Iterable[bytes] = ()):
        self._by_length: dict[int, set[bytes]] = {}
        for prefix in prefixes:
            self.add(prefix)

    def add(self, prefix: bytes) -> None:
        self._by_length.setdefault(len(prefix), set()).add(prefix)

    def remove(self, prefix: bytes) -> None:
        same_length = self._by_length[len(prefix)]
        same_length.remove(prefix)
        if not same_length:
            del self._by_length[len(prefix)]

    def of(self, keys: Set[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for length, prefixes in tuple(self._by_length.items()):
            found.update(prefixes.intersection([key[:length] for key in keys]))
        return found


class _Bell(NamedTuple):
    name: str
    prefix: bytes
    id: str


class _Listing:
    """The bells of others as the folder held them."""

    def __init__(self, stamp: int, bells: Iterable[_Bell]):
        self.stamp = stamp
        self.is_old = False
        self.by_name = {bell.name: bell for bell in bells}
        self.by_prefix: dict[bytes, list[_Bell]] = {}
        for bell in self.by_name.values():
            self.by_prefix.setdefault(bell.prefix, []).append(bell)
        self._prefixes = Prefixes(self.by_prefix)

    def concerned(self, changed: Set[bytes]) -> list[list[_Bell]]:
        """The bells that changes of these keys concern: a list for each FIFO."""
        found: dict[str, list[_Bell]] = {}
        for prefix in self._prefixes.of(changed):
            for bell in self.by_prefix[prefix]:
                found.setdefault(bell.id, []).append(bell)
        return list(found.values())


def tag(prefix: bytes) -> int:
    """The byte that rings for `prefix`."""
    return checksum(prefix) & 0xFF


class Doorbell:
    """The bell of one opening, and its hand on the bells of others.

    `ring` may be called from any thread, everything else on the loop. `on_rung` is called there
    with the tags of the prefixes that may have changed, None for all.
    """

    def __init__(
        self, directory: str, opening: Opening, env: Env, on_rung: Callable[[bytes | None], None]
    ):
        self._directory = directory
        self._stamp_path = os.path.join(directory, "changed")
        self._opening = opening
        self._env = env
        self._on_rung = on_rung
        self._loop = asyncio.get_running_loop()
        self._fifo: bell_files.Fifo | None = None
        self._id = ""
        self._names: dict[bytes, str] = {}
        self._listing: _Listing | None = None
        self._told = False
        try:
            self._make_directory()
        except OSError as error:
            self._tell(error)

    def _make_directory(self) -> None:
        # Not made durable: a folder that a power cut takes back is made again.
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._directory, 0o700)

    def announce(self, prefix: bytes) -> None:
        """Lets others ring for `prefix`, of PREFIX_BYTES at most and not announced yet."""
        try:
            try:
                self._put_up(prefix)
            except FileNotFoundError:
                # Somebody cleared the folder, or removed it: everything is made anew.
                prefixes = [*self._names, prefix]
                self.take_down()
                self._make_directory()
                for known in prefixes:
                    self._put_up(known)
            stamp = int.from_bytes(self._env.random_bytes(8), "big") >> (64 - STAMP_BITS)
            bell_files.set_stamp(self._stamp_path, stamp)
        except OSError as error:
            self._tell(error)

    def _put_up(self, prefix: bytes) -> None:
        if self._fifo is None:
            self._id = self._env.random_bytes(ID_BYTES).hex()
            nameless = self._path(self._id)
            self._fifo = bell_files.Fifo(nameless)
            self._loop.add_reader(self._fifo.fileno(), self._read)
            try:
                os.rename(nameless, self._path(self._name(prefix)))
            except OSError:
                self.take_down()
                bell_files.remove_name(nameless)
                raise
        else:
            some_name = next(iter(self._names.values()))
            os.link(self._path(some_name), self._path(self._name(prefix)))
        self._names[prefix] = self._name(prefix)

    def _name(self, prefix: bytes) -> str:
        return f"{prefix.hex()}.{self._id}"

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def withdraw(self, prefix: bytes) -> None:
        """Ends what `announce` began; nothing when that failed."""
        name = self._names.pop(prefix, None)
        if name is None or self._opening.is_inherited():
            return
        self._remove(name)
        if not self._names:
            self.take_down()

    def take_down(self) -> None:
        """Ends all announcements; nobody is left to be rung."""
        fifo, self._fifo = self._fifo, None
        for name in self._names.values():
            self._remove(name)
        self._names.clear()
        if fifo is not None:
            # A loop that was closed has forgotten its readers.
            if not self._loop.is_closed():
                self._loop.remove_reader(fifo.fileno())
            fifo.close()

    def _remove(self, name: str) -> None:
        try:
            bell_files.remove_name(self._path(name))
        except OSError as error:
            self._tell(error)

    def _read(self) -> None:
        if self._fifo is None:
            return
        tags = self._fifo.read()
        # A full FIFO has dropped tags. Full it holds a page, less at most a few bytes.
        self._on_rung(tags if len(tags) < self._fifo.READ_BYTES // 2 else None)

    def ring(self, changed: Set[bytes]) -> None:
        """To be called after a commit, with the keys it changed. Raises nothing."""
        try:
            listing = self._current_listing() if changed else None
        except OSError as error:
            self._tell(error)
            return
        if listing is None:
            return
        for bells in listing.concerned(changed):
            try:
                if not self._is_rung(listing, bells):
                    self._remove_dead(bells[0].id)
            except OSError as error:
                self._tell(error)

    def _is_rung(self, listing: _Listing, bells: list[_Bell]) -> bool:
        """Rings the FIFO of `bells`; False when nobody reads it."""
        tags = bytes(tag(bell.prefix) for bell in bells)
        for bell in bells:
            try:
                return bell_files.write_to_fifo(self._path(bell.name), tags)
            except FileNotFoundError:
                # Its watch ended; others of the same FIFO may go on.
                listing.is_old = True
        return True

    def _remove_dead(self, dead: str) -> None:
        for name in os.listdir(self._directory):
            bell = self._bell(name)
            if bell is not None and bell.id == dead:
                self._remove(name)

    def _current_listing(self) -> _Listing | None:
        stamp = bell_files.stamp(self._stamp_path)
        listing = self._listing
        if stamp is None:
            return None
        if listing is not None and listing.stamp == stamp and not listing.is_old:
            return listing
        known = {} if listing is None else listing.by_name
        # Read after the stamp: a name that is missed here comes with a new one.
        bells = (known.get(name) or self._bell(name) for name in os.listdir(self._directory))
        self._listing = listing = _Listing(stamp, filter(None, bells))
        return listing

    def _bell(self, name: str) -> _Bell | None:
        """The bell of this name, if it is one, and another's."""
        parts = _NAME.fullmatch(name)
        if parts is None or parts[2] == self._id:
            return None
        try:
            changed_s = bell_files.fifo_changed_s(self._path(name))
        except FileNotFoundError:
            return None
        if changed_s is None:
            return None
        if parts[1] is None:
            if self._env.clock.wall() > changed_s + NAMELESS_S:
                self._remove(name)
            return None
        return _Bell(name, bytes.fromhex(parts[1]), parts[2])

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            logger.info("some watches of %s rely on polling: %s", self._opening.path, error)
