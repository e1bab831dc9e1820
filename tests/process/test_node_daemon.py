"""Goal: what a storage daemon acknowledged is there after anything that happens to its process,
and a daemon that does not answer, or a client that sends garbage, harms nobody else.

Method: real daemons over real directories, killed with SIGKILL in the middle of puts, ended with
SIGTERM, stopped with SIGSTOP, fed with garbage, started twice and on directories of others.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ringhold.core import checksum, digest
from ringhold.env import real_env
from ringhold.errors import InvalidInput, NodeDown
from ringhold.nodes.address import loopback_address
from ringhold.nodes.base import ChunkId, ChunkState, Identity
from ringhold.nodes.channel import Channel
from ringhold.nodes.chunk_file import verify_part
from ringhold.nodes.client import RemoteNode
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.mount import FAILED, chunk_path
from ringhold.nodes.pool import open_node
from ringhold.nodes.protocol import (
    BODY_BYTES_MAX,
    HEAD_BYTES,
    ChunksRequest,
    Head,
    Hello,
    Operation,
    PutRequest,
    Status,
    encode_frame,
    encode_meta,
    pack_chunks,
    parse_head,
)
from ringhold.nodes.records import NodeRecord
from ringhold.nodes.server import HANDSHAKE_S

DAEMON = Path(__file__).parent / "node_daemon.py"
IDENTITY = Identity(b"C" * 16, "n1", 1)
DATA = os.urandom(1 << 20)
DIGEST = digest(DATA)


class Daemon:
    """A daemon process; `address` stays the same when it is started again."""

    def __init__(self, path: Path, loop: str = "asyncio"):
        self.path = path
        self.loop = loop
        self.port = "0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        self.process = subprocess.Popen(
            [sys.executable, str(DAEMON), str(self.path), self.port, self.loop],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = json.loads(self.process.stdout.readline())
        assert line["ready"] is True
        assert line["pid"] == self.process.pid
        self.port = line["address"].rpartition(":")[2]
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        code = self.process.wait(30)
        self.process.stdout.close()
        self.process.stderr.close()
        self.process = None
        return code

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.wait()

    def node(self, expected: Identity | None = IDENTITY, timeout_s: float = 10.0) -> RemoteNode:
        return RemoteNode(self.address, "n1", real_env(), expected=expected, timeout_s=timeout_s)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.port)), timeout=30)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    path = tmp_path / "node"
    asyncio.run(DirectoryNode(str(path), "n1", real_env()).adopt(IDENTITY))
    daemon = Daemon(path).start()
    yield daemon
    daemon.kill()


def chunk_id(number: int) -> ChunkId:
    return ChunkId((number // 64).to_bytes(16, "big"), number % 64)


async def check_serves(daemon: Daemon) -> None:
    node = daemon.node()
    try:
        await node.put(chunk_id(5000), DATA, DIGEST)
        part = await node.get(chunk_id(5000))
        assert verify_part(part, chunk_id(5000), DIGEST, len(DATA)) == DATA
    finally:
        await node.close()


def test_what_was_acknowledged_survives_sigkill(daemon: Daemon) -> None:
    async def main() -> None:
        acknowledged: list[ChunkId] = []
        node = daemon.node()
        numbers = iter(range(100_000))
        enough = asyncio.Event()

        async def writer() -> None:
            while True:
                chunk = chunk_id(next(numbers))
                try:
                    await node.put(chunk, DATA[: 200_000 + chunk.number], digests[chunk.number])
                except NodeDown:
                    return
                acknowledged.append(chunk)
                if len(acknowledged) % 40 == 0:
                    enough.set()

        digests = [digest(DATA[: 200_000 + number]) for number in range(64)]
        for _ in range(3):
            enough.clear()
            async with asyncio.TaskGroup() as writers:
                for _ in range(8):
                    writers.create_task(writer())
                await enough.wait()
                daemon.kill()
            daemon.start()
            await node.close()
            node = daemon.node()
        assert len(acknowledged) >= 120
        assert set(await node.verify(acknowledged)) == {ChunkState.GOOD}
        everything = await node.list_chunks()
        assert set(acknowledged) <= set(everything)
        # What was in the middle of it is either not there or whole.
        assert set(await node.verify(everything)) == {ChunkState.GOOD}
        assert not os.listdir(daemon.path / "tmp")
        await node.close()

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_under_way_are_answered_before_the_end(daemon: Daemon, number: int) -> None:
    async def main() -> None:
        node = daemon.node()
        await node.has([chunk_id(0)])
        data = os.urandom(8 << 20)
        puts = [asyncio.ensure_future(node.put(chunk_id(i), data, digest(data))) for i in range(6)]
        await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
        daemon.signal(number)
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert daemon.wait() == 0
        done = [chunk_id(i) for i, result in enumerate(results) if result is None]
        assert done
        assert all(result is None or isinstance(result, NodeDown) for result in results)
        with pytest.raises(NodeDown):
            await node.put(chunk_id(9), DATA, DIGEST)
        await node.close()
        local = DirectoryNode(str(daemon.path), "n1", real_env(), expected=IDENTITY)
        assert set(await local.verify(done)) == {ChunkState.GOOD}
        await local.close()

    asyncio.run(main())


def _read_heads(client: socket.socket, received: bytearray) -> list[Head]:
    """The heads of the frames that came since, until at least one is whole; [] at the end."""
    heads: list[Head] = []
    while not heads:
        piece = client.recv(65536)
        if not piece:
            return []
        received += piece
        while len(received) >= HEAD_BYTES:
            head = parse_head(received[:HEAD_BYTES])
            size = HEAD_BYTES + head.meta_bytes + head.body_bytes
            if len(received) < size:
                break
            heads.append(head)
            del received[:size]
    return heads


def test_a_request_that_was_taken_is_answered_during_the_drain(daemon: Daemon) -> None:
    """A long VERIFY is followed by IDENTITY on one connection; frames are taken in order, so the
    answer to the second proves that the first was taken, and SIGTERM finds it under way."""

    async def fill() -> None:
        node = daemon.node()
        data = os.urandom(16 << 20)
        await node.put(chunk_id(0), data, digest(data))
        await node.close()

    asyncio.run(fill())
    verify = encode_meta(ChunksRequest(pack_chunks([chunk_id(0)] * 30)))
    received = bytearray()
    with daemon.connect() as client:
        client.sendall(GOOD_HELLO)
        answered: list[int] = []
        for long in range(2, 12, 2):
            client.sendall(encode_frame(Operation.VERIFY, Status.REQUEST, long, verify))
            client.sendall(encode_frame(Operation.IDENTITY, Status.REQUEST, long + 1, b""))
            while long + 1 not in answered:
                answered += [head.request for head in _read_heads(client, received)]
            if long not in answered:
                break
            # This process stood still for longer than the VERIFY took.
        assert long not in answered, "VERIFY was too fast for this test"
        daemon.signal(signal.SIGTERM)
        heads = _read_heads(client, received)
        assert [(head.request, head.status) for head in heads] == [(long, Status.ANSWER)]
        assert _read_heads(client, received) == []
    assert daemon.wait() == 0


def test_a_stopped_daemon_is_down_in_bounded_time(daemon: Daemon) -> None:
    async def main() -> None:
        node = daemon.node(timeout_s=1.0)
        await node.put(chunk_id(0), DATA, DIGEST)
        daemon.signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(NodeDown, match="silent"):
            await node.has([chunk_id(0)])
        assert time.monotonic() - started < 3
        started = time.monotonic()
        # More than the kernel's buffers take: the sender itself is stuck.
        big = os.urandom(16 << 20)
        with pytest.raises(NodeDown):
            await node.put(chunk_id(1), big, digest(big))
        fresh = daemon.node(timeout_s=1.0)
        with pytest.raises(NodeDown):
            await fresh.has([chunk_id(0)])
        assert time.monotonic() - started < 15
        took_s = []
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(NodeDown):
                await fresh.has([chunk_id(0)])
            took_s.append(time.monotonic() - started)
        assert min(took_s) < 0.15
        daemon.signal(signal.SIGCONT)
        await fresh.close()
        fresh = daemon.node()
        assert await fresh.has([chunk_id(0)]) == [True]
        await fresh.close()
        await node.close()

    asyncio.run(main())


def test_a_daemon_stopped_in_the_middle_of_a_large_put(daemon: Daemon) -> None:
    async def main() -> None:
        node = daemon.node(timeout_s=1.0)
        await node.has([chunk_id(0)])
        daemon.signal(signal.SIGSTOP)
        data = os.urandom(16 << 20)
        started = time.monotonic()
        puts = [asyncio.ensure_future(node.put(chunk_id(i), data, digest(data))) for i in range(3)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(result, NodeDown) for result in results), results
        assert time.monotonic() - started < 15
        daemon.signal(signal.SIGCONT)
        await node.close()
        await check_serves(daemon)

    asyncio.run(main())


def test_a_client_finds_a_daemon_that_was_started_again(daemon: Daemon) -> None:
    async def main() -> None:
        node = daemon.node()
        await node.put(chunk_id(0), DATA, DIGEST)
        daemon.kill()
        with pytest.raises(NodeDown):
            await node.get(chunk_id(0))
        assert node.is_down
        daemon.start()
        deadline = time.monotonic() + 10
        while True:
            try:
                part = await node.get(chunk_id(0))
                break
            except NodeDown:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert verify_part(part, chunk_id(0), DIGEST, len(DATA)) == DATA
        assert not node.is_down
        await node.close()

    asyncio.run(main())


GOOD_HELLO = encode_frame(Operation.HELLO, Status.REQUEST, 1, encode_meta(Hello(None)))


def _too_large() -> bytes:
    head = struct.pack(
        "<4sBBHQIIQQ", b"RHn\x00", 1, 4, 0, 2, 0, 0, BODY_BYTES_MAX + 1, checksum(b"")
    )
    return head + checksum(head).to_bytes(8, "little")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10 + b"\r\n",
        os.urandom(1 << 16),
        b"\0" * 4096,
        encode_frame(Operation.LIST, Status.REQUEST, 1, encode_meta([None, 0])),
        GOOD_HELLO + os.urandom(4096),
        GOOD_HELLO + encode_frame(Operation.HAS, Status.ANSWER, 2, b""),
        GOOD_HELLO + encode_frame(Operation.HAS, Status.REQUEST, 0, b""),
        GOOD_HELLO + _too_large(),
        GOOD_HELLO[:-1] + b"\xff",
    ],
    ids=["http", "random", "zeros", "no-hello", "later", "answer", "id-0", "too-large", "meta"],
)
def test_garbage_ends_its_own_connection_only(daemon: Daemon, garbage: bytes) -> None:
    async def main() -> None:
        node = daemon.node()
        await node.put(chunk_id(0), DATA, DIGEST)
        answer = await asyncio.to_thread(talk, garbage)
        assert b"frame: " in answer or b"Connection reset" in answer
        assert await node.has([chunk_id(0)]) == [True]
        await node.close()

    def talk(data: bytes) -> bytes:
        received = b""
        with daemon.connect() as client:
            try:
                client.sendall(data)
                while piece := client.recv(65536):
                    received += piece
            except ConnectionResetError as error:
                received += str(error).encode()
        return received

    asyncio.run(main())


def test_requests_that_cannot_be_read_are_answered_and_no_more(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.sendall(GOOD_HELLO)
        operations = [operation for operation in Operation if operation is not Operation.HELLO]
        for number, operation in enumerate(operations, 2):
            client.sendall(encode_frame(operation, Status.REQUEST, number, b"\xc1nonsense"))
        received = bytearray()
        seen: dict[int, Status] = {}
        while len(seen) < 1 + len(operations):
            heads = _read_heads(client, received)
            assert heads
            seen |= {head.request: head.status for head in heads}
        assert seen.pop(1) is Status.ANSWER
        identity = 2 + operations.index(Operation.IDENTITY)
        assert seen.pop(identity) is Status.ANSWER
        assert set(seen.values()) == {Status.ERROR}
    asyncio.run(check_serves(daemon))


def test_a_connection_without_a_handshake_is_closed(daemon: Daemon) -> None:
    started = time.monotonic()
    with daemon.connect() as client:
        client.sendall(GOOD_HELLO[:20])
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            assert daemon.process is not None
        assert HANDSHAKE_S / 2 < time.monotonic() - started < 3 * HANDSHAKE_S


def test_a_client_that_takes_no_answers_is_dropped_and_memory_stays_bounded(
    daemon: Daemon,
) -> None:
    async def fill() -> None:
        node = daemon.node()
        data = os.urandom(8 << 20)
        await node.put(chunk_id(0), data, digest(data))
        await node.close()

    asyncio.run(fill())
    get = encode_meta([chunk_id(0).run, 0, 0, None])
    with daemon.connect() as client:
        client.sendall(GOOD_HELLO)
        for number in range(2, 200):
            client.sendall(encode_frame(Operation.GET, Status.REQUEST, number, get))
        asyncio.run(check_serves(daemon))
        assert daemon.process is not None
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 600_000
    asyncio.run(check_serves(daemon))


def test_clients_that_announce_much_and_send_nothing_are_dropped(daemon: Daemon) -> None:
    put = encode_meta(PutRequest(chunk_id(0).run, 0, DIGEST))
    clients = []
    try:
        for _ in range(20):
            clients.append(daemon.connect())
            announced = encode_frame(Operation.PUT, Status.REQUEST, 2, put, BODY_BYTES_MAX)
            clients[-1].sendall(GOOD_HELLO + announced + b"a little")
        # All memory is spoken for; as soon as they are dropped it is free again. Until then, and
        # on a busy machine, a handshake may take longer than a client waits for it.
        for _ in range(10):
            with suppress(NodeDown):
                asyncio.run(check_serves(daemon))
                break
        else:
            pytest.fail("serves nobody else")
    finally:
        for client in clients:
            client.close()


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, str(DAEMON), str(daemon.path), "0", "asyncio"],
        capture_output=True,
        timeout=30,
    )
    assert second.returncode != 0
    assert b"another daemon" in second.stderr
    assert not second.stdout
    asyncio.run(check_serves(daemon))


def test_a_directory_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = subprocess.run(
        [sys.executable, str(DAEMON), str(tmp_path), "0", "asyncio"],
        capture_output=True,
        timeout=30,
    )
    assert result.returncode != 0
    assert b"something else than a node" in result.stderr
    assert b"Group" not in result.stderr
    assert os.listdir(tmp_path) == ["thesis.txt"]


def _ended_at_once(*arguments: str) -> tuple[int, list[str]]:
    """How the command `ringhold node` ended: its exit code, and the lines it told people."""
    command = [sys.executable, "-m", "ringhold.cli", "node", *arguments]
    result = subprocess.run(command, capture_output=True, timeout=30, text=True)
    assert not result.stdout
    return result.returncode, result.stderr.splitlines()


def test_what_keeps_a_daemon_from_starting_is_told_in_one_line(
    daemon: Daemon, tmp_path: Path
) -> None:
    foreign = tmp_path / ("a long name " * 12)
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    fresh = str(tmp_path / "fresh")
    cases = [
        (("--data", str(foreign)), 2, "something else than a node"),
        (("--data", fresh, "--listen", "192.0.2.1:0"), 2, "not loopback"),
        (("--data", str(daemon.path)), 3, "another daemon"),
        (("--data", fresh, "--listen", daemon.address), 1, "in use"),
        (("--data", str(tmp_path / "no" / "parent")), 1, "No such file"),
    ]
    for arguments, expected, message in cases:
        code, lines = _ended_at_once(*arguments)
        assert (code, len(lines)) == (expected, 1), (arguments, code, lines)
        assert message in lines[0]
    assert os.listdir(foreign) == ["thesis.txt"]
    asyncio.run(check_serves(daemon))


def test_only_loopback_is_served() -> None:
    assert loopback_address("localhost", "listen address") == "127.0.0.1"
    assert loopback_address("127.0.0.5", "listen address") == "127.0.0.5"
    assert loopback_address("::1", "listen address") == "::1"
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org"):
        with pytest.raises(InvalidInput, match="listen address"):
            loopback_address(host, "listen address")


def test_an_empty_directory_waits_for_its_adoption(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "new").start()

    async def main() -> None:
        node = daemon.node()
        assert await node.identity() is None
        with pytest.raises(NodeDown):
            await node.put(chunk_id(0), DATA, DIGEST)
        stranger = daemon.node(expected=None)
        with pytest.raises(NodeDown, match="adopted"):
            await stranger.put(chunk_id(0), DATA, DIGEST)
        await stranger.adopt(IDENTITY)
        await stranger.close()
        await check_serves(daemon)
        await node.close()

    try:
        asyncio.run(main())
    finally:
        daemon.kill()


def test_a_wiped_directory_takes_nothing_until_its_new_incarnation(daemon: Daemon) -> None:
    async def main() -> None:
        node = daemon.node()
        await node.put(chunk_id(0), DATA, DIGEST)
        for entry in daemon.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        with pytest.raises(NodeDown):
            await node.put(chunk_id(1), DATA, DIGEST)
        with pytest.raises(NodeDown):
            await node.get(chunk_id(0))
        assert not list(daemon.path.rglob("*.0?"))
        later = Identity(IDENTITY.cluster, "n1", 2)
        replaced = daemon.node(expected=later)
        await replaced.adopt(later)
        await replaced.put(chunk_id(1), DATA, DIGEST)
        with pytest.raises(NodeDown, match="incarnation 2"):
            await node.put(chunk_id(1), DATA, DIGEST)
        await replaced.close()
        await node.close()

    asyncio.run(main())


def test_a_directory_that_failed_is_verified_when_the_daemon_starts(daemon: Daemon) -> None:
    async def main() -> None:
        node = daemon.node()
        await node.put(chunk_id(0), DATA, DIGEST)
        await node.put(chunk_id(64), DATA, DIGEST)
        (daemon.path / FAILED).write_text("an fsync failed\n")
        with pytest.raises(NodeDown, match="failed before"):
            await node.put(chunk_id(1), DATA, DIGEST)
        await node.close()
        daemon.kill()
        file = daemon.path / chunk_path(chunk_id(64))
        file.write_bytes(file.read_bytes()[:-1])
        daemon.start()
        node = daemon.node()
        deadline = time.monotonic() + 60
        while (daemon.path / FAILED).exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        await node.put(chunk_id(1), DATA, DIGEST)
        assert await node.verify([chunk_id(0), chunk_id(64)]) == [
            ChunkState.GOOD,
            ChunkState.MISSING,
        ]
        await node.close()

    asyncio.run(main())


def test_addresses_that_are_none() -> None:
    for address in ("", "localhost", ":1", "host:", "host:port", "host:0", "host:65536"):
        with pytest.raises(InvalidInput, match="host:port"):
            RemoteNode(address, "n1", real_env())


def test_addresses_of_other_hosts_are_not_connected_to() -> None:
    for address in ("192.0.2.1:80", "example.org:80", "0.0.0.0:80", "[2001:db8::1]:80"):
        with pytest.raises(InvalidInput, match="of node n1"):
            RemoteNode(address, "n1", real_env())
        with pytest.raises(InvalidInput, match="of node n1"):
            open_node(NodeRecord("n1", 1, address=address), IDENTITY.cluster, real_env())


def test_localhost_and_the_other_loopback_addresses_are(daemon: Daemon) -> None:
    async def main() -> None:
        node = RemoteNode(f"localhost:{daemon.port}", "n1", real_env(), expected=IDENTITY)
        assert await node.has([chunk_id(0)]) == [False]
        await node.close()

    asyncio.run(main())
    assert RemoteNode("[::1]:80", "n1", real_env()).address == "[::1]:80"


def test_a_stopped_daemon_is_noticed_by_a_handshake_and_then_left_alone(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        node = daemon.node()
        chunk = chunk_id(0)
        await node.put(chunk, DATA, DIGEST)
        daemon.signal(signal.SIGSTOP)
        started = time.monotonic()
        asked = [node.get(chunk), node.has([chunk]), node.put(chunk, DATA, DIGEST)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(result, NodeDown) for result in results), results
        assert time.monotonic() - started < 4
        # Who reads again and again pays for a few more attempts, short ones, not for each read.
        took_s: list[float] = []
        connect = node._connect

        async def counted(limit_s: float) -> Channel:
            began = time.monotonic()
            try:
                return await connect(limit_s)
            finally:
                took_s.append(time.monotonic() - began)

        monkeypatch.setattr(node, "_connect", counted)
        started, reads = time.monotonic(), 0
        while time.monotonic() - started < 4:
            with pytest.raises(NodeDown, match="silent"):
                await node.get(chunk)
            reads += 1
            await asyncio.sleep(0.01)
        assert 0 < len(took_s) <= 5
        assert min(took_s) < 0.9
        assert reads > 4 * len(took_s)
        daemon.signal(signal.SIGCONT)
        async with asyncio.timeout(15):
            while True:
                try:
                    await node.has([chunk])
                    break
                except NodeDown:
                    await asyncio.sleep(0.01)
        await node.close()

    asyncio.run(main())


def test_a_daemon_whose_disk_is_slow_is_not_down(tmp_path: Path) -> None:
    """The daemon's fdatasync takes 3 s; all that time nothing arrives on the connection."""
    path = tmp_path / "slow"
    asyncio.run(DirectoryNode(str(path), "n1", real_env()).adopt(IDENTITY))
    daemon = Daemon(path, "slow").start()

    async def main() -> None:
        node = daemon.node(timeout_s=2.0)
        await node.has([chunk_id(0)])
        started = time.monotonic()
        await node.put(chunk_id(0), DATA, DIGEST)
        assert time.monotonic() - started >= 3
        assert not node.is_down
        await node.close()

    try:
        asyncio.run(main())
    finally:
        daemon.kill()


