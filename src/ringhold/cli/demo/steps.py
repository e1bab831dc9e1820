"""What the demonstration does, step by step; every step checks what it claims.

The checks look from outside where they can: exported files are compared by `filecmp`, copies
are counted in the nodes' directories, tokens are read from the output of a process that is dead.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ringhold
from ringhold.cli.demo.processes import Nodes, Process
from ringhold.cli.demo.workers import ACCOUNTS, OPENING_BALANCE, account
from ringhold.cli.output import human_bytes
from ringhold.cli.terminal import TransferProgress
from ringhold.env import real_env

CHUNK_HEADER_BYTES = 4096
LOCK = "report"
TELLERS = 4
TELLERS_KILLED = 6
COPIES = 3


class StepFailed(Exception):
    """Something that the demonstration claims was not true."""


def check(condition: bool, claim: str) -> None:
    if not condition:
        raise StepFailed(claim)


@dataclass
class Demo:
    """The state that steps hand on. `rows` is the table of what was done and measured.

    url: of the cluster to be made
    """

    source: str
    directory: str
    url: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    bytes_total: int = 0

    def __post_init__(self) -> None:
        self.nodes = Nodes(os.path.join(self.directory, "nodes"))
        self.cluster: Any = None
        self.processes: list[Process] = []

    def note(self, what: str, figure: str) -> None:
        self.rows.append((what, figure))

    def start_worker(self, *arguments: str) -> Process:
        log = os.path.join(self.directory, "workers.log")
        process = Process("ringhold.cli.demo.workers", *arguments, log=log)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.stop()
        if self.cluster is not None:
            self.cluster.close()
        self.nodes.stop()


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._clock = real_env().clock
        self._start_ns = self._clock.monotonic_ns()

    @property
    def seconds(self) -> float:
        return (self._clock.monotonic_ns() - self._start_ns) / 1e9


def standard_library() -> str:
    return sysconfig.get_paths()["stdlib"]


def scan(source: str) -> list[str]:
    """The regular files below `source`, relative; without caches and installed packages."""
    found = []
    for directory, subdirectories, names in os.walk(source):
        subdirectories[:] = sorted(set(subdirectories) - {"site-packages", "__pycache__"})
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path) and os.access(path, os.R_OK):
                found.append(os.path.relpath(path, source))
    return found


def create_cluster(demo: Demo, progress: TransferProgress) -> None:
    """Create a cluster: five node processes in three zones, three copies"""
    specs = demo.nodes.specs()
    demo.cluster = ringhold.create(demo.url, nodes=specs, replicas=COPIES)
    up = [node.name for node in demo.cluster.status().nodes if node.up]
    check(up == list(Nodes.NAMES), f"all five nodes serve (up: {up})")
    demo.note("Nodes", "5 processes, 3 zones, 3 copies of every chunk, 2 needed to acknowledge")


def copy_in(demo: Demo, progress: TransferProgress) -> None:
    """Copy the files in"""
    demo.files = scan(demo.source)
    check(bool(demo.files), f"{demo.source} has files")
    local = [os.path.join(demo.source, name) for name in demo.files]
    demo.bytes_total = sum(os.path.getsize(path) for path in local)
    watch = Stopwatch()
    remote = [f"/tree/{name}" for name in demo.files]
    demo.cluster.fs.put(local, remote, callback=progress)
    seconds = watch.seconds
    stored = demo.cluster.fs.find("/tree")
    check(len(stored) == len(demo.files), f"all {len(demo.files)} files are there")
    demo.note(
        "Copied in",
        f"{len(demo.files)} files, {human_bytes(demo.bytes_total)} in {seconds:.1f} s "
        f"({len(demo.files) / seconds:.0f} files/s), every copy fsynced",
    )


def show_spread(demo: Demo, progress: TransferProgress) -> None:
    """Show how evenly the layout spread them"""
    status = demo.cluster.status()
    partitions = sum(node.partitions for node in status.nodes)
    check(partitions == COPIES * 4096, f"4096 partitions have 3 holders each ({partitions})")
    chunks = {name: sum(1 for _ in demo.nodes.chunk_files(name)) for name in Nodes.NAMES}
    zones: dict[str, list[int]] = {}
    for node in status.nodes:
        zones.setdefault(node.zone, []).append(chunks[node.name])
    sums = {zone: sum(counts) for zone, counts in zones.items()}
    check(any(sums.values()), "some file has more than 4096 bytes, which nodes hold")
    check(len(set(sums.values())) == 1, f"every zone holds one copy of every chunk ({sums})")
    uneven = max(
        abs(count * len(counts) / sums[zone] - 1)
        for zone, counts in zones.items()
        for count in counts
    )
    held = ", ".join(f"{name} {chunks[name]}" for name in Nodes.NAMES)
    demo.note(
        "Spread of chunks",
        f"{held}; each zone one copy of all, nodes within {uneven:.1%} of their zone's mean",
    )


def lose_a_lock_holder(demo: Demo, progress: TransferProgress) -> None:
    """Kill the process that holds a lock"""
    first = demo.start_worker("hold", demo.url, LOCK)
    dead_token = first.fact("token")
    second = demo.start_worker("hold", demo.url, LOCK)
    second.fact("ready")
    while not demo.cluster.locks.waiters(LOCK):
        check(second.running, "the second process waits for the lock")
    check(not any("token" in fact for fact in second.facts), "one holder at a time")
    watch = Stopwatch()
    first.kill()
    token = second.fact("token")
    seconds = watch.seconds
    check(token > dead_token, f"the next token is larger ({dead_token} then {token})")
    demo.note(
        "Lock holder killed", f"next process held it after {seconds * 1000:.0f} ms, token grew"
    )
    stale = demo.start_worker("write", demo.url, LOCK, str(dead_token), "from the dead")
    check(stale.fact("accepted") is False, "a write with the dead holder's token is refused")
    live = demo.start_worker("write", demo.url, LOCK, str(token), "from the living")
    check(live.fact("accepted") is True, "a write with the live token is accepted")
    written = demo.cluster.kv[f"written-under/{LOCK}"]
    check(written == b"from the living", "only the living holder's write is visible")
    demo.note("Dead holder's token", f"refused by the store ({stale.fact('error')})")
    second.kill()


def move_money(demo: Demo, progress: TransferProgress) -> None:
    """Move money in transactions while processes are killed"""
    kv = demo.cluster.kv
    for number in range(ACCOUNTS):
        kv.put(account(number), b"%d" % OPENING_BALANCE)
    tellers = [demo.start_worker("transfer", demo.url, str(i)) for i in range(TELLERS)]
    everybody = list(tellers)
    for kill in range(TELLERS_KILLED):
        victim = tellers.pop(0)
        heard = len(victim.facts)
        victim.fact("committed")
        while len(victim.facts) < heard + 20:
            check(victim.running, "transfers go on")
            demo.cluster.kv.get(account(kill % ACCOUNTS))
        victim.kill()
        replacement = demo.start_worker("transfer", demo.url, f"{TELLERS + kill}")
        tellers.append(replacement)
        everybody.append(replacement)
        progress(kill + 1, TELLERS_KILLED)
    for teller in tellers:
        teller.kill()
    acknowledged = [
        f["committed"] for teller in everybody for f in teller.facts if "committed" in f
    ]
    ledger = {key for key, _ in kv.range("ledger/")}
    lost = [entry for entry in acknowledged if entry not in ledger]
    check(not lost, f"no acknowledged transfer is lost ({lost[:3]})")
    balances = [int(kv[account(number)]) for number in range(ACCOUNTS)]
    total = sum(balances)
    check(total == ACCOUNTS * OPENING_BALANCE, f"the total is unchanged ({total})")
    check(min(balances) >= 0, f"no account is overdrawn ({balances})")
    demo.note(
        "Money moved",
        f"{len(ledger)} transfers, {len(everybody)} processes killed, total still {total}",
    )


def damage(demo: Demo, progress: TransferProgress) -> None:
    """Kill a node and wipe its directory; flip bits in another node's files"""
    demo.nodes.kill("n1")
    wiped = sum(1 for _ in demo.nodes.chunk_files("n1"))
    shutil.rmtree(demo.nodes.path("n1"))
    flipped = 0
    for number, path in enumerate(demo.nodes.chunk_files("n2")):
        with open(path, "r+b") as file:
            length = os.path.getsize(path) - CHUNK_HEADER_BYTES
            position = CHUNK_HEADER_BYTES + number * 7919 % length
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1 << number % 8]))
        flipped += 1
    check(wiped > 0 and flipped > 0, "both nodes held chunks")
    demo.note("Damage", f"n1 killed and wiped ({wiped} chunks), a bit flipped in {flipped} of n2")


