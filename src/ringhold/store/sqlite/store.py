"""The embedded store of one directory, for several processes of one host.

    store/store.db (-wal, -shm)   the database; opened by nothing but SQLite
    locks/commit, locks/turnstile the commit lock; with ".free", the FIFOs in which it is rung
    locks/sessions/<lease hex>    one locked file for every lease of a live process
    bells/                        the doorbells of watches (see `doorbell`)

Guarantees what `base.Store` does. In addition the lease of a process that is dead ends at the
next `expire_leases`, whatever its TTL.

A store that was open during a fork belongs to the parent: in the child everything but `close`
raises Closed with the parent's pid, and `close` does nothing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence

import apsw

from ringhold.bridge import check_loop
from ringhold.env import Env
from ringhold.errors import InvalidInput, OutcomeUnknown, SessionExpired, StoreUnavailable
from ringhold.store import lock_files
from ringhold.store.base import EMBEDDED_LIMITS, Changes, Compare, Put, Store
from ringhold.store.lock_files import CommitLock, LockFile
from ringhold.store.requests import (
    LOG_REVISIONS,
    check_bytes,
    check_lease,
    check_revision,
    checked_commit,
    ttl_in_ns,
)
from ringhold.store.sqlite import schema
from ringhold.store.sqlite.apply import GrantLease, RenewLease, Request, RevokeLeases
from ringhold.store.sqlite.direct import DirectFace
from ringhold.store.sqlite.lease_times import LeaseTimes, commit_lock_path
from ringhold.store.sqlite.opening import Opening
from ringhold.store.sqlite.readers import Readers, SqliteSnapshot
from ringhold.store.sqlite.watching import Watches
from ringhold.store.sqlite.writer import COMMIT_TIMEOUT_S, Writer, lock_not_had

CREATE_WAIT_S = 10.0
COMMIT_TIMEOUT_S_MAX = 86_400.0
CREATE_POLL_S = 0.02


async def open_sqlite_store(
    directory: str,
    env: Env,
    *,
    create: bool,
    log_revisions: int = LOG_REVISIONS,
    synced: bool = True,
    commit_timeout: float = COMMIT_TIMEOUT_S,
) -> Store:
    """The store in `directory`.

    synced: whether its commits are durable at a power cut; without, they outlive processes only,
    and what a power cut takes away are the newest. Openings of one store may differ.
    commit_timeout: seconds after which a commit that found no turn at the commit lock raises
    StoreUnavailable, naming the process that holds the lock.

    Raises FileExistsError with `create` if there is one, FileNotFoundError without if there is
    none or its creation was never finished, Corrupt for a file that is damaged or not ours,
    InvalidInput for one of another format version, another time namespace or on a network file
    system, OSError naming the path when the directory cannot be used, StoreUnavailable naming
    the process that keeps a store from being created for CREATE_WAIT_S seconds.
    """
    if not 0 < commit_timeout <= COMMIT_TIMEOUT_S_MAX:
        raise InvalidInput(
            f"commit_timeout must be above 0 and at most {COMMIT_TIMEOUT_S_MAX:g} seconds: "
            f"{commit_timeout!r}"
        )
    absolute = await env.blocking(os.path.abspath, directory)
    if create:
        await _create(absolute, env)
    else:
        await env.blocking(_check, absolute)
    return SqliteStore(
        absolute, env, log_revisions=log_revisions, synced=synced, commit_timeout_s=commit_timeout
    )


def _database(directory: str) -> str:
    return os.path.join(directory, "store", "store.db")


def _locks(directory: str) -> str:
    return os.path.join(directory, "locks")


async def _create(directory: str, env: Env) -> None:
    lock = await env.blocking(_prepare, directory, undo=CommitLock.close)
    try:
        limit_ns = env.clock.monotonic_ns() + int(CREATE_WAIT_S * 1e9)
        while not lock.try_acquire():
            if env.clock.monotonic_ns() >= limit_ns:
                raise lock_not_had(_database(directory), lock, CREATE_WAIT_S)
            await env.sleep(CREATE_POLL_S)
        lock.sign()
        await env.blocking(_create_database, directory)
    finally:
        lock.close()


def _prepare(directory: str) -> CommitLock:
    database = _database(directory)
    lock_files.make_directory(os.path.dirname(database))
    lock_files.make_directory(os.path.join(_locks(directory), "sessions"))
    lock_files.refuse_shared_file_system(os.path.dirname(database))
    if lock_files.file_exists(database):
        _refuse_finished(database)
    return CommitLock(_locks(directory))


def _create_database(directory: str) -> None:
    database = _database(directory)
    try:
        connection = schema.connect(database, create=True)
        try:
            schema.create_tables(connection, database)
        finally:
            connection.close()
    except apsw.Error as error:
        raise schema.translated(error, database) from error
    lock_files.fsync_directory(os.path.dirname(database))


def _refuse_finished(database: str) -> None:
    """FileExistsError for a finished store, without waiting for whoever is using it."""
    try:
        _check_database(database)
    except FileNotFoundError:
        return
    raise FileExistsError(17, "a store exists already", database)


def _check(directory: str) -> None:
    database = _database(directory)
    if not lock_files.file_exists(database):
        raise FileNotFoundError(2, "there is no store", database)
    lock_files.refuse_shared_file_system(os.path.dirname(database))
    # Where locks cannot be opened for writing the OSError names them; SQLite would not.
    CommitLock(_locks(directory)).close()
    _check_database(database)


def _check_database(database: str) -> None:
    try:
        connection = schema.connect(database, read_only=True)
        try:
            schema.check_format(connection, database)
            schema.check_time_namespace(connection, database)
        finally:
            connection.close()
    except apsw.Error as error:
        raise schema.translated(error, database) from error


class SqliteStore:
    """One opening of the store in `directory`; see `open_sqlite_store`."""

    limits = EMBEDDED_LIMITS

    def __init__(
        self,
        directory: str,
        env: Env,
        *,
        log_revisions: int,
        synced: bool,
        commit_timeout_s: float,
    ):
        self._loop = asyncio.get_running_loop()
        self._sessions_directory = os.path.join(_locks(directory), "sessions")
        boot_id = lock_files.boot_id()
        self._opening = Opening(_database(directory))
        # Locked until the lease ends, even beyond `close`: a lease is left to expire.
        self._sessions: dict[bytes, LockFile] = {}
        self._readers = Readers(self._opening, env)
        self._watches = Watches(self._readers, os.path.join(directory, "bells"))
        lock_path = commit_lock_path(_locks(directory))
        self._lease_times = LeaseTimes(self._opening, lock_path, env.clock, boot_id)
        self._writer = Writer(
            self._opening.path,
            _locks(directory),
            env.clock,
            boot_id,
            log_revisions=log_revisions,
            synced=synced,
            commit_timeout_s=commit_timeout_s,
            on_ended=functools.partial(_remove_sessions, self._sessions_directory, self._sessions),
            on_committed=self._watches.committed,
        )
        self.direct = DirectFace(self._opening, env, self._writer)
        self._abandon = weakref.finalize(self, _abandon, self._writer, self._opening)

    def _check(self) -> None:
        self._opening.check()
        check_loop(self._loop)

    async def snapshot(self) -> SqliteSnapshot:
        self._check()
        return self._readers.snapshot()

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        self._check()
        return await self._writer.submit(checked_commit(compares, puts, deletes, nonce))

    def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        self._check()
        check_bytes(prefix, "a prefix")
        check_revision(from_revision)
        return self._watches.follow(prefix, max(1, from_revision))

    async def grant_lease(self, lease: bytes, ttl_s: float) -> None:
        self._check()
        check_lease(lease)
        request = GrantLease(lease, ttl_in_ns(ttl_s), self._opening.pid)
        try:
            file = lock_files.create_session_file(self._session_path(lease))
        except FileExistsError:
            raise InvalidInput(f"lease {lease.hex()} exists already") from None
        self._sessions[lease] = file
        try:
            await self._writer.submit(request)
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is None:
                self._unlock_session(lease)
            else:
                _remove_sessions(self._sessions_directory, self._sessions, [lease])
            raise
        except OutcomeUnknown as error:
            self._unlock_session(lease)
            raise StoreUnavailable(f"lease {lease.hex()} could not be granted: {error}") from error
        except BaseException:
            _remove_sessions(self._sessions_directory, self._sessions, [lease])
            raise

    def _unlock_session(self, lease: bytes) -> None:
        """For a lease that nobody can use, if it exists: its unlocked file tells so to all."""
        file = self._sessions.pop(lease, None)
        if file is not None:
            file.close()

    def _session_path(self, lease: bytes) -> str:
        return os.path.join(self._sessions_directory, lease.hex())

    async def renew_lease(self, lease: bytes) -> None:
        self._check()
        check_lease(lease)
        try:
            await self._submit_repeatable(RenewLease(lease))
        except SessionExpired:
            self._unlock_session(lease)
            raise

    async def revoke_lease(self, lease: bytes) -> None:
        self._check()
        check_lease(lease)
        await self._submit_repeatable(RevokeLeases((lease,)))

    async def _submit_repeatable(self, request: Request) -> None:
        try:
            await self._writer.submit(request)
        except OutcomeUnknown as error:
            raise StoreUnavailable(f"{error} (the call may be repeated)") from error

    @property
    def leases_end_unasked(self) -> bool:
        return False

    async def expire_leases(self) -> None:
        self._check()
        is_due, leases = self._lease_times.look()
        dead = [
            lease
            for lease in leases
            if lease not in self._sessions and lock_files.is_abandoned(self._session_path(lease))
        ]
        if is_due or dead:
            await self._submit_repeatable(RevokeLeases(tuple(dead)))

    def lease_until(self, lease: bytes) -> int | None:
        check_lease(lease)
        return self._lease_times.until(lease)

    async def close(self) -> None:
        if self._opening.closed or self._opening.is_inherited():
            return
        self._opening.closed = True
        self._watches.close()
        await self._writer.close()
        self._readers.close()
        self._lease_times.close()
        self.direct.close()
        self._abandon.detach()


def _remove_sessions(
    directory: str, sessions: dict[bytes, LockFile], leases: Sequence[bytes]
) -> None:
    """Called for leases that this process deleted from the store, or that never were in it."""
    for lease in leases:
        lock_files.remove_session_file(os.path.join(directory, lease.hex()))
        file = sessions.pop(lease, None)
        if file is not None:
            file.close()


def _abandon(writer: Writer, opening: Opening) -> None:
    """A store that nobody closed and nobody can reach any more: lets its thread end."""
    if not opening.is_inherited():
        writer.abandon()
