"""Placement: which nodes a key belongs to."""

from ringhold.core.ring_results import Move, Placement, RingDiff
from ringhold.placement.ring import Ring

__all__ = ["Move", "Placement", "Ring", "RingDiff"]
