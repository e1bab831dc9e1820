"""Goal: whoever cannot enter etcd is told why, in a bounded time, by an error that says whether
trying again helps, and that never shows a password.

Method: real servers with users and certificates, and things that listen on a port and are no etcd.
Each fault is first looked at with plain sockets, etcdctl or grpcio.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from threading import Thread

import grpc
import pytest
from etcd_client import client
from etcd_servers import Etcd, etcd, free_ports
from etcd_stores import (
    LEASE,
    FirstEndpoint,
    failure,
    fresh_name,
    open_store,
    run,
    snapshot_of,
    store_at,
    value,
)

from ringhold.errors import InvalidInput, RingholdError, StoreUnavailable
from ringhold.store.base import Put, run_direct
from ringhold.store.etcd import wire
from ringhold.store.etcd.store import EtcdStore

BUILDS = ["distro", pytest.param("debian", marks=pytest.mark.system)]
PASSWORD = "pass:w0rd@/ %"
TIMEOUT_S = 1.5
AT_ONCE_S = 3.0
"""On a busy machine; passwords cost etcd some time, too."""

EXPIRED_S = 2.1
"""etcd looks every second for tokens that were not used for their second."""


@pytest.fixture(scope="module")
def server() -> Iterator[Etcd]:
    """For what leaves no trace."""
    with etcd() as server:
        yield server


async def refused(url: str, timeout_s: float, within_s: float) -> Exception:
    started = time.monotonic()
    error = await failure(open_store(url, create=True, timeout_s=timeout_s))
    assert time.monotonic() - started < within_s
    assert isinstance(error, Exception)
    return error


async def unreachable(url: str, *words: str) -> None:
    """Opening fails when its time has run out, and may go well another time."""
    error = await refused(url, TIMEOUT_S, TIMEOUT_S + AT_ONCE_S)
    assert isinstance(error, StoreUnavailable)
    assert error.retryable
    for word in words:
        assert word in str(error)


async def shut_out(url: str, *words: str) -> None:
    """Opening fails at once, and will fail again."""
    error = await refused(url, 10 * AT_ONCE_S, AT_ONCE_S)
    assert isinstance(error, StoreUnavailable)
    assert not error.retryable
    for word in words:
        assert word in str(error)
    assert PASSWORD not in str(error)
    assert "wrong" not in str(error)


# Places where there is no etcd


def test_a_port_that_nobody_listens_on(server: Etcd) -> None:
    async def main() -> None:
        (port,) = free_ports("127.0.0.1", 1)
        endpoint = f"127.0.0.1:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        await unreachable(server.url("x", endpoints=[endpoint]), endpoint, "refused")

    run(main)


@pytest.mark.parametrize("create", [True, False])
def test_a_server_that_starts_while_it_is_being_opened(create: bool) -> None:
    async def main() -> None:
        with etcd() as server:
            url = server.url("late")
            if not create:
                async with store_at(url):
                    pass
            (member,) = server.members
            member.kill()
            opening = asyncio.ensure_future(open_store(url, create=create, timeout_s=20))
            await asyncio.sleep(0.3)
            assert not opening.done()
            member.start()
            store = await opening
            await store.commit(puts=[Put(b"k", b"v")])
            await store.close()

    run(main)


def test_a_host_that_does_not_resolve(server: Etcd) -> None:
    async def main() -> None:
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("no-such-host.invalid", 2379)
        url = server.url("x", endpoints=["no-such-host.invalid:2379"])
        await unreachable(url, "no-such-host.invalid")

    run(main)


def answer_http(peer: socket.socket) -> None:
    peer.recv(100)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")


def say_nothing(peer: socket.socket) -> None:
    while peer.recv(1000):
        pass


def hang_up(peer: socket.socket) -> None:
    pass


def talk_garbage(peer: socket.socket) -> None:
    peer.recv(100)
    peer.sendall(os.urandom(5000))


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Where `talk` is called with every connection, in a thread of its own."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                Thread(target=serve, args=(peer,), name="listening", daemon=True).start()

    def serve(peer: socket.socket) -> None:
        with peer, suppress(ConnectionError):
            talk(peer)

    (port,) = free_ports("127.0.0.1", 1)
    with socket.create_server(("127.0.0.1", port)) as listener:
        Thread(target=accept, name="listening", daemon=True).start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("talk", [answer_http, say_nothing, hang_up, talk_garbage])
def test_a_port_where_something_else_listens(
    server: Etcd, talk: Callable[[socket.socket], None]
) -> None:
    async def main() -> None:
        with listening(talk) as endpoint:
            host, _, port = endpoint.rpartition(":")
            socket.create_connection((host, int(port))).close()
            await unreachable(server.url("x", endpoints=[endpoint]), endpoint)

    run(main)


def test_one_endpoint_of_two_that_never_answers(server: Etcd) -> None:
    async def main() -> None:
        with listening(say_nothing) as silent:
            url = server.url(fresh_name(), endpoints=[silent, *server.endpoints])
            started = time.monotonic()
            async with store_at(url, env=FirstEndpoint()) as store:
                assert time.monotonic() - started > 1
                await store.commit(puts=[Put(b"k", b"v")])
                assert await value(store, b"k") == b"v"

    run(main)


# Servers that are no etcd of ours


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server of gRPC that answers every call with these bytes."""
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    class Everything(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return method

    with ThreadPoolExecutor(2, thread_name_prefix="ringhold_fake") as threads:
        server = grpc.server(threads, handlers=[Everything()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def status_of(server: Etcd, version: str) -> bytes:
    """What the server says of itself, had it this version."""
    with client(*server.endpoints) as direct:
        told = direct.call("Maintenance/Status", wire.StatusRequest(), wire.StatusResponse)
    # The only field that the codec writes nowhere else: the version, number 2.
    text = version.encode()
    assert told.version.startswith("3.5")
    return b"\x12" + bytes([len(text)]) + text


@pytest.mark.parametrize("version", ["3.3.27", "2.3.8", "", "newest", "3"])
def test_a_version_that_is_too_old(server: Etcd, version: str) -> None:
    async def main() -> None:
        async with answering(status_of(server, version)) as endpoint:
            with client(endpoint) as direct:
                told = direct.call("Maintenance/Status", wire.StatusRequest(), wire.StatusResponse)
                assert told.version == version
            url = server.url("x", endpoints=[endpoint])
            error = await refused(url, 10 * AT_ONCE_S, AT_ONCE_S)
        assert isinstance(error, InvalidInput)
        assert "3.4" in str(error)
        assert repr(version) in str(error) or version in str(error)

    run(main)


def test_a_grpc_server_that_talks_nonsense(server: Etcd) -> None:
    async def main() -> None:
        async with answering(b"\xff\xff\xff") as endpoint:
            await unreachable(server.url("x", endpoints=[endpoint]), "not etcd's")

    run(main)


# Users


@pytest.fixture(scope="module", params=BUILDS)
def guarded(request: pytest.FixtureRequest) -> Iterator[Etcd]:
    """Of which the tokens end after a second without use."""
    with etcd(request.param, token_ttl_s=1) as server:
        server.enable_auth("ada", PASSWORD)
        yield server


@pytest.mark.parametrize(
    ("user", "password"), [("ada", "wrong"), ("eve", PASSWORD), ("ada", "wrong" * 100)]
)
def test_a_wrong_user_or_password(guarded: Etcd, user: str, password: str) -> None:
    async def main() -> None:
        with client(*guarded.endpoints) as direct, pytest.raises(grpc.RpcError) as caught:
            direct.authenticate(user, password)
        assert "authentication failed" in caught.value.details()
        await shut_out(guarded.url("x", user=user, password=password), "authentication failed")

    run(main)


def test_no_user_where_one_is_needed(guarded: Etcd) -> None:
    run(lambda: shut_out(guarded.url("x"), "demands a user", "?user=NAME"))


def test_a_token_that_has_expired_is_replaced_unseen(guarded: Etcd) -> None:
    async def main() -> None:
        url = guarded.url(fresh_name(), user="ada", password=PASSWORD)
        async with store_at(url) as store:
            await store.grant_lease(LEASE, 30)
            with client(*guarded.endpoints) as direct:
                direct.authenticate("ada", PASSWORD)
                await asyncio.sleep(EXPIRED_S)
                with pytest.raises(grpc.RpcError, match="invalid auth token"):
                    direct.get(b"k")
            first = await store.commit(puts=[Put(b"k", b"v", LEASE)])
            await asyncio.sleep(EXPIRED_S)
            watch = store.watch(b"", first)
            assert (await asyncio.wait_for(anext(watch), 5)).revision == first
            # This watch's stream goes on; another one at it needs a token of its own.
            await asyncio.sleep(EXPIRED_S)
            other = store.watch(b"k", first)
            assert (await asyncio.wait_for(anext(other), 5)).revision == first
            await store.renew_lease(LEASE)
            second = await store.commit(deletes=[b"k"])
            for each in (watch, other):
                assert (await asyncio.wait_for(anext(each), 5)).revision == second
                await each.aclose()

    run(main)


def test_users_that_are_demanded_while_the_store_is_open() -> None:
    async def main() -> None:
        with etcd() as server:
            name = fresh_name()
            async with store_at(server.url(name)) as store:
                revision = await store.commit(puts=[Put(b"k", b"v")])
                server.enable_auth("ada", PASSWORD)
                operations = [
                    store.commit(puts=[Put(b"k", b"w")]),
                    snapshot_of(store),
                    anext(store.watch(b"", revision)),
                ]
                for operation in operations:
                    error = await asyncio.wait_for(failure(operation), AT_ONCE_S)
                    assert isinstance(error, StoreUnavailable)
                    assert not error.retryable
                url = server.url(name, user="ada", password=PASSWORD)
                async with store_at(url, create=False) as entered:
                    assert await value(entered, b"k") == b"v"
                    await entered.commit(puts=[Put(b"k", b"x")])
                server.disable_auth()
                assert await value(store, b"k") == b"x"

    run(main)


@pytest.mark.parametrize("build", BUILDS)
def test_a_user_of_the_url_may_be_demanded_later_or_for_a_while(
    build: str, caplog: pytest.LogCaptureFixture
) -> None:
    """So that users are introduced without an interruption: first in the URLs, then at etcd."""

    async def main() -> None:
        with etcd(build) as server:
            url = server.url(fresh_name(), user="ada", password=PASSWORD)
            async with store_at(url) as store:
                assert "auth enable" in caplog.text
                assert PASSWORD not in caplog.text
                await works(store)
                watch = store.watch(b"", 1)
                await anext(watch)
                server.enable_auth("ada", PASSWORD)
                await works(store)
                await anext(watch)
                server.disable_auth()
                await works(store)
                async with store_at(url, create=False) as another:
                    server.ctl("auth", "enable")
                    await works(another)
                    await works(store)
                await watch.aclose()

    run(main)


async def works(store: EtcdStore) -> None:
    """What the loop does, and threads, and watches."""
    await store.commit(puts=[Put(b"k", b"loop")])
    revision = run_direct(store.direct.commit(puts=[Put(b"k", b"thread")]))
    assert await value(store, b"k") == b"thread"
    watch = store.watch(b"", revision)
    assert (await asyncio.wait_for(anext(watch), AT_ONCE_S)).revision == revision
    await watch.aclose()


def test_a_user_who_is_removed_while_the_store_is_open() -> None:
    async def main() -> None:
        with etcd() as server:
            server.enable_auth("ada", PASSWORD)
            url = server.url(fresh_name(), user="ada", password=PASSWORD)
            async with store_at(url) as store:
                await store.commit(puts=[Put(b"k", b"v")])
                server.ctl("user", "delete", "ada")
                for operation in (store.commit(puts=[Put(b"k", b"w")]), anext(store.watch(b"", 1))):
                    error = await asyncio.wait_for(failure(operation), AT_ONCE_S)
                    assert isinstance(error, StoreUnavailable)
                    assert not error.retryable
                    assert PASSWORD not in str(error)

    run(main)


# Certificates


@pytest.fixture(scope="module", params=BUILDS)
def mutual(request: pytest.FixtureRequest) -> Iterator[Etcd]:
    with etcd(request.param, tls=True, client_certificates=True) as server:
        yield server


def test_the_right_certificates(mutual: Etcd) -> None:
    async def main() -> None:
        async with store_at(mutual.url(fresh_name())) as store:
            await store.commit(puts=[Put(b"k", b"v")])
            assert await value(store, b"k") == b"v"

    run(main)


def test_a_server_of_another_authority(mutual: Etcd) -> None:
    assert mutual.certificates is not None
    url = mutual.url("x", ca=mutual.certificates.foreign_ca)
    run(lambda: shut_out(url, "CERTIFICATE_VERIFY_FAILED"))


def test_a_server_whose_authority_the_system_does_not_know(mutual: Etcd) -> None:
    run(lambda: shut_out(mutual.url("x", ca=None), "CERTIFICATE_VERIFY_FAILED"))


def test_a_certificate_for_another_host() -> None:
    with etcd(tls=True, certificate_host="other.example") as server:
        run(lambda: shut_out(server.url("x"), "Hostname Verification"))


async def client_refused(server: Etcd, url: str) -> None:
    if server.version >= (3, 5):
        await shut_out(url, "CERTIFICATE")
    else:
        # It says so after its handshake, as TLS 1.3 allows.
        await unreachable(url, "does not accept this client's certificate, or demands one")


def test_one_of_several_servers_has_another_certificate(mutual: Etcd) -> None:
    async def main() -> None:
        with etcd(tls=True) as stranger:
            endpoints = [stranger.endpoints[0], mutual.endpoints[0]]
            url = mutual.url(fresh_name(), endpoints=endpoints)
            async with store_at(url, env=FirstEndpoint()) as store:
                assert store._connection.endpoint == mutual.endpoints[0]
                # As after a failure of the other one.
                store._connection.leave(mutual.endpoints[0])
                await store.commit(puts=[Put(b"k", b"v")])
                store._connection.leave(mutual.endpoints[0])
                assert await value(store, b"k") == b"v"

    run(main)


def test_a_client_without_its_certificate(mutual: Etcd) -> None:
    run(lambda: client_refused(mutual, mutual.url("x", cert=None, key=None)))


def test_a_client_with_a_certificate_of_another_authority(mutual: Etcd) -> None:
    assert mutual.certificates is not None
    certificate, key = mutual.certificates.foreign
    run(lambda: client_refused(mutual, mutual.url("x", cert=certificate, key=key)))


def test_tls_is_missing_on_one_side(mutual: Etcd, server: Etcd) -> None:
    async def main() -> None:
        plain = mutual.url("x", ca=None, cert=None, key=None).replace("etcds:", "etcd:")
        await unreachable(plain, mutual.endpoints[0])
        assert mutual.certificates is not None
        await unreachable(mutual.url("x", endpoints=server.endpoints), server.endpoints[0])

    run(main)


@pytest.mark.parametrize("option", ["ca", "cert", "key"])
def test_a_file_that_holds_no_certificate(mutual: Etcd, tmp_path: Path, option: str) -> None:
    async def main() -> None:
        path = tmp_path / "nonsense.pem"
        url = mutual.url("x", **{option: path})
        with pytest.raises(FileNotFoundError, match=r"nonsense\.pem"):
            await open_store(url)
        for nonsense in (b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n"):
            path.write_bytes(nonsense)
            started = time.monotonic()
            error = await failure(open_store(url, timeout_s=TIMEOUT_S))
            assert isinstance(error, RingholdError)
            assert time.monotonic() - started < 2 * TIMEOUT_S

    run(main)
