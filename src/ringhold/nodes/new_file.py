"""A file that has no final name yet, and how it gets one.

Where the file system has unnamed files (O_TMPFILE) nothing is left behind when the process
dies; elsewhere the file has a name in tmp/ until it is done with, see `Mount.remove_leftovers`.
"""

from __future__ import annotations

import errno
import os

from ringhold.env import Disk
from ringhold.nodes.mount import Mount

# What open says where there are no unnamed files: most file systems the first, overlays and
# old kernels, which see the directory or an unknown flag, the others.
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class NewFile:
    """Belongs to one task. Whatever happened to it, `discard` gives everything back.

    The methods take the disk to use, since they run as steps of `Disk.together`.
    """

    def __init__(self, mount: Mount):
        self.fd = -1
        self._mount = mount
        self._name: str | None = None

    @property
    def is_open(self) -> bool:
        return self.fd >= 0 or self._name is not None

    async def open(self, disk: Disk, dir_fd: int) -> None:
        """Opens an empty file for writing, on the file system of the node, near `dir_fd`."""
        if self._mount.unnamed_files:
            try:
                self.fd = await disk.open(".", os.O_TMPFILE | os.O_RDWR, dir_fd=dir_fd)
                return
            except OSError as error:
                if error.errno not in _NO_UNNAMED_FILES:
                    raise
                self._mount.unnamed_files = False
        self._name = await self._mount.temporary_name(disk)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self.fd = await disk.open(self._name, flags, dir_fd=self._mount.tmp_fd)

    async def link(self, disk: Disk, name: str, *, dir_fd: int) -> None:
        """Makes the file visible as `name`. FileExistsError when that is taken."""
        if self._name is None:
            await disk.link_open_file(self.fd, name, dir_fd=dir_fd)
        else:
            await disk.link(self._name, name, source_fd=self._mount.tmp_fd, target_fd=dir_fd)

    async def replace(self, disk: Disk, name: str, *, dir_fd: int) -> None:
        """Makes the file visible as `name` in the place of the one of that name, at once."""
        if self._name is None:
            self._name = await self._mount.temporary_name(disk)
            await disk.link_open_file(self.fd, self._name, dir_fd=self._mount.tmp_fd)
        await disk.rename(self._name, name, source_fd=self._mount.tmp_fd, target_fd=dir_fd)
        self._name = None

    async def discard(self, disk: Disk) -> None:
        """Closes the file and removes its name in tmp/; without a final name it is gone."""
        name, self._name = self._name, None
        fd, self.fd = self.fd, -1
        try:
            if name is not None:
                await self._unlink(disk, name)
        finally:
            if fd >= 0:
                await disk.close(fd)

    async def _unlink(self, disk: Disk, name: str) -> None:
        try:
            await disk.unlink(name, dir_fd=self._mount.tmp_fd)
        except FileNotFoundError:
            # The call that should have made the name failed.
            return
