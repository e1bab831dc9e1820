"""Channels of gRPC to the endpoints of an etcd cluster: who is let in, and who counts as dead.

Guarantees: a peer that is silent is given up after PING_S + PONG_S, as long as calls or watches are
under way; no opening shares a socket with another one, nor a forked child with its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import ssl
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ringhold.env import Peer, let_go_of_sockets, resolved
from ringhold.errors import Closed, InvalidInput
from ringhold.store.etcd import library
from ringhold.store.etcd.address import EtcdAddress
from ringhold.store.etcd.library import grpc

WATCH = "/etcdserverpb.Watch/Watch"
PING_S = 6.0
PONG_S = 2.0
"""etcd refuses pings more often than every 5 s. Without the timeout of HTTP/2 itself a server that
stands still is noticed after a minute only."""

REOPEN_NS = 1_000_000_000


_open: dict[weakref.ref[Channels], None] = {}
_peers: set[Peer] = set()
"""Where connections of this process may lead."""


def _after_fork_in_child() -> None:
    if _peers:
        let_go_of_sockets(_peers)
    # There may be no peers though channels are open, as long as their names led nowhere.
    if _peers or _open:
        library.abandon([opened() for opened in _open])
    _peers.clear()
    _open.clear()


def _after_fork_in_parent() -> None:
    for opened in list(_open):
        channels = opened()
        if channels is not None:
            channels.renew()


def _at_exit() -> None:
    library.abandon([opened() for opened in _open])


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)


class _Polled:
    """Keeps a channel's calls cheap, by one stream of watches on which nothing is asked.

    grpcio polls for answers in a thread that ends with the last call under way: without the stream
    every call that is alone would begin with the start of a thread (a third of its time, measured).
    """

    def __init__(self, channel: grpc.Channel):
        self._open: Any = channel.stream_stream(WATCH)
        self._ends: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call: Any = None
        self._opened_ns = 0

    def keep(self, now_ns: int) -> None:
        """Opens the stream again if it has ended, at most once a second."""
        if self._call is None or (
            now_ns - self._opened_ns > REOPEN_NS and not self._call.is_active()
        ):
            self.end()
            self._opened_ns = now_ns
            self._ends = queue.SimpleQueue()
            self._call = self._open(iter(self._ends.get, None))

    def end(self) -> None:
        # Otherwise grpcio's thread that waits for requests would do so for ever.
        self._ends.put(None)


class _Endpoint:
    """One channel, and what is called on it."""

    def __init__(self, channel: grpc.Channel):
        self.channel = channel
        self.stubs: dict[str, Any] = {}
        self.polled = _Polled(channel)

    def close(self) -> None:
        """Ends the calls under way, and joins threads of gRPC."""
        self.polled.end()
        self.channel.close()


class Channels:
    """The channels to the endpoints of `address`, for all threads of this process.

    on_renewed: called in any thread when streams have to begin anew on `channel`
    """

    def __init__(
        self, address: EtcdAddress, credentials: grpc.ChannelCredentials | None, password: str
    ):
        self.address = address
        self.password = password
        self.on_renewed: Callable[[], object] = lambda: None
        self._credentials = credentials
        self._endpoints: dict[str, _Endpoint] = {}
        self._closing: set[_Endpoint] = set()
        """Kept until they are closed: a forked child must not destroy one."""
        self._lock = threading.Lock()
        self.closed = False
        _open[weakref.ref(self, _open.pop)] = None

    def stub(self, endpoint: str, path: str) -> Any:
        """To call the method `path` of one endpoint with bytes, and be answered by bytes."""
        place = self._place(endpoint)
        stub = place.stubs.get(path)
        if stub is None:
            stub = place.stubs[path] = place.channel.unary_unary(f"/etcdserverpb.{path}")
        return stub

    def keep_polled(self, endpoint: str, now_ns: int) -> None:
        """For calls whose answers are waited for by a loop; called by that loop."""
        self._place(endpoint).polled.keep(now_ns)

    def channel(self, endpoint: str) -> grpc.Channel:
        return self._place(endpoint).channel

    def _place(self, endpoint: str) -> _Endpoint:
        place = self._endpoints.get(endpoint)
        if place is not None:
            return place
        with self._lock:
            if self.closed:
                raise Closed("the store is closed")
            return self._endpoints.setdefault(endpoint, _Endpoint(self._opened(endpoint)))

    def _opened(self, endpoint: str) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(endpoint, _OPTIONS)
        return grpc.secure_channel(endpoint, self._credentials, _OPTIONS)

    def renew(self) -> None:
        """The process has forked: what is under way may have lost its answer, or a part of it."""
        with self._lock:
            endpoints, self._endpoints = self._endpoints, {}
            self._closing.update(endpoints.values())
        if endpoints:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody watches.
                self.on_renewed()
        for place in endpoints.values():
            threading.Thread(target=self._close, args=(place,), daemon=True).start()

    def _close(self, place: _Endpoint) -> None:
        place.close()
        self._closing.discard(place)

    def close(self) -> None:
        """Joins threads of gRPC."""
        with self._lock:
            self.closed = True
        for place in self._endpoints.values():
            place.close()


def channels_to(address: EtcdAddress) -> Channels:
    """Reads the files that `address` names: OSError for one that cannot be read, InvalidInput for
    one that holds something else. Connects to nothing yet."""
    for endpoint in address.endpoints:
        host, _, port = endpoint.rpartition(":")
        _peers.update(resolved(host, int(port)))
    library.use()
    return Channels(address, _credentials(address), _password(address))


def _credentials(address: EtcdAddress) -> grpc.ChannelCredentials | None:
    if not address.tls:
        return None
    ca, cert, key = (
        None if path is None else _read(path) for path in (address.ca, address.cert, address.key)
    )
    _check_files(address)
    return grpc.ssl_channel_credentials(ca, key, cert)


def _check_files(address: EtcdAddress) -> None:
    """gRPC ends the whole process over files that hold no certificate or no key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if address.ca is not None:
            context.load_verify_locations(address.ca)
    except ssl.SSLError as error:
        raise InvalidInput(f"{address.ca} holds no certificates in PEM: {error}") from error
    if address.cert is None:
        return
    try:
        # Without this an encrypted key would be asked for at the terminal.
        context.load_cert_chain(address.cert, address.key, password=lambda: b"")
    except ssl.SSLError as error:
        raise InvalidInput(
            f"{address.cert} and {address.key} are no certificate and its key without a "
            f"passphrase, in PEM: {error}"
        ) from error


def _password(address: EtcdAddress) -> str:
    if address.password_file is None:
        return address.password or ""
    return _read(address.password_file).decode().partition("\n")[0]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


_OPTIONS = (
    ("grpc.keepalive_time_ms", int(PING_S * 1e3)),
    ("grpc.keepalive_timeout_ms", int(PONG_S * 1e3)),
    ("grpc.http2.ping_timeout_ms", int(PONG_S * 1e3)),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise channels to the same place share sockets, a forked child's with its parent's too.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
