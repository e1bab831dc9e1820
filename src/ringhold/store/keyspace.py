"""Which keys of the store belong to whom: one letter each, then fixed-width fields, big-endian.

M                          the cluster: identity, format, replicas, chunk size
N<name>                    a storage node
P<page u8>                 64 partitions -> ordered nodes with their incarnations
S<session 12>              a session; bound to its lease
k<key>                     the user's key-value pairs
l<length u16><name>…       who holds and awaits a lock (`ringhold.locks.keys`)
m<session 12>…             letters to a session; bound to its lease
w<session 12>              locks that a session holds up by waits of its own; bound to its lease
f<name>                    fence of a lock: the highest exclusive token admitted, u64
s<length u16><name>        semaphore, then <limit u32>x<slot u32> for a holder, <limit u32>q<id>
                           for a waiter; bound to their leases
e<length u16><name>        election, as a semaphore with the limit 1
F<length u16><ino u64>     lock of a file, as a semaphore with the limit 1
i                          next free inode number
I<ino u64>                 inode
D<ino u64><name>           directory entry
T<ino u64>                 modification time of a directory: put blindly, never compared
X<data 16><block u32>      extents of a file's data
C<run 16>                  a run of chunks: lengths, digests, references
G<ms u64><data 16>         data to be deleted for good, by time of deletion
K<copies u8><run 16>       a run with fewer durable copies than it should have
"""

from __future__ import annotations

CLUSTER = b"M"
NODE = b"N"
PARTITION_PAGE = b"P"
SESSION = b"S"
KEY_VALUE = b"k"
LOCK = b"l"
MAILBOX = b"m"
WAITS = b"w"
FENCE = b"f"
SEMAPHORE = b"s"
ELECTION = b"e"
FILE_LOCK = b"F"
NEXT_INODE = b"i"
INODE = b"I"
DIRECTORY_ENTRY = b"D"
DIRECTORY_TIME = b"T"
EXTENTS = b"X"
RUN = b"C"
GARBAGE = b"G"
REPAIR = b"K"

PARTITIONS_PER_PAGE = 64


def node_key(name: bytes) -> bytes:
    return NODE + name


def partition_page_key(partition: int) -> bytes:
    """The key of the page in which `partition` is."""
    return PARTITION_PAGE + bytes([partition // PARTITIONS_PER_PAGE])


def session_key(session: bytes) -> bytes:
    return SESSION + session


def waits_key(session: bytes) -> bytes:
    return WAITS + session


def inode_key(ino: int) -> bytes:
    return INODE + ino.to_bytes(8, "big")


def entry_prefix(directory: int) -> bytes:
    return DIRECTORY_ENTRY + directory.to_bytes(8, "big")


def entry_key(directory: int, name: bytes) -> bytes:
    return entry_prefix(directory) + name


def directory_time_key(directory: int) -> bytes:
    return DIRECTORY_TIME + directory.to_bytes(8, "big")


def extents_prefix(data: bytes) -> bytes:
    return EXTENTS + data


def extents_key(data: bytes, block: int) -> bytes:
    return EXTENTS + data + block.to_bytes(4, "big")


def run_key(run: bytes) -> bytes:
    return RUN + run


def garbage_key(deleted_ms: int, data: bytes) -> bytes:
    return GARBAGE + deleted_ms.to_bytes(8, "big") + data


def repair_key(copies: int, run: bytes) -> bytes:
    return REPAIR + bytes([min(copies, 255)]) + run


def lock_prefix(name: bytes) -> bytes:
    """The length goes first, so that no name's keys lie within another's range."""
    return named_prefix(LOCK, name)


def named_prefix(letter: bytes, name: bytes) -> bytes:
    """As `lock_prefix`, of another letter."""
    return letter + len(name).to_bytes(2, "big") + name


def fence_key(name: bytes) -> bytes:
    return FENCE + name
