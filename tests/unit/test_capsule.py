"""Handles cross to other extension modules as capsules of the names that capsule.h promises.

Method: the C functions that a consumer would call, through ctypes. What a consumer does with the
handle is tested in tests/packaging.
"""

import ctypes
import sys

import pytest

from ringhold import Layout, LockTable, Ring

is_valid = ctypes.pythonapi.PyCapsule_IsValid
is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]

context_of = ctypes.pythonapi.PyCapsule_GetContext
context_of.argtypes = [ctypes.py_object]
context_of.restype = ctypes.c_void_p

CAPSULES = {
    b"ringhold.rh_ring.1": lambda: Ring(["a"]),
    b"ringhold.rh_layout.1": lambda: Layout(["a"], replicas=1),
    b"ringhold.rh_lock_table.1": LockTable,
}


def capsule_of(thing):
    method = {Ring: "ring", Layout: "layout", LockTable: "lock_table"}[type(thing)]
    return getattr(thing, f"__ringhold_{method}__")()


@pytest.mark.parametrize("name", CAPSULES)
def test_the_capsule_has_its_name_and_no_other(name):
    capsule = capsule_of(CAPSULES[name]())
    assert [other for other in CAPSULES if is_valid(capsule, other)] == [name]
    assert is_valid(capsule, name.replace(b".1", b".0")) == 0


@pytest.mark.parametrize("name", CAPSULES)
def test_a_capsule_keeps_alive_what_it_shows(name):
    capsule = capsule_of(CAPSULES[name]())
    # The object that frees the handle; the address is borrowed.
    owner = ctypes.cast(context_of(capsule), ctypes.py_object).value
    with_capsule = sys.getrefcount(owner)
    del capsule
    assert sys.getrefcount(owner) == with_capsule - 1


@pytest.mark.parametrize("name", CAPSULES)
def test_capsules_come_and_go_without_a_trace(name):
    thing = CAPSULES[name]()
    before = sys.getrefcount(thing)
    for _ in range(10_000):
        capsule_of(thing)
    assert sys.getrefcount(thing) == before


def test_a_rings_capsule_outlives_its_change():
    ring = Ring(["a"])
    kept = ring.__ringhold_ring__()
    ring.add("other")
    assert is_valid(kept, b"ringhold.rh_ring.1") == 1
