"""Goal: whoever is connected to a leader of etcd whose disk stands still, and which was replaced
meanwhile, is not told that his lease was renewed: others may have what he held.

Method: three members, of which the leader has its data on a file system of its own, which is
frozen. That the leader goes on renewing by itself (etcd issue 15247) is shown in the same run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from etcd_client import client
from etcd_servers import Etcd, Member, etcd
from etcd_stores import LEASE, entry, failure, fresh_name, run, store_at, until, until_works

from ringhold.env import RealEnv
from ringhold.errors import StoreUnavailable
from ringhold.store.base import Put
from ringhold.store.etcd import wire
from ringhold.store.etcd.names import Names

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TTL_S = 5.0
WRITTEN_S = 0.5
"""etcd writes its key space every tenth of a second if it has changed; over that it would stand
still at once, and renew nothing."""

IMAGE_BYTES = 256 << 20
"""etcd reserves 64 MiB for each part of its log, and the next one."""


@contextmanager
def disk(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    with open(image, "wb") as file:
        os.truncate(file.fileno(), IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "--freeze", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", place], check=True)


def move_to(place: Path, server: Etcd, member: Member) -> None:
    """The data of a member to another disk; then it becomes the leader."""
    member.terminate()
    data = member.log_path.with_name(member.name)
    shutil.move(data, place / member.name)
    data.symlink_to(place / member.name)
    member.start()
    server.wait_ready()
    while server.leader() is not member:
        server.move_leader()


def test_a_leader_whose_disk_stands_still_renews_no_lease(tmp_path: Path) -> None:
    async def main(server: Etcd, place: Path) -> None:
        stalled, *others = server.members
        url = server.url(fresh_name(), endpoints=[stalled.endpoint])
        clock = RealEnv().clock
        async with (
            store_at(url) as holder,
            store_at(url.replace(stalled.endpoint, others[0].endpoint), create=False) as successor,
        ):
            await holder.grant_lease(LEASE, TTL_S)
            await holder.commit(puts=[Put(b"lock", b"held", LEASE)])
            await holder.renew_lease(LEASE)
            id = server.status(stalled)["header"]["member_id"]
            await asyncio.sleep(WRITTEN_S)
            with frozen(place):
                # What it has to write is what it stands still over.
                write = asyncio.create_task(
                    until_works(lambda: successor.commit(puts=[Put(b"k", b"v")]))
                )
                while not write.done():
                    with suppress(StoreUnavailable):
                        await holder.renew_lease(LEASE)
                    await asyncio.sleep(0.1)
                await write
                assert server.status(others[0])["leader"] != id
                with client(stalled.endpoint) as direct:
                    request = wire.LeaseRequest(names(url).lease(LEASE))
                    renewed = direct.call(
                        "Lease/LeaseKeepAlive", request, wire.LeaseKeepAliveResponse
                    )
                assert renewed.ttl_s > 0, "the stalled leader knows that it was replaced"
                assert isinstance(await failure(holder.renew_lease(LEASE)), StoreUnavailable)
                while await entry(successor, b"lock") is not None:
                    assert isinstance(await failure(holder.renew_lease(LEASE)), StoreUnavailable)
                until_ns = holder.lease_until(LEASE)
                assert until_ns is not None
                assert until_ns < clock.boottime_ns()
            await until(lambda: server.status(stalled)["leader"] != id, "the news of the leader")

    def names(url: str) -> Names:
        return Names(url.rpartition("/")[2])

    with disk(tmp_path) as place, etcd("debian", members=3) as server:
        move_to(place, server, server.members[0])
        run(lambda: main(server, place))
