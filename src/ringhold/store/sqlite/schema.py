"""The database file: its tables, its versions, and how it is opened.

    kv     the keys; the value stands last, so that the rest is read without it
    log    what every revision changed, in the order of `place`; v is NULL for a deletion
    lease  deadlines in CLOCK_BOOTTIME of the boot named beside them
    nonce  commits that must not be applied twice
    meta   revision: the newest; compacted: the newest no longer in the log;
           log_bytes: size of the values in the log;
           commit_ns: when the newest commit began, in CLOCK_BOOTTIME of its boot;
           lineage: of which boot and file that was, and which revisions were skipped (`lineage`);
           time_namespace: the one whose boot time the deadlines are in

`sum` and `value_sum` are the checksums that `rows` tells.

Tables with values have rowids, and their keys stand in an index beside them: in a table WITHOUT
ROWID the whole row is the key of its tree, and a search that passes a row of a mebibyte copies
that mebibyte to compare it.

The first commit adds `commit_ns` and `lineage`, also to a store made before there were any.

Write-ahead log with synchronous=FULL: without FULL a commit that was acknowledged is lost at a
power cut, and nothing else is; an opening with the durability "process" does without (NORMAL).
Checkpoints are never automatic, not even at close: they happen under the commit lock
only (see `writer`), as everything that writes.
"""

from __future__ import annotations

import ctypes
import os
import weakref

import apsw

from ringhold.errors import Corrupt, InvalidInput, RingholdError, StoreUnavailable
from ringhold.store import lock_files
from ringhold.store.sqlite import library
from ringhold.store.sqlite.rows import META_NAMES, meta_sum

APPLICATION_ID = 0x52484C44  # "RHLD"
FORMAT_VERSION = 1
FIRST_REVISION = 1
BUSY_TIMEOUT_MS = 5_000
CHUNK_BYTES = 1 << 16

_TABLES = """
CREATE TABLE kv (
    k BLOB PRIMARY KEY NOT NULL,
    created INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    lease BLOB,
    value_sum INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    v BLOB NOT NULL
);
CREATE INDEX kv_by_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE log (
    revision INTEGER NOT NULL,
    place INTEGER NOT NULL,
    k BLOB NOT NULL,
    sum INTEGER NOT NULL,
    v BLOB,
    PRIMARY KEY (revision, place)
);
CREATE TABLE lease (
    id BLOB PRIMARY KEY NOT NULL,
    ttl_ns INTEGER NOT NULL,
    deadline_ns INTEGER NOT NULL,
    boot_id BLOB NOT NULL,
    pid INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE nonce (
    nonce BLOB PRIMARY KEY NOT NULL,
    revision INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (
    name TEXT PRIMARY KEY NOT NULL,
    value NOT NULL,
    sum INTEGER
) WITHOUT ROWID;
"""

_connections: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()


def _leak_inherited() -> None:
    """In a forked child: no inherited connection may ever be closed, not even at exit.

    Closing would work on locks and shared memory that the parent is using. The extra reference
    keeps each connection from being collected.
    """
    for connection in list(_connections):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(after_in_child=_leak_inherited)


def translated(error: apsw.Error | UnicodeDecodeError, path: str) -> RingholdError:
    """What an SQLite error on reading or opening `path` means to the caller.

    UnicodeDecodeError is what a column raises that has lost its type and became a text.
    """
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError, UnicodeDecodeError)):
        return Corrupt(f"the store {path} is damaged: {error}", what=path)
    return StoreUnavailable(f"the store {path} cannot be used: {error}")


def connect(path: str, *, create: bool = False, read_only: bool = False) -> apsw.Connection:
    """A connection whose close and whose commits never start a checkpoint."""
    library.use()
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = apsw.Connection(path, flags=flags)
    _connections.add(connection)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.wal_autocheckpoint(0)
    # The file grows, and is cut off, in steps of this size; without, SQLite takes no room ahead.
    _file_control(connection, apsw.SQLITE_FCNTL_CHUNK_SIZE, ctypes.c_int(CHUNK_BYTES))
    set_synced(connection, True)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cell_size_check = ON")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


def set_synced(connection: apsw.Connection, synced: bool) -> None:
    """Whether the commits that follow wait for the disk; not within a transaction."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")


def grow_file(connection: apsw.Connection, size: int) -> None:
    """Takes room on the disk for `size` bytes of the database, so that a checkpoint of them cannot
    fail for want of it. FullError when there is none."""
    try:
        _file_control(connection, apsw.SQLITE_FCNTL_SIZE_HINT, ctypes.c_int64(size))
    except apsw.IOError as error:
        raise apsw.FullError(f"the disk is full or refuses to be written: {error}") from error


def _file_control(
    connection: apsw.Connection, operation: int, value: ctypes.c_int | ctypes.c_int64
) -> None:
    connection.file_control("main", operation, ctypes.addressof(value))


def create_tables(connection: apsw.Connection, path: str) -> None:
    """Makes an empty database a store, in one transaction. FileExistsError if it is one.

    To be called with the commit lock held. A crash leaves an empty database, which the next
    call finishes.
    """
    if not _is_empty(connection):
        check_format(connection, path)
        raise FileExistsError(17, "a store exists already", path)
    if connection.execute("PRAGMA journal_mode = WAL").get != "wal":
        raise StoreUnavailable(f"the store {path} cannot use a write-ahead log here")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_TABLES)
    first = {"revision": FIRST_REVISION, "compacted": FIRST_REVISION - 1, "log_bytes": 0}
    connection.executemany(
        "INSERT INTO meta (name, value, sum) VALUES (?, ?, ?)",
        [(name, value, meta_sum(name, value)) for name, value in first.items()],
    )
    connection.execute(
        "INSERT INTO meta (name, value) VALUES ('time_namespace', ?)",
        (lock_files.time_namespace(),),
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    connection.execute("COMMIT")
    connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _is_empty(connection: apsw.Connection) -> bool:
    return bool(
        connection.execute("PRAGMA application_id").get == 0
        and connection.execute("PRAGMA user_version").get == 0
        and connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    )


def check_format(connection: apsw.Connection, path: str) -> None:
    """Raises what is wrong with the file: not finished, not ours, newer, or damaged."""
    if _is_empty(connection):
        raise FileNotFoundError(2, "the store was never completely created", path)
    application = connection.execute("PRAGMA application_id").get
    if application != APPLICATION_ID:
        raise Corrupt(
            f"{path} is an SQLite database of another application (id {application:#x})", what=path
        )
    version = connection.execute("PRAGMA user_version").get
    if version != FORMAT_VERSION:
        raise InvalidInput(
            f"the store {path} has format version {version}; this Ringhold reads version "
            f"{FORMAT_VERSION}"
        )
    if connection.execute("PRAGMA journal_mode").get != "wal":
        raise Corrupt(f"the store {path} has lost its write-ahead log mode", what=path)
    names = {name for (name,) in connection.execute("SELECT name FROM meta")}
    missing = {*META_NAMES, "time_namespace"} - names
    if missing:
        raise Corrupt(f"the store {path} lacks {', '.join(sorted(missing))}", what=path)


def check_time_namespace(connection: apsw.Connection, path: str) -> None:
    """InvalidInput when boot time here is not the boot time of the leases in the store."""
    creator = connection.execute("SELECT value FROM meta WHERE name = 'time_namespace'").get
    own = lock_files.time_namespace()
    if creator != own:
        raise InvalidInput(
            f"the store {path} was created in the time namespace {creator}, this process is in "
            f"{own}: their clocks differ, so leases could end early"
        )
