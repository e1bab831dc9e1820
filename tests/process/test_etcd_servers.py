"""Goal: the faults that the tests of the etcd engine count on are really there.

Method: each fault is made on a real etcd, and looked at with plain grpcio (`etcd_client.py`), which
repeats and hides nothing.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import etcd_servers
import grpc
import pytest
from cutting_proxy import CuttingProxy
from etcd_certificates import Certificates
from etcd_client import Client, client
from etcd_double import EtcdDouble
from etcd_servers import ROOT, Etcd, Member, etcd

from ringhold.store.etcd import wire

DEBIAN = pytest.param("debian", marks=pytest.mark.system)
BUILDS = ["distro", DEBIAN]
SHORT_S = 0.5
SILENCE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
"""gRPC may give up a new connection that says nothing earlier than the call."""


@pytest.fixture(scope="module", params=BUILDS)
def server(request: pytest.FixtureRequest) -> Iterator[Etcd]:
    """For what leaves no trace."""
    with etcd(request.param) as server:
        yield server


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[pytest.param("distro", marks=pytest.mark.long), DEBIAN])
def build_of_three(request: pytest.FixtureRequest) -> str:
    """For faults of one member of three, which tests do to Debian's."""
    name: str = request.param
    return name


def until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Looks again and again, for what nobody announces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def connections(member: Member) -> int:
    """How many connections to the member the kernel has as established."""
    port = int(member.endpoint.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


# Servers


def test_it_is_the_version_that_it_says(server: Etcd) -> None:
    with client(*server.endpoints) as direct:
        status = direct.call("Maintenance/Status", wire.StatusRequest(), wire.StatusResponse)
    assert status.version.startswith("{}.{}.".format(*server.version))
    told = server.status(server.members[0])
    assert told["version"] == status.version
    assert int(told["leader"]) == status.leader % (1 << 64)


def test_nothing_is_left_of_it(build: str) -> None:
    with etcd(build, members=3) as server:
        members = server.members
        members[0].stop()
        members[1].kill()
        directory = Path(members[0].log_path).parent
        assert len(list(directory.iterdir())) >= 3
        pids = [member.pid for member in members]
    assert not directory.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_it_ends_with_the_process_that_started_it() -> None:
    script = """
import threading, time
from etcd_servers import etcd
with etcd() as server:
    (member,) = server.members
    member.kill()
    thread = threading.Thread(target=member.start)
    thread.start()
    thread.join()
    server.wait_ready()
    print(member.pid, member.log_path.parent, flush=True)
    time.sleep(60)
"""
    path = str(Path(etcd_servers.__file__).parent)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        pid, directory = process.stdout.readline().split()
        assert Path(f"/proc/{pid}/comm").read_text() == "etcd\n"
        process.kill()
    try:
        until(lambda: not Path(f"/proc/{pid}/comm").exists(), "the end of etcd")
    finally:
        shutil.rmtree(directory)


def test_a_flag_that_etcd_does_not_know_is_told_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="flag provided but not defined"), etcd(flags=["--x"]):
        pass
    assert time.monotonic() - started < 10


def test_a_killed_member_does_not_answer_and_keeps_its_data(build: str) -> None:
    with etcd(build) as server:
        (member,) = server.members
        with client(member.endpoint) as direct:
            revision = direct.put(b"k", b"v")
            member.kill()
            assert not member.alive
            code, _ = refused(lambda: direct.put(b"k", b"w"))
            assert code is grpc.StatusCode.UNAVAILABLE
            member.start()
            server.wait_ready()
            until(lambda: answers(direct), "an answer after the new start")
            found = direct.get(b"k")
        assert found is not None
        assert (found.value, found.mod_revision) == (b"v", revision)


def answers(direct: Client) -> bool:
    try:
        direct.get(b"k", timeout_s=SHORT_S)
    except grpc.RpcError:
        return False
    return True


def test_a_stopped_member_holds_its_connections_in_silence(build: str) -> None:
    with etcd(build) as server, client(*server.endpoints) as direct:
        (member,) = server.members
        direct.put(b"k", b"v")
        assert connections(member) == 1
        member.stop()
        assert member.alive
        code, _ = refused(lambda: direct.put(b"k", b"w", timeout_s=SHORT_S))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert connections(member) == 1
        member.cont()
        until(lambda: answers(direct), "an answer after going on")
        assert connections(member) == 1


