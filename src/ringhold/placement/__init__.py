"""Placement: which nodes a key belongs to.

`Ring` and `Layout` are the extension classes themselves: a Python call in between would cost as
much as the lookup.
"""

from ringhold.core import Layout, LayoutPlan, Ring
from ringhold.core.ring_results import Move, Placement, RingDiff

__all__ = ["Layout", "LayoutPlan", "Move", "Placement", "Ring", "RingDiff"]
