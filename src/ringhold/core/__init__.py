"""The C core seen from Python: thin extension modules over libringhold, no policy of their own."""

from ringhold.core._checksum import checksum, checksum_blocks, digest
from ringhold.core._layout import Layout, LayoutPlan
from ringhold.core._ring import Ring

__all__ = ["Layout", "LayoutPlan", "Ring", "checksum", "checksum_blocks", "digest"]
