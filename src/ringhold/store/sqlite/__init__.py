"""The embedded engine: one SQLite file, in process, for several processes of one host."""

from ringhold.store.sqlite.store import SqliteStore, open_sqlite_store

__all__ = ["SqliteStore", "open_sqlite_store"]
