"""The C core seen from Python: thin extension modules over libringhold, no policy of their own."""

from ringhold.core._checksum import Digest, checksum, checksum_blocks, copy_checksum_blocks, digest
from ringhold.core._lock_table import LockTable
from ringhold.core._ring import Ring

__all__ = [
    "Digest",
    "LockTable",
    "Ring",
    "checksum",
    "checksum_blocks",
    "copy_checksum_blocks",
    "digest",
]
