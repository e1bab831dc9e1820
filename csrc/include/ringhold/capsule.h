/*
 * Handles that cross from one Python extension module to another, as PyCapsules.
 *
 * ringhold.Ring, Layout and LockTable have a method __ringhold_ring__(), __ringhold_layout__()
 * and __ringhold_lock_table__(). It returns a capsule of the name below that holds a pointer to
 * the rh_ring, rh_layout or rh_lock_table and keeps the object alive:
 *
 *     PyObject *capsule = PyObject_CallMethod(object, "__ringhold_ring__", NULL);
 *     const rh_ring *ring = PyCapsule_GetPointer(capsule, RH_RING_CAPSULE);
 *
 * The pointer is valid as long as the capsule, and is never freed by who got it. Rings and
 * layouts do not change: the capsule of a Ring is the ring as it was at the call. A lock table
 * is the same one for everybody, and may be used without the GIL, as its header says.
 *
 * Every extension module has a copy of the library of its own, and a handle made by one is read
 * by another. The number in the names is that of the memory layout behind the handles, raised
 * with every change of it, so that PyCapsule_GetPointer refuses what it could not read. No
 * Python header is needed here.
 */
#ifndef RINGHOLD_CAPSULE_H
#define RINGHOLD_CAPSULE_H

#define RH_RING_CAPSULE "ringhold.rh_ring.1"
#define RH_LAYOUT_CAPSULE "ringhold.rh_layout.1"
#define RH_LOCK_TABLE_CAPSULE "ringhold.rh_lock_table.1"

#endif
