"""A machine of one's own for a process, joined to this one by a cable that a test cuts.

    with island() as far:
        with etcd("debian", host=far.host_address) as server:
            with far.popen([sys.executable, "holder.py", server.url("name")]) as holder:
                far.cut()

Means a network namespace of Linux and a pair of virtual Ethernet devices. What is sent over the
cut cable is lost without a word, as behind a switch that failed: connections stay open on both
sides, and new ones find nobody. (A device that is down would tell: "network is unreachable" at
once on its own side, "no route to host" after three seconds on the other.) Needs root and Debian's
iproute2, so tests that use it carry the mark `system`. All clocks are this machine's, and may be
compared.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

_counts = itertools.count()
# Set aside for tests of networks (RFC 2544): 2**15 nets of two addresses each.
NET = 198 << 24 | 18 << 16
NETS = 1 << 15
HOST_MAC = "02:00:00:00:00:01"
FAR_MAC = "02:00:00:00:00:02"
NOBODY_MAC = "02:00:00:00:00:03"


@dataclass(frozen=True)
class Island:
    """host_address, address: of this machine and of the island, on their cable"""

    namespace: str
    device: str
    host_address: str
    address: str

    def cut(self, *, outgoing: bool = True, incoming: bool = True) -> None:
        """What the island sends is lost, and what is sent to it, from the return of this on."""
        if outgoing:
            self._find("-n", self.namespace, who=self.host_address, at=NOBODY_MAC, device="far")
        if incoming:
            self._find(who=self.address, at=NOBODY_MAC, device=self.device)

    def heal(self) -> None:
        self._find("-n", self.namespace, who=self.host_address, at=HOST_MAC, device="far")
        self._find(who=self.address, at=FAR_MAC, device=self.device)

    def _find(self, *options: str, who: str, at: str, device: str) -> None:
        """Where the frames for `who` go, for good: nobody asks on the cable, so nobody learns that
        there is no answer."""
        _ip(*options, "neigh", "replace", who, "lladdr", at, "dev", device, "nud", "permanent")

    def argv(self, command: Sequence[str]) -> list[str]:
        """What to execute for `command` to run there, as the same process."""
        return [_program(), "netns", "exec", self.namespace, *command]

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(self.argv(command), **options)


@contextmanager
def island() -> Iterator[Island]:
    """Whatever runs there must have ended before it goes; the network then is as it was."""
    # Unlike for every process, so that tests may run side by side.
    name = f"rh{os.getpid():x}-{next(_counts):x}"
    with ExitStack() as undo:
        _ip("netns", "add", name)
        undo.callback(_ip, "netns", "delete", name)
        host_address, address = _free_net()
        made = Island(name, f"{name}h", host_address, address)
        # Both ends are in one namespace or the other, and go together.
        far = ["peer", "name", "far", "address", FAR_MAC, "netns", name]
        _ip("link", "add", made.device, "address", HOST_MAC, "type", "veth", *far)
        undo.callback(_ip, "link", "delete", made.device)
        _ip("address", "add", f"{host_address}/30", "dev", made.device)
        _ip("link", "set", made.device, "up")
        _ip("-n", name, "address", "add", f"{address}/30", "dev", "far")
        _ip("-n", name, "link", "set", "far", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        made.heal()
        yield made


def _free_net() -> tuple[str, str]:
    """Two addresses of one net, which no device of this machine has."""
    taken = _ip("-o", "-4", "address")
    start = os.getpid() * 7
    for step in range(NETS):
        base = NET + 4 * ((start + step) % NETS)
        first, second = (_dotted(base + number) for number in (1, 2))
        if f" {first}/" not in taken:
            return first, second
    raise AssertionError("no net is free")


def _dotted(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4))


def _program() -> str:
    found = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert found is not None, "Debian's package iproute2 is not installed"
    return found


def _ip(*arguments: str) -> str:
    done = subprocess.run([_program(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
