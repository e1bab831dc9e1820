"""A ring crosses to other extension modules as a capsule of the name that capsule.h promises.

Method: the C functions that a consumer would call, through ctypes. What a consumer does with the
handle is tested in tests/packaging.
"""

import ctypes
import sys

from ringhold import Ring

RING_CAPSULE = b"ringhold.rh_ring.1"

is_valid = ctypes.pythonapi.PyCapsule_IsValid
is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]


def test_the_capsule_has_its_name_and_no_other():
    capsule = Ring(["a"]).__ringhold_ring__()
    assert is_valid(capsule, RING_CAPSULE) == 1
    assert is_valid(capsule, b"ringhold.rh_ring.0") == 0
    assert is_valid(capsule, b"ringhold.rh_layout.1") == 0


def test_capsules_come_and_go_without_a_trace():
    ring = Ring([f"node-{i}" for i in range(100)])
    before = sys.getrefcount(ring)
    for _ in range(10_000):
        ring.__ringhold_ring__()
    assert sys.getrefcount(ring) == before
    kept = ring.__ringhold_ring__()
    ring.add("other")
    assert is_valid(kept, RING_CAPSULE) == 1