FORKING = """
import asyncio, os, sys
from ringhold.env import real_env
from ringhold.errors import Closed
from ringhold.nodes.base import ChunkId
from ringhold.nodes.client import RemoteNode

chunk = ChunkId(bytes(16), 0)
parent = os.getpid()

async def child(node):
    try:
        await node.has([chunk])
    except Closed as error:
        assert error.pid == parent and str(parent) in str(error), error
    else:
        raise AssertionError("the child used the connection of its parent")
    await node.close()

async def open_and_fork():
    node = RemoteNode(sys.argv[1], "n1", real_env())
    await node.has([chunk])
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert await node.has([chunk]) == [False]
        await node.close()
    return pid, node

pid, node = asyncio.new_event_loop().run_until_complete(open_and_fork())
if not pid:
    code = 1
    try:
        asyncio.new_event_loop().run_until_complete(child(node))
        code = 0
    finally:
        os._exit(code)
"""


def test_a_forked_child_does_not_use_its_parents_connection(daemon: Daemon) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, daemon.address]
    result = subprocess.run(command, capture_output=True, timeout=30, text=True)
    assert result.returncode == 0, result.stderr


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"

        async def main() -> None:
            node = RemoteNode(address, "n1", real_env(), expected=IDENTITY)
            with pytest.raises(NodeDown, match=address) as caught:
                await node.get(chunk_id(0))
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            assert caught.value.node == "n1"
            await node.close()

        asyncio.run(main())
