"""A balance in PostgreSQL that only the newest holder of a lock can change.

    python examples/locks_postgresql.py CLUSTER DSN

It reads the balance, waits for Enter and writes one more. Stop it there with Ctrl-Z for longer
than the lease (2 s), let a second one pass, and go on with ``fg``: its late write is refused.
With --unfenced it is not, and the second one's is overwritten.
"""

from __future__ import annotations

import sys

import psycopg

import ringhold

TABLE = """
CREATE TABLE IF NOT EXISTS account
    (id text PRIMARY KEY, balance bigint NOT NULL, fence bigint NOT NULL DEFAULT 0)
"""
FENCED = """
UPDATE account SET balance = %(balance)s, fence = %(token)s
WHERE id = %(id)s AND fence <= %(token)s
"""
UNFENCED = "UPDATE account SET balance = %(balance)s WHERE id = %(id)s"

Connection = psycopg.Connection[tuple[int]]


def balance(database: Connection, account: str) -> int:
    row = database.execute("SELECT balance FROM account WHERE id = %s", [account]).fetchone()
    assert row is not None
    return row[0]


def write(database: Connection, account: str, new: int, token: int, statement: str) -> bool:
    """Whether the row was written; not if somebody with a newer token did before."""
    values = {"id": account, "balance": new, "token": token}
    return database.execute(statement, values).rowcount == 1


def main(directory: str, dsn: str, statement: str = FENCED) -> None:
    with (
        psycopg.connect(dsn, autocommit=True) as database,
        ringhold.open(directory, session_ttl=2.0) as cluster,
    ):
        database.execute(TABLE)
        database.execute("INSERT INTO account VALUES ('ada', 0) ON CONFLICT DO NOTHING")
        try:
            with cluster.lock("account/ada", timeout=30) as grant:
                old = balance(database, "ada")
                print(f"token {grant.token} read {old}; Enter writes {old + 1}", flush=True)
                sys.stdin.readline()
                written = write(database, "ada", old + 1, grant.token, statement)
                print("written" if written else "refused: the token is stale", flush=True)
        except ringhold.LockLost as error:
            print(error)


if __name__ == "__main__":
    directory, dsn, *options = sys.argv[1:]
    main(directory, dsn, UNFENCED if options == ["--unfenced"] else FENCED)
