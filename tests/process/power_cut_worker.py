"""Commits for ever and says what was acknowledged: `power_cut_worker.py DIRECTORY NAME LEVEL`.

After every commit one line: NAME NUMBER REVISION, where NUMBER is the value that the key NAME has
from that commit on. LEVEL is a durability of `ringhold.open`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from ringhold.env import real_env
from ringhold.store.base import Put
from ringhold.store.sqlite import open_sqlite_store

PAUSE_S = {"full": 0.0, "process": 0.001}


async def main(directory: str, name: str, level: str) -> None:
    store = await open_sqlite_store(directory, real_env(), create=False, synced=level == "full")
    for number in range(1, sys.maxsize):
        revision = await store.commit(puts=[Put(name.encode(), b"%d" % number)])
        os.write(1, f"{name} {number} {revision}\n".encode())
        await asyncio.sleep(PAUSE_S[level])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