def test_a_leader_that_is_killed_is_followed_by_another(build_of_three: str) -> None:
    with etcd(build_of_three, members=3) as server:
        with client(server.endpoints[0]) as direct:
            direct.put(b"k", b"v")
        old = server.leader()
        old.kill()
        server.wait_ready()
        assert server.leader() is not old
        with client(server.leader().endpoint) as direct:
            found = direct.get(b"k")
            assert found is not None
            assert direct.put(b"k", b"w") > found.mod_revision
        old.start()
        server.wait_ready()
        assert len(server.followers()) == 2


def test_leadership_moves_without_a_fault(build_of_three: str) -> None:
    with etcd(build_of_three, members=3) as server:
        old = server.leader()
        new = server.move_leader()
        assert server.leader() is new is not old
        assert all(member.alive for member in server.members)


def test_one_of_three_alone_commits_nothing(build_of_three: str) -> None:
    with etcd(build_of_three, members=3) as server:
        left = server.leader()
        with client(left.endpoint) as direct:
            direct.put(b"k", b"v")
            for member in server.followers():
                member.kill()
            # Silence at first, then "no leader", which the last member notices by itself.
            code, _ = refused(lambda: direct.put(b"k", b"w", timeout_s=1.0))
            assert code in SILENCE
            until(lambda: not server.status(left).get("leader"), "a member without leader")
            assert not answers(direct)
            for member in server.members:
                if not member.alive:
                    member.start()
            server.wait_ready()
            until(lambda: answers(direct), "an answer with a quorum")


# What an administrator does


def test_old_revisions_are_gone_after_a_compaction(server: Etcd) -> None:
    with client(*server.endpoints) as direct:
        old = direct.put(b"compacted", b"1")
        new = direct.put(b"compacted", b"2")
        first, second = (direct.get(b"compacted", revision) for revision in (old, new))
        assert first is not None
        assert second is not None
        assert (first.value, second.value) == (b"1", b"2")
        assert server.compact() >= new
        code, told = refused(lambda: direct.get(b"compacted", old))
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert "compacted" in told


def test_a_full_key_space_refuses_puts_until_it_is_made_free(build: str) -> None:
    with etcd(build, quota_bytes=1 << 20) as server, client(*server.endpoints) as direct:
        code, told = refused(lambda: [direct.put(b"k", bytes(100_000)) for _ in range(200)])
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "database space exceeded" in told
        assert "NOSPACE" in server.alarms()
        assert direct.get(b"k") is not None
        server.free_space()
        assert not server.alarms()
        direct.put(b"k", b"small")


