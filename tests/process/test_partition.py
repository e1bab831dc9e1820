"""Goal: a cable that is cut loses everything in silence, and gives everything back later.

Method: a process in a namespace of its own talks over TCP to this one, which sees what arrives.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from etcd_servers import etcd
from partition import Island, island

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SILENCE_S = 1.0
# Beyond what TCP waits before it sends again, which grows with the length of the silence.
HEALED_S = 20.0

ECHO = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    while data := connection.recv(100):
        connection.sendall(data + b"@%d;" % time.clock_gettime_ns(time.CLOCK_BOOTTIME))
print("closed", flush=True)
"""


@pytest.fixture
def far() -> Iterator[Island]:
    with island() as far:
        yield far


def test_a_cut_cable_is_silent_and_loses_nothing_for_good(far: Island) -> None:
    with socket.create_server((far.host_address, 0)) as listener:
        command = [sys.executable, "-c", ECHO, *map(str, listener.getsockname())]
        with far.popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                listener.settimeout(30)
                connection, (address, _) = listener.accept()
                assert address == far.address
                with connection:
                    connection.settimeout(30)
                    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                    connection.sendall(b"a")
                    word, _, told = connection.recv(100).rstrip(b";").partition(b"@")
                    assert word == b"a"
                    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                    assert before <= int(told) <= after, "one clock on both sides"

                    far.cut()
                    connection.sendall(b"b")
                    connection.settimeout(SILENCE_S)
                    with pytest.raises(TimeoutError):
                        connection.recv(100)
                    assert process.poll() is None
                    healed = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                    far.heal()
                    connection.settimeout(HEALED_S)
                    word, _, told = connection.recv(100).rstrip(b";").partition(b"@")
                    assert word == b"b"
                    assert int(told) > healed, "it arrived while the cable was cut"
                assert process.communicate(timeout=HEALED_S)[0] == "closed\n"
            finally:
                process.kill()


def test_who_sends_over_a_cut_cable_is_told_nothing(far: Island) -> None:
    script = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    print("connected", flush=True)
    sys.stdin.readline()
    connection.sendall(b"lost")
    connection.settimeout(4)
    try:
        print(connection.recv(1), flush=True)
    except TimeoutError:
        print("silence", flush=True)
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""
    with socket.create_server((far.host_address, 0)) as listener:
        command = [sys.executable, "-c", script, *map(str, listener.getsockname())]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with far.popen(command, **options) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "connected\n"
                far.cut()
                told, _ = process.communicate("go\n", timeout=30)
                assert told == "silence\nTimeoutError\n"
            finally:
                process.kill()


@pytest.mark.parametrize(("outgoing", "incoming"), [(True, False), (False, True)])
def test_one_way_can_be_cut_alone(far: Island, outgoing: bool, incoming: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((far.host_address, 0))
        here.settimeout(30)
        script = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
    there.bind((sys.argv[1], 0))
    there.settimeout(3)
    there.sendto(b"here I am", (sys.argv[2], int(sys.argv[3])))
    sys.stdin.readline()
    there.sendto(b"out", (sys.argv[2], int(sys.argv[3])))
    try:
        print(there.recv(10).decode(), flush=True)
    except TimeoutError:
        print("silence", flush=True)
"""
        command = [sys.executable, "-c", script, far.address, *map(str, here.getsockname())]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with far.popen(command, **options) as process:
            try:
                told, there = here.recvfrom(100)
                assert told == b"here I am"
                far.cut(outgoing=outgoing, incoming=incoming)
                here.sendto(b"back", there)
                told, _ = process.communicate("go\n", timeout=30)
                assert told == ("silence\n" if incoming else "back\n")
            finally:
                process.kill()
        here.settimeout(1)
        if outgoing:
            with pytest.raises(TimeoutError):
                here.recv(100)
        else:
            assert here.recv(100) == b"out"


def test_the_popen_is_the_process_itself(far: Island) -> None:
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    with far.popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=30)[0] == f"{process.pid}\n"


def test_etcd_answers_on_this_side_while_the_cable_is_cut(far: Island) -> None:
    put = [sys.executable, "-c", PUT]
    with etcd("debian", host=far.host_address) as server:
        assert server.endpoints[0].startswith(far.host_address)
        options = {"env": dict(os.environ), "capture_output": True, "text": True, "timeout": 60}
        reached = subprocess.run(far.argv([*put, *server.endpoints, "1"]), check=False, **options)
        assert reached.stdout == "put\n", reached.stderr
        far.cut()
        lost = subprocess.run(far.argv([*put, *server.endpoints, "2"]), check=False, **options)
        assert lost.stdout != "put\n"
        server.wait_ready()
        assert server.ctl("get", "k").split() == ["k", "1"]
        far.heal()
        again = subprocess.run(far.argv([*put, *server.endpoints, "3"]), check=False, **options)
        assert again.stdout == "put\n", again.stderr
        assert server.ctl("get", "k").split() == ["k", "3"]


PUT = """
import grpc, sys
from ringhold.store.etcd import wire
with grpc.insecure_channel(sys.argv[1]) as channel:
    put = channel.unary_unary("/etcdserverpb.KV/Put")
    put(wire.PutRequest(b"k", sys.argv[2].encode()).encode(), timeout=2)
print("put")
"""


def test_nothing_of_it_is_left() -> None:
    def network() -> str:
        told = [["netns", "list"], ["-o", "link"], ["-o", "address"], ["route"]]
        return "".join(
            subprocess.run(["ip", *each], capture_output=True, text=True, check=True).stdout
            for each in told
        )

    with island() as far:
        assert far.device in network()
        far.cut()
    assert far.namespace not in network()
    assert far.host_address not in network()
    with island() as one, island() as other:
        assert one.host_address != other.host_address
