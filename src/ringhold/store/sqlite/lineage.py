"""Which history of revisions a database file continues, so that none of them is used twice.

Revisions, and the fencing tokens made of them, only grow, also where the database comes back
older than it was:

- A commit that is not synced (durability "process") uses revisions up to the `ceiling` only,
  which a synced commit has raised before. A power cut may take acknowledged commits away; the
  first commit of the next boot goes on above the ceiling.
- A file that is not the one last written was put there: a backup was restored. The first commit
  that finds it so goes on RESTORE_JUMP revisions higher, and above what 4000 commits a second
  since 2020 had reached by the file's birth, so that restoring the same backup again goes higher
  again. Tokens have 42 bits of revision: room for 16 000 restores.

What was skipped is remembered. A watch that had seen everything before goes on behind it; one
that asks for a skipped revision saw a history that is gone and is told so (Compacted).

Not noticed: unsynced commits that are lost without a restart of the machine (a disk that was
pulled out); a backup copied over the file in place, so that it stays the same file; a disk image
or a whole file system set back. Remove the old files before copying a backup.

    lineage  boot i64 (XXH3-64 of the boot id of the last commit), file i64 (`file_identity`),
             ceiling i64, the first and the last skipped revision i64, i64 (1 and 0: none)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from ringhold.store.requests import no_longer_kept, revision_at

CEILING_STEP = 10_000
RESTORE_JUMP = 1 << 28

_STRUCT = struct.Struct(">qqqqq")


@dataclass(frozen=True, slots=True)
class Lineage:
    """The row `lineage` of `meta`."""

    boot: int
    file: int
    ceiling: int = 0
    skipped_first: int = 1
    skipped_last: int = 0

    def pack(self) -> bytes:
        return _STRUCT.pack(
            self.boot, self.file, self.ceiling, self.skipped_first, self.skipped_last
        )

    @classmethod
    def unpack(cls, data: bytes) -> Lineage:
        """struct.error or TypeError for what `pack` did not make."""
        return cls(*_STRUCT.unpack(data))

    def after(self, revision: int, boot: int, file: int) -> Lineage:
        """The lineage of a commit in `boot` on `file` that follows `revision`."""
        newest = revision
        if boot != self.boot:
            newest = max(newest, self.ceiling)
        if file != self.file:
            newest = max(newest, self.ceiling) + RESTORE_JUMP
            newest = max(newest, revision_at(file / 1e9))
        if newest == revision:
            return replace(self, boot=boot, file=file)
        return Lineage(boot, file, self.ceiling, revision + 1, newest)

    def back(self, revision: int, count: int) -> int:
        """The revision `count` before `revision`, those skipped last not counted."""
        earlier = revision - count
        if revision >= self.skipped_last >= earlier:
            earlier -= self.skipped_last - self.skipped_first + 1
        return earlier

    def follow(self, from_revision: int) -> tuple[int, int | None]:
        """Where a watch of `from_revision` and later reads on, and the revision it must stop
        before once (None: no bound). Compacted when `from_revision` was skipped."""
        if self.skipped_first < from_revision <= self.skipped_last:
            raise no_longer_kept(from_revision, self.skipped_last)
        if from_revision > self.skipped_last:
            return from_revision, None
        if from_revision == self.skipped_first:
            return self.skipped_last + 1, None
        return from_revision, self.skipped_first
