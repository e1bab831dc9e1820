"""Manifests too large for one commit: written before it, under a mark that says whose they are.

A manifest has up to three records for every run, and etcd takes some forty of them in one
transaction. So the records of a long file are written ahead, by the RUNS_PER_COMMIT runs: nobody
reads them, since no inode names their data id yet. The file still appears in one commit, which
puts the inode and takes the mark away.

The mark is the garbage record of that data id, with the session that writes it. While that session
lives `gc` leaves it alone; once it is gone the last commit, which compares the session alive,
cannot happen any more, and the data is deleted as that of any removed file. Nothing is leaked by
a writer that dies, and nothing that can still become visible is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ringhold.env import Env
from ringhold.errors import Conflict
from ringhold.files import records
from ringhold.files.contents import Contents, SessionState, StagedRun, session_gone
from ringhold.files.paths import Parts
from ringhold.files.records import GarbageRecord
from ringhold.store import keyspace
from ringhold.store.base import Put, Store, Unchanged
from ringhold.store.batches import BYTES_MAX, change_bytes
from ringhold.store.repeat import commit_sure
from ringhold.store.view import View

RUNS_PER_COMMIT = 30
"""Each is up to three changes, or a change and a compare beside them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is being written under a data id: `intact` says that nobody deletes it by now.

    Whoever does changes the mark in his first commit, so that none of the writer's, should one
    without an answer still be on its way, can follow.
    """

    session: SessionState
    data: bytes
    intact: Unchanged

    @property
    def key(self) -> bytes:
        return self.intact.key

    async def require(self, view: View) -> None:
        """A commit of `view` happens only while the data is the session's to write.

        SessionExpired when it is known not to be.
        """
        born = self.session.born
        session, mark = await view.peek_many([born.key, self.key])
        if session is None or session.created != born.revision:
            raise session_gone(self.session)
        if mark is None or mark.revision != self.intact.revision:
            raise session_gone(self.session)
        view.require(born)
        view.require(self.intact)

    async def clear(self, view: View) -> None:
        """The commit of `view` gives the data to a file. SessionExpired."""
        await self.require(view)
        view.delete(self.key)


async def set_mark(
    store: Store, env: Env, session: SessionState, data: bytes, parts: Parts, size: int
) -> Mark:
    """Announces records under `data`, of a file to be called `parts`. SessionExpired."""
    key = keyspace.garbage_key(int(env.clock.wall() * 1000), data)
    garbage = GarbageRecord(0, b"/" + b"/".join(parts), size, session=session.id)
    try:
        revision = await commit_sure(
            store, env, compares=[session.born], puts=[Put(key, records.encode(garbage))]
        )
    except Conflict as error:
        raise session_gone(session) from error
    return Mark(session, data, Unchanged(key, revision))


def is_large(contents: Contents) -> bool:
    """Whether the manifest is more than one commit should have."""
    return len(contents.runs) > 1 and len(list(_portions(contents))) > 1


def _portions(contents: Contents) -> Iterator[list[Put]]:
    """The manifest in order, the records of one run always together."""
    portion: list[Put] = []
    runs, size = 0, 0
    for block in range(len(contents.runs)):
        manifest = contents.manifest(block)
        more = sum(map(change_bytes, manifest))
        if portion and (runs == RUNS_PER_COMMIT or size + more > BYTES_MAX):
            yield portion
            portion, runs, size = [], 0, 0
        portion += manifest
        runs += 1
        size += more
    if portion:
        yield portion


class LargeContents:
    """As `Contents`, of a file whose manifest is in the store already."""

    inline: None = None

    def __init__(self, store: Store, env: Env, contents: Contents, mark: Mark):
        self.size = contents.size
        self.data = contents.data
        self.block_bytes = contents.block_bytes
        self.runs = contents.runs
        self._store = store
        self._env = env
        self._contents = contents
        self._mark = mark
        self._noted: dict[bytes, bytes] = {}

    @classmethod
    async def stage(cls, store: Store, env: Env, contents: Contents, parts: Parts) -> LargeContents:
        """Writes the manifest. SessionExpired; what was written then belongs to the mark, which
        the runs name from now on."""
        assert contents.data is not None
        session = contents.runs[0].session
        mark = await set_mark(store, env, session, contents.data, parts, contents.size)
        for run in contents.runs:
            run.mark = mark.key
        staged = cls(store, env, contents, mark)
        for portion in _portions(contents):
            await staged._commit(portion, [])
        staged._noted = {
            run.run: put.key for run in contents.runs for put in contents.repair_record(run)
        }
        return staged

    async def _commit(self, puts: Sequence[Put], deletes: Sequence[bytes]) -> None:
        session = self._mark.session
        try:
            await commit_sure(
                self._store,
                self._env,
                compares=[session.born, self._mark.intact],
                puts=puts,
                deletes=deletes,
            )
        except Conflict as error:
            raise session_gone(session) from error

    async def put(self, view: View) -> None:
        """Adds to `view` what makes the data a file's. PartitionMoved, SessionExpired."""
        await self._contents.require(view)
        await self._mark.clear(view)

    async def follow(self, run: StagedRun) -> None:
        """Notes which copies of `run` are short by now."""
        puts = self._contents.repair_record(run)
        before = self._noted.pop(run.run, None)
        deletes = [] if before is None or before in [put.key for put in puts] else [before]
        if puts or deletes:
            await self._commit(puts, deletes)
        for put in puts:
            self._noted[run.run] = put.key