def test_only_users_with_their_password_enter(build: str) -> None:
    with etcd(build) as server, client(*server.endpoints) as direct:
        direct.put(b"k", b"v")
        server.enable_auth("ada", "a:b@c/ d")
        assert refused(lambda: direct.put(b"k", b"w"))[0] is grpc.StatusCode.INVALID_ARGUMENT
        code, told = refused(lambda: direct.authenticate("ada", "wrong"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "authentication failed" in told
        direct.authenticate("ada", "a:b@c/ d")
        direct.put(b"k", b"w")
        direct.authenticate(*ROOT)
        assert server.ctl("get", "k").split() == ["k", "w"]
        server.disable_auth()
        direct.metadata = []
        direct.put(b"k", b"x")


def test_a_token_expires(build: str) -> None:
    with etcd(build, token_ttl_s=1) as server, client(*server.endpoints) as direct:
        server.enable_auth("ada", "a")
        direct.authenticate("ada", "a")
        direct.put(b"k", b"v")
        # Nobody tells when a token ends, and each use of it begins its second anew.
        time.sleep(2.5)
        code, told = refused(lambda: direct.put(b"k", b"w"))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "invalid auth token" in told


# Certificates


def credentials(ca: Path, pair: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    certificate, key = (path.read_bytes() for path in pair) if pair else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate)


def certificates_of(server: Etcd) -> Certificates:
    assert server.certificates is not None
    return server.certificates


def test_tls_is_checked_on_both_sides(build: str) -> None:
    with etcd(build, tls=True, client_certificates=True) as server:
        files = certificates_of(server)
        strangers = [
            None,
            credentials(files.ca),
            credentials(files.ca, files.foreign),
            credentials(files.foreign_ca, files.client),
        ]
        for stranger in strangers:
            with client(*server.endpoints, credentials=stranger) as direct:
                assert refused(partial(direct.put, b"k"))[0] is grpc.StatusCode.UNAVAILABLE
        ours = credentials(files.ca, files.client)
        with client(*server.endpoints, credentials=ours) as direct:
            direct.put(b"k", b"v")
        assert server.ctl("get", "k").split() == ["k", "v"]


def test_a_certificate_for_another_host_is_refused(build: str) -> None:
    with etcd(build, tls=True, certificate_host="other.example") as server:
        trusted = credentials(certificates_of(server).ca)
        with client(*server.endpoints, credentials=trusted) as direct:
            code, told = refused(lambda: direct.put(b"k"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "Hostname" in told or "is not in peer certificate" in told
        # The same certificate is good for whoever expects that name.
        named = [("grpc.ssl_target_name_override", "other.example")]
        with grpc.secure_channel(server.endpoints[0], trusted, named) as channel:
            Client(channel).put(b"k")


# The proxy


@pytest.fixture
def proxy(server: Etcd) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.endpoints[0]) as proxy:
        yield proxy


def put(through: Client, key: bytes) -> None:
    """Again while it falls on a connection whose reset gRPC has not noticed yet."""

    def accepted() -> bool:
        try:
            through.put(key, b"v")
        except grpc.RpcError:
            return False
        return True

    until(accepted, "a put that is answered")


def value(direct: Client, key: bytes) -> bytes | None:
    found = direct.get(key)
    return found.value if found else None


def test_it_passes_what_comes(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        large = os.urandom(1_000_000)
        through.put(b"large", large)
        assert value(through, b"large") == value(direct, b"large") == large
        assert (proxy.connections, proxy.open_connections) == (1, 1)
        assert proxy.requests == 2
        assert proxy.bytes_up > len(large) < proxy.bytes_down
    until(lambda: proxy.open_connections == 0, "the end of the connection")


def test_a_reply_is_lost_after_its_put_was_applied(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        proxy.lose("reply", containing=b"reply-")
        for number in range(3):
            key = b"reply-%d" % number
            code, _ = refused(partial(through.put, key, b"v"))
            assert code is grpc.StatusCode.UNAVAILABLE
            # It is certain: the proxy has seen the answer.
            assert value(direct, key) == b"v"
        assert proxy.replies_lost == 3
        put(through, b"another")
        proxy.lose_nothing()
        put(through, b"reply-3")
        assert proxy.replies_lost == 3


def test_a_request_is_lost_and_never_applied(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        before = direct.put(b"before")
        proxy.lose("request", containing=b"request-", times=1)
        code, _ = refused(lambda: through.put(b"request-0", b"v"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert proxy.requests_lost == 1
        put(through, b"request-1")
        assert direct.put(b"after") == before + 2
        assert value(direct, b"request-0") is None


def test_every_third_reply_is_lost_among_many(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        proxy.lose("reply", containing=b"third", every=3, times=4)
        tried = failed = 0
        while proxy.replies_lost < 4:
            tried += 1
            assert tried < 100
            try:
                through.put(b"third", b"%d" % tried)
            except grpc.RpcError:
                failed += 1
        found = direct.get(b"third")
    assert found is not None
    # A put may also fall on a connection whose reset gRPC has not noticed yet.
    assert found.version == tried - (failed - 4)
    assert found.version == 12


def test_a_late_request_is_applied_after_its_client_gave_it_up(
    server: Etcd, proxy: CuttingProxy
) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        proxy.lose("late", containing=b"late", times=1)
        code, _ = refused(lambda: through.put(b"late", b"first"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert proxy.requests_late == 1
        assert value(through, b"late") is None
        through.put(b"late", b"second")
        proxy.pass_late()
        assert proxy.requests_late == 0
        assert value(direct, b"late") == b"first"


def test_held_replies_come_when_it_goes_on(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        through.put(b"held", b"0")
        proxy.hold_replies()
        code, _ = refused(lambda: through.put(b"held", b"1", timeout_s=SHORT_S))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: value(direct, b"held") == b"1", "the put")
        proxy.go_on()
        assert value(through, b"held") == b"1"
        assert proxy.connections == 1


def test_a_held_connection_is_open_and_silent(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through, client(*server.endpoints) as direct:
        through.put(b"silent", b"0")
        proxy.hold()
        passed = proxy.bytes_up, proxy.bytes_down
        code, _ = refused(lambda: through.put(b"silent", b"1", timeout_s=SHORT_S))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (proxy.bytes_up, proxy.bytes_down) == passed
        assert proxy.open_connections == 1
        assert value(direct, b"silent") == b"0"
        with client(proxy.endpoint) as another:
            code, _ = refused(lambda: another.put(b"silent", b"2", timeout_s=SHORT_S))
            assert code in SILENCE
            assert proxy.connections >= 2
        proxy.go_on()
        through.put(b"silent", b"3")
        assert value(direct, b"silent") == b"3"


def test_cut_connections_are_reset_and_new_ones_pass(server: Etcd, proxy: CuttingProxy) -> None:
    with client(proxy.endpoint) as through:
        through.put(b"cut", b"0")
        proxy.hold_replies()
        waiting = through.begin("KV/Put", wire.PutRequest(b"cut", b"1"), wire.HeaderOnly)
        with client(*server.endpoints) as direct:
            until(lambda: value(direct, b"cut") == b"1", "the put")
        assert not waiting.done()
        proxy.cut()
        assert waiting.exception(10).code() is grpc.StatusCode.UNAVAILABLE
        proxy.go_on()
        through.put(b"cut", b"2")
        assert proxy.connections == 2


def test_refused_connections_are_refused_until_it_goes_on(
    server: Etcd, proxy: CuttingProxy
) -> None:
    with client(proxy.endpoint) as through:
        through.put(b"refused", b"0")
        proxy.refuse()
        assert proxy.open_connections == 0
        code, _ = refused(lambda: through.put(b"refused", b"1"))
        assert code is grpc.StatusCode.UNAVAILABLE
        until(lambda: "onnection refused" in refused(lambda: through.put(b"x"))[1], "ECONNREFUSED")
        proxy.go_on()
        until(lambda: answers(through), "an answer")


# The double


@pytest.fixture
def double(server: Etcd) -> Iterator[EtcdDouble]:
    with EtcdDouble(server.endpoints[0]) as double:
        yield double


def test_it_passes_what_it_is_not_told_to_answer(server: Etcd, double: EtcdDouble) -> None:
    with client(double.endpoint) as through:
        revision = through.put(b"passed", bytes(5000))
        found = through.get(b"passed")
        assert found is not None
        assert (found.mod_revision, found.value) == (revision, bytes(5000))
        assert double.calls == {"KV/Put": 1, "KV/Range": 1}
        code, told = refused(lambda: through.put(b"passed", lease=12345))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "requested lease not found" in told


def test_an_error_comes_with_or_without_what_was_asked(server: Etcd, double: EtcdDouble) -> None:
    with client(double.endpoint) as through, client(*server.endpoints) as direct:
        error = (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
        double.fail("KV/Put", *error, containing=b"error-1", times=1)
        assert refused(lambda: through.put(b"error-1", b"1")) == error
        assert value(direct, b"error-1") is None
        through.put(b"error-1", b"2")
        double.fail("KV/Put", *error, applied=True)
        assert refused(lambda: through.put(b"error-2", b"1")) == error
        assert value(direct, b"error-2") == b"1"
        double.go_on()
        through.put(b"error-2", b"2")


def test_a_version_can_be_another(server: Etcd, double: EtcdDouble) -> None:
    old = wire.StatusResponse(version="3.3.27", leader=1)
    double.reply("Maintenance/Status", old.encode())
    with client(double.endpoint) as through:
        status = through.call("Maintenance/Status", wire.StatusRequest(), wire.StatusResponse)
    assert status == old


def test_streams_pass_it_and_can_fail(server: Etcd, double: EtcdDouble) -> None:
    create = wire.WatchRequest(create_request=wire.WatchCreateRequest(b"streamed"))
    with client(double.endpoint) as through:
        requests: queue.Queue[wire.WatchRequest | None] = queue.Queue()
        requests.put(create)
        answers = through.stream("Watch/Watch", iter(requests.get, None), wire.WatchResponse)
        assert next(answers).created
        revision = through.put(b"streamed", b"1")
        assert [event.kv.mod_revision for event in next(answers).events] == [revision]
        requests.put(None)
        answers.cancel()
        double.fail("Watch/Watch", grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        answers = through.stream("Watch/Watch", iter([create]), wire.WatchResponse)
        assert refused(lambda: next(answers)) == (
            grpc.StatusCode.UNAVAILABLE,
            "etcdserver: no leader",
        )
