"""Placement: which nodes a key belongs to."""

from ringhold.placement.ring import Ring

__all__ = ["Ring"]
