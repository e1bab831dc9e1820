"""A TCP proxy on loopback between a client of etcd and one endpoint, which breaks when told.

    with CuttingProxy(server.endpoints[0]) as proxy:
        cluster = ringhold.open(server.url("name", endpoints=[proxy.endpoint]))
        proxy.lose("reply", containing=b"counter", every=7)

What can be told: `hold` (nothing passes, connections stay open: a silent partition),
`hold_replies`, `cut` (all connections are reset), `refuse`, and `lose`, for a single message.
Bytes are passed as they are. The frames of HTTP/2 are told apart only to see where a message
ends, for `lose`, which therefore sees nothing in TLS.

One thread; what it keeps in memory is bounded by the connections and BUFFER_BYTES, and by one
message of gRPC each.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

from etcd_servers import free_ports

BUFFER_BYTES = 1 << 18
CONNECTIONS_MAX = 512
CONNECT_S = 5.0
TELL_S = 10.0

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD_BYTES = 9
FRAME_DATA = 0
FRAME_HEADERS = 1
PADDED = 0x08
MESSAGE_HEAD = struct.Struct(">BI")

Lost = Literal["request", "reply", "late"]


@dataclass
class _Plan:
    """Which messages of a client lose what."""

    containing: bytes
    every: int
    times: int | None
    seen: int = 0

    def chooses(self, message: bytes) -> bool:
        if self.times == 0 or self.containing not in message:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class _Way:
    """From one socket to the other. `pending` is a frame that has not come whole."""

    source: socket.socket
    sink: socket.socket
    up: bool
    outgoing: bytearray = field(default_factory=bytearray)
    pending: bytearray = field(default_factory=bytearray)
    ended: bool = False
    done: bool = False


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket):
        self.client = client
        self.server = server
        self.up = _Way(client, server, up=True)
        self.down = _Way(server, client, up=False)
        self.server_kept = False
        self.http2: bool | None = None
        # By stream: what has come of the message under way, and whose reply is to be lost.
        self.messages: dict[int, bytearray] = {}
        self.condemned: set[int] = set()

    def close(self, *, farewell: bool) -> None:
        for end in (self.client, self.server):
            if not farewell and not (end is self.server and self.server_kept):
                _reset_on_close(end)
            end.close()


@dataclass
class _Late:
    """A request that its client has given up, the connection on which etcd awaits it, and what
    has come there of a frame."""

    server: socket.socket
    stream: int
    data: bytes
    received: bytearray

    def pass_on(self) -> None:
        with self.server:
            self.server.settimeout(TELL_S)
            self.server.sendall(self.data)
            while data := self.server.recv(BUFFER_BYTES):
                self.received += data
                if any(_answers(frame, {self.stream}) for frame in _frames(self.received)):
                    return
        raise AssertionError("etcd does not answer a late request")


class CuttingProxy:
    def __init__(self, target: str):
        """target: host:port to pass to"""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._port = free_ports("127.0.0.1", 1)[0]
        self.endpoint = f"127.0.0.1:{self._port}"
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.requests = 0
        self.requests_lost = 0
        self.replies_lost = 0
        self._late: list[_Late] = []
        self._plans: dict[Lost, _Plan] = {}
        self._holding = False
        self._holding_replies = False
        self._open: list[_Connection] = []
        self._told: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._waker, self._bell = socket.socketpair()
        self._listener: socket.socket | None = None
        self._running = True
        self._thread = threading.Thread(target=self._run, name="cutting proxy", daemon=True)

    def __enter__(self) -> Self:
        self._listen()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._running = False
        self._waker.send(b"x")
        self._thread.join(TELL_S)
        assert not self._thread.is_alive(), "the proxy does not end"
        self._selector.close()
        self._waker.close()
        self._bell.close()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    # What a test tells; each is in force on return

    def hold(self) -> None:
        """Passes nothing, neither way; new connections are accepted and as silent."""
        self._tell(lambda: self._set(holding=True))

    def hold_replies(self) -> None:
        """Passes what clients send, and no answer."""
        self._tell(lambda: self._set(holding_replies=True))

    def cut(self) -> None:
        """Resets every connection, on both sides; new ones are passed."""
        self._tell(self._cut)

    def refuse(self) -> None:
        """Resets every connection and refuses new ones."""
        self._tell(self._refuse)

    def go_on(self) -> None:
        """Ends `hold`, `hold_replies` and `refuse`."""
        self._tell(self._go_on)

    def lose(
        self, what: Lost, *, containing: bytes = b"", every: int = 1, times: int | None = None
    ) -> None:
        """Of the messages to etcd that contain these bytes, every `every`-th, `times` of them:

        "reply": is passed, and when its reply comes the connection is reset instead
        "request": is not passed; the connection is reset
        "late": as "request" for the client, but `pass_late` passes it afterwards, as when it lay
            in the socket of a server that was stopped

        A client cannot tell these apart.
        """
        self._tell(lambda: self._plans.update({what: _Plan(containing, every, times)}))

    def lose_nothing(self) -> None:
        self._tell(self._plans.clear)

    @property
    def requests_late(self) -> int:
        """Those that wait for `pass_late`."""
        return len(self._late)

    def pass_late(self) -> None:
        """Passes the requests that are late, in their order, and waits for etcd's answers."""
        while self._late:
            self._late.pop(0).pass_on()

    def _tell(self, action: Callable[[], None]) -> None:
        assert self._thread.is_alive(), "the proxy is not running"
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._told.append(act)
        self._waker.send(b"x")
        assert done.wait(TELL_S), "the proxy does not answer"

    def _set(self, holding: bool = False, holding_replies: bool = False) -> None:
        self._holding = holding
        self._holding_replies = holding_replies

    def _cut(self) -> None:
        for connection in list(self._open):
            self._reset(connection)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._cut()

    def _go_on(self) -> None:
        self._set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=CONNECTIONS_MAX)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    # The thread

    def _run(self) -> None:
        try:
            while self._running:
                self._watch()
                for key, _ in self._selector.select():
                    if key.fileobj is self._bell:
                        self._bell.recv(4096)
                    elif key.fileobj is self._listener:
                        self._accept()
                while self._told:
                    self._told.popleft()()
                for connection in list(self._open):
                    self._serve(connection)
        finally:
            self._refuse()
            for late in self._late:
                late.server.close()

    def _watch(self) -> None:
        """Asks the kernel for what could be done now, socket by socket."""
        for connection in self._open:
            wanted = {connection.client: 0, connection.server: 0}
            for way in (connection.up, connection.down):
                if self._held(way) or way.done:
                    continue
                if not way.ended and len(way.outgoing) < BUFFER_BYTES:
                    wanted[way.source] |= selectors.EVENT_READ
                if way.outgoing:
                    wanted[way.sink] |= selectors.EVENT_WRITE
            for end, events in wanted.items():
                known = self._selector.get_map().get(end)
                if known is None and events:
                    self._selector.register(end, events)
                elif known is not None and not events:
                    self._selector.unregister(end)
                elif known is not None and known.events != events:
                    self._selector.modify(end, events)

    def _held(self, way: _Way) -> bool:
        return self._holding or (self._holding_replies and not way.up)

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        self.connections += 1
        try:
            assert len(self._open) < CONNECTIONS_MAX, "too many connections"
            server = socket.create_connection(self._target, timeout=CONNECT_S)
        except OSError:
            _reset_on_close(client)
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        self._open.append(_Connection(client, server))

    def _serve(self, connection: _Connection) -> None:
        for way in (connection.up, connection.down):
            if self._held(way) or way.done:
                continue
            try:
                self._pass(connection, way)
            except (_Cut, OSError):
                # The latter: the client or the server was killed.
                self._reset(connection)
                return
        if connection.up.done and connection.down.done:
            self._forget(connection)
            connection.close(farewell=True)

    def _pass(self, connection: _Connection, way: _Way) -> None:
        if not way.ended and len(way.outgoing) < BUFFER_BYTES:
            try:
                data = way.source.recv(BUFFER_BYTES)
            except BlockingIOError:
                pass
            else:
                way.ended = not data
                self._take(connection, way, data)
        if way.outgoing:
            try:
                sent = way.sink.send(way.outgoing)
            except BlockingIOError:
                return
            del way.outgoing[:sent]
            if way.up:
                self.bytes_up += sent
            else:
                self.bytes_down += sent
        if way.ended and not way.outgoing:
            way.sink.shutdown(socket.SHUT_WR)
            way.done = True

    def _reset(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.close(farewell=False)

    def _forget(self, connection: _Connection) -> None:
        self._open.remove(connection)
        for end in (connection.client, connection.server):
            if end in self._selector.get_map():
                self._selector.unregister(end)

    # Messages within the bytes

    def _take(self, connection: _Connection, way: _Way, data: bytes) -> None:
        way.pending += data
        if connection.http2 is None and not way.up:
            connection.http2 = False
        if connection.http2 is None:
            start = bytes(way.pending[: len(PREFACE)])
            if start != PREFACE and PREFACE.startswith(start) and not way.ended:
                return
            connection.http2 = start == PREFACE
            if connection.http2:
                way.outgoing += PREFACE
                del way.pending[: len(PREFACE)]
        if not connection.http2 or way.ended:
            way.outgoing += way.pending
            way.pending.clear()
            return
        for frame in _frames(way.pending):
            if way.up:
                self._sent(connection, frame)
            elif _answers(frame, connection.condemned):
                self.replies_lost += 1
                raise _Cut
            way.outgoing += frame

    def _sent(self, connection: _Connection, frame: bytes) -> None:
        """Looks at a frame of the client before it is passed."""
        kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:9])
        if kind == FRAME_HEADERS:
            self.requests += 1
            connection.messages[stream] = bytearray()
        if kind != FRAME_DATA:
            return
        body = frame[FRAME_HEAD_BYTES:]
        if flags & PADDED:
            body = body[1 : len(body) - body[0]]
        message = connection.messages.setdefault(stream, bytearray())
        message += body
        while len(message) >= MESSAGE_HEAD.size:
            end = MESSAGE_HEAD.size + MESSAGE_HEAD.unpack_from(message)[1]
            if len(message) < end:
                return
            whole = bytes(message[MESSAGE_HEAD.size : end])
            del message[:end]
            self._judge(connection, stream, frame, whole)

    def _judge(self, connection: _Connection, stream: int, frame: bytes, message: bytes) -> None:
        chosen = {what for what, plan in self._plans.items() if plan.chooses(message)}
        if "late" in chosen:
            # Its first frame mostly waits in `outgoing` too, and with it the time that the client
            # gave: etcd counts it from when it comes.
            self._late.append(
                _Late(
                    connection.server.dup(),
                    stream,
                    bytes(connection.up.outgoing) + frame,
                    connection.down.pending,
                )
            )
            connection.server_kept = True
            raise _Cut
        if "request" in chosen:
            self.requests_lost += 1
            raise _Cut
        if "reply" in chosen:
            connection.condemned.add(stream)


class _Cut(Exception):
    """The connection is to be reset."""


def _frames(pending: bytearray) -> Iterator[bytes]:
    """Takes the frames of HTTP/2 that are whole off `pending`."""
    while len(pending) >= FRAME_HEAD_BYTES:
        end = FRAME_HEAD_BYTES + int.from_bytes(pending[:3])
        if len(pending) < end:
            return
        frame = bytes(pending[:end])
        del pending[:end]
        yield frame


def _answers(frame: bytes, streams: set[int]) -> bool:
    """Whether the frame is of the answer to one of these requests."""
    return frame[3] in (FRAME_DATA, FRAME_HEADERS) and int.from_bytes(frame[5:9]) in streams


def _reset_on_close(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
