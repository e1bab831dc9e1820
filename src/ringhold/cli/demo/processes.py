"""Starting, listening to and killing the demonstration's processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ringhold.types import NodeSpec

ANSWER_TIMEOUT_S = 60.0


class Process:
    """A child that speaks in JSON lines, and logs to a file. `stop` or `kill` ends it."""

    def __init__(self, *argv: str, log: str):
        with open(log, "a") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.facts: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._heard:
                # A line that a kill cut short was never said.
                with contextlib.suppress(json.JSONDecodeError):
                    self.facts.append(json.loads(line))
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def fact(self, name: str) -> Any:
        """Waits until the child tells `name`; RuntimeError when it ends or stays silent."""

        def told() -> bool:
            return any(name in fact for fact in self.facts) or not self._reader.is_alive()

        with self._heard:
            self._heard.wait_for(told, ANSWER_TIMEOUT_S)
            for fact in self.facts:
                if name in fact:
                    return fact[name]
        raise RuntimeError(f"process {self.pid} did not tell {name!r}: {self.facts}")

    def kill(self) -> None:
        """SIGKILL, and everything it said until then has been read when this returns."""
        self._child.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if it does not end."""
        if self.running:
            self._child.terminate()
            try:
                self._child.wait(10)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._reap()

    def _reap(self) -> None:
        self._child.wait()
        self._reader.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()


class Nodes:
    """Five storage node daemons in three zones, each in a directory of its own."""

    ZONES = ("zone-a", "zone-b", "zone-c")
    NAMES = ("n1", "n2", "n3", "n4", "n5")

    def __init__(self, directory: str):
        self._directory = directory
        self._processes: dict[str, Process] = {}
        self._addresses: dict[str, str] = {}

    def path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def start(self, name: str) -> str:
        """Starts the daemon of `name`, at its earlier address if it had one."""
        os.makedirs(self.path(name), exist_ok=True)
        listen = self._addresses.get(name, "127.0.0.1:0")
        arguments = ("ringhold.cli", "node", "--data", self.path(name), "--listen", listen)
        process = Process(*arguments, log=f"{self.path(name)}.log")
        self._processes[name] = process
        self._addresses[name] = str(process.fact("address"))
        return self._addresses[name]

    def address(self, name: str) -> str:
        return self._addresses[name]

    def kill(self, name: str) -> None:
        self._processes.pop(name).kill()

    def stop(self) -> None:
        while self._processes:
            self._processes.popitem()[1].stop()

    def specs(self) -> list[NodeSpec]:
        zones = {name: self.ZONES[i % len(self.ZONES)] for i, name in enumerate(self.NAMES)}
        return [NodeSpec(name, address=self.start(name), zone=zones[name]) for name in self.NAMES]

    def chunk_files(self, name: str) -> Iterator[str]:
        """The chunk files below the directory of `name`, in the order of their names."""
        for directory, subdirectories, files in os.walk(os.path.join(self.path(name), "data")):
            subdirectories.sort()
            for file in sorted(files):
                yield os.path.join(directory, file)
