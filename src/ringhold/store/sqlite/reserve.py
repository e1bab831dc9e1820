"""Room that is kept for a full disk, so that what frees something can still be done there.

Three things can run out: pages of the database, room on the disk for them, room on the disk for
the write-ahead log. Whoever puts leaves free pages within the database and takes the room for all
of its pages at once, while it is there to be had, or is refused; a checkpoint can then always come
to its end, and the log start again in the room it has. Deletions, renewals and revocations use
what is left: they need few pages, and give some back.

Not guaranteed: that a deletion of very many keys at once finds room for all their events.
"""

from __future__ import annotations

import apsw

from ringhold.store.sqlite.schema import BUSY_TIMEOUT_MS, grow_file

RESERVE_PAGES_MIN = 16
RESERVE_BYTES = 1 << 17
"""Free pages that are kept, and what is added when there are fewer."""

RESTART_WAIT_MS = 20


def pages_of(connection: apsw.Connection) -> int:
    return int(connection.execute("PRAGMA page_count").get)


def keep_reserve(connection: apsw.Connection, pages_before: int) -> None:
    """At the end of a transaction that puts; `pages_before` is `pages_of` at its beginning.

    FullError when the disk has no room for what the transaction added.
    """
    if connection.execute("PRAGMA freelist_count").get < RESERVE_PAGES_MIN:
        connection.execute("INSERT INTO log VALUES (0, 0, x'', 0, zeroblob(?))", (RESERVE_BYTES,))
        connection.execute("DELETE FROM log WHERE revision = 0")
    pages = pages_of(connection)
    if pages > pages_before:
        grow_file(connection, pages * connection.execute("PRAGMA page_size").get)


def restart_log(connection: apsw.Connection) -> None:
    """Copies the write-ahead log into the database, so that it starts again in its own room.

    Outside a transaction, with the commit lock held. Waits for readers, but briefly.
    """
    connection.set_busy_timeout(RESTART_WAIT_MS)
    try:
        connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_RESTART)
    except (apsw.BusyError, apsw.FullError):
        # What is tried next tells whether it was enough.
        return
    finally:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