def export_and_compare(demo: Demo, progress: TransferProgress) -> None:
    """Read everything back and compare it with the source"""
    export = os.path.join(demo.directory, "export")
    local = [os.path.join(export, name) for name in demo.files]
    watch = Stopwatch()
    demo.cluster.fs.get([f"/tree/{name}" for name in demo.files], local, callback=progress)
    seconds = watch.seconds
    exported = scan(export)
    check(exported == demo.files, f"{len(demo.files)} files come back ({len(exported)} did)")
    _, different, failed = filecmp.cmpfiles(demo.source, export, demo.files, shallow=False)
    check(not different and not failed, f"every byte is right ({(different + failed)[:3]})")
    demo.note(
        "Read back with damage",
        f"{len(exported)} files identical to their source, {seconds:.1f} s, every block verified",
    )
    shutil.rmtree(export)


def copies_of_chunks(demo: Demo) -> Counter[str]:
    """How many nodes have a file of each chunk, counted in their directories."""
    return Counter(
        os.path.basename(path) for name in Nodes.NAMES for path in demo.nodes.chunk_files(name)
    )


def mend(demo: Demo, progress: TransferProgress) -> None:
    """Put an empty directory in place of the lost node and repair"""
    watch = Stopwatch()
    demo.nodes.start("n1")
    demo.cluster.replace_node("n1", address=demo.nodes.address("n1"))
    repaired = demo.cluster.fs.repair(progress=progress)
    seconds = watch.seconds
    fewer = [name for name, copies in copies_of_chunks(demo).items() if copies < COPIES]
    check(not fewer, f"every chunk has three copies again ({len(fewer)} have not)")
    demo.note(
        "Repaired", f"{repaired.restored} copies made in {seconds:.1f} s, each chunk has 3 again"
    )
    scrubbed = demo.cluster.fs.scrub(progress=progress)
    again = demo.cluster.fs.scrub(progress=progress)
    check(
        not again.damaged and not again.missing,
        f"a second scrub finds nothing ({again.damaged[:3]} {again.missing[:3]})",
    )
    demo.note(
        "Scrubbed", f"{scrubbed.checked} copies, {len(scrubbed.damaged)} still damaged: mended"
    )
    checked = demo.cluster.fs.fsck(copies=True, progress=progress)
    check(not checked.problems, f"fsck finds nothing ({checked.problems[:3]})")
    demo.note("fsck", f"{checked.files} files, {checked.chunks} chunks, no problems")


STEPS = (
    create_cluster,
    copy_in,
    show_spread,
    lose_a_lock_holder,
    move_money,
    damage,
    export_and_compare,
    mend,
)
