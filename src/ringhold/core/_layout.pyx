# cython: language_level=3, boundscheck=False, wraparound=False
"""`Layout`: a table that says which nodes hold each partition of the keys, over ``rh_layout``.

Guarantees that every node holds its share of the copies to within one, that copies of a partition
lie in as many zones as can be, and that a rebalance moves as few copies as any could. Costs a
table that all who look up must have; where 8 % more or less on a node is no matter, a `Ring`
needs none.
"""

import warnings
from operator import index as _as_index

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint32_t

from ringhold.core._capsule cimport new_capsule
from ringhold.core._nodes cimport decode_text, fill_node, node_specs, view_key
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_CORRUPT, RH_DUPLICATE_NODE, RH_LAYOUT_CAPSULE, RH_LAYOUT_COPIES_MAX,
    RH_LAYOUT_DIGEST_BYTES, RH_LAYOUT_NODES_MAX, RH_LAYOUT_PARTITIONS_MAX,
    RH_LAYOUT_PARTITIONS_MIN, RH_NOT_ENOUGH_NODES, RH_OK, rh_free, rh_layout_digest,
    rh_layout_dumps, rh_layout_free, rh_layout_get_info, rh_layout_get_member, rh_layout_info,
    rh_layout_loads, rh_layout_lookup, rh_layout_member, rh_layout_move, rh_layout_new,
    rh_layout_nodes, rh_layout_options, rh_layout_partition, rh_layout_plan,
    rh_layout_rebalance, rh_node, rh_status,
)

from ringhold.errors import Corrupt, InvalidInput, NotEnoughNodes
from ringhold.types import PlacementWarning

# Replica sets up to this size are read into memory of the stack.
cdef enum:
    REPLICAS_ON_STACK = 16

# Given for nodes where an object is made whose layout is set by hand.
_UNSET = object()


cdef class Layout:
    """Which nodes hold each partition of the keys: an explicit table, exactly balanced.

    Layout(nodes, *, replicas=3, partitions=4096)

    `nodes` is an iterable of names, a mapping of names to weights, or an iterable of
    ``Node(name, weight, zone)``, as for `Ring`; a node of weight 0 holds nothing. `partitions` is
    a power of two from 2**4 to 2**20. A key belongs to partition
    ``XXH3-64(key) >> (64 - log2(partitions))``, and each partition to `replicas` nodes.

    A node's share of the replicas * partitions copies is in proportion to its weight, except that
    no node holds a partition twice and that zones take turns: none holds a partition twice before
    every zone held it once, none three times before all twice, a zone without a node left being
    passed over. What that takes from one goes to the others by weight. Shares are rounded by
    largest remainder here, up or down by `rebalance`. The order of `nodes` is no matter.

    `names` are all nodes, drained ones too, in order of their bytes; `replicas` and `partitions`
    are as given; `epoch` is 1 and grows by one with each rebalance.

    Immutable; any number of threads may use one. Raises TypeError for wrong types, InvalidInput
    for wrong values, NotEnoughNodes when fewer than `replicas` nodes have weight. Warns with
    PlacementWarning when nodes have zones and fewer than `replicas` of them are usable.

    Source of the table of partitions: OpenStack Swift's ring; of minimal rebalances by flows:
    Garage's layout; both with zones and shares of their own.

    >>> layout = Layout(["a", "b", "c"], replicas=2, partitions=16)
    >>> layout.lookup("user/7") == layout.nodes(layout.partition("user/7"))
    True
    >>> plan = layout.rebalance(["a", "b", "c", "d"])
    >>> plan.moved, {target for _, _, target in plan.moves}
    (8, {'d'})
    """

    def __cinit__(self, nodes, *, replicas=3, partitions=4096):
        cdef rh_layout_options options
        cdef rh_node *lent
        cdef rh_status status
        cdef size_t count
        self._layout = NULL
        if nodes is _UNSET:
            return
        replicas, partitions = _as_index(replicas), _as_index(partitions)
        _check_numbers(replicas, partitions)
        options.replicas = replicas
        options.partitions = partitions
        specs = node_specs(nodes)
        count = <size_t>len(specs)
        lent = _lend(specs)
        try:
            with nogil:
                status = rh_layout_new(lent, count, &options, &self._layout)
        finally:
            PyMem_Free(lent)
        if status != RH_OK:
            _raise_nodes(status, specs, replicas, partitions)
        _describe(self)
        _warn_of_few_zones(self)

    def __dealloc__(self):
        rh_layout_free(self._layout)

    # Looking up

    def partition(self, key):
        """The number of the partition of `key`, 0 <= number < `partitions`."""
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint32_t number = 0
        _alive = view_key(key, &data, &size)
        status = rh_layout_partition(self._layout, data, size, &number)
        if status != RH_OK:
            raise_status(status, "the key has no partition")
        return number

    def nodes(self, partition):
        """The names of the nodes that hold a partition, the primary first.

        InvalidInput for a number outside 0 <= partition < `partitions`.
        """
        cdef object number = _as_index(partition)
        if not 0 <= number < self.partitions:
            raise InvalidInput(f"partition {number} is not in 0 … {self.partitions - 1}")
        return _read(self, number, NULL, 0)

    def lookup(self, key):
        """The names of the nodes that hold `key`: ``nodes(partition(key))``."""
        cdef const void *data = NULL
        cdef size_t size = 0
        _alive = view_key(key, &data, &size)
        return _read(self, 0, data, size)

    # Changing

    def rebalance(self, nodes):
        """A `LayoutPlan` for other nodes: the next layout and the fewest moves that lead to it.

        `nodes` is as for `Layout`: all nodes there shall be. Those left out leave, those of
        weight 0 are emptied, weights and zones may change; `replicas` and `partitions` stay.
        Kept copies keep their place in their partition. Errors and the warning are those of
        `Layout`; a failed rebalance changes nothing.

        Exact, by minimum-cost flow: no table within the same limits has more copies in common
        with this one. Among such tables one is taken at random that spreads sources and targets.
        """
        cdef rh_layout_plan found
        cdef rh_node *lent
        cdef rh_status status
        cdef LayoutPlan plan
        specs = node_specs(nodes)
        cdef size_t count = <size_t>len(specs)
        lent = _lend(specs)
        try:
            with nogil:
                status = rh_layout_rebalance(self._layout, lent, count, &found)
        finally:
            PyMem_Free(lent)
        if status != RH_OK:
            _raise_nodes(status, specs, self.replicas, self.partitions)
        plan = LayoutPlan.__new__(LayoutPlan)
        plan._moves = found.moves
        plan.moved = <Py_ssize_t>found.moved
        plan.lower_bound = <Py_ssize_t>found.lower_bound
        plan._before = self
        plan.layout = _adopt(type(self), found.layout)
        _warn_of_few_zones(plan.layout)
        return plan

    # Reading; `names` are sorted by their bytes

    @property
    def epoch(self):
        """1 for a first layout; every rebalance adds one."""
        return _info(self).epoch

    @property
    def weights(self):
        """The nodes and their weights, a new dict in order of names."""
        return {name: weight for name, weight, _ in _members(self)}

    @property
    def zones(self):
        """The nodes and their zones (None: without), a new dict in order of names."""
        return {name: zone for name, _, zone in _members(self)}

    def digest(self):
        """16 bytes, equal if and only if all partitions lie on the same nodes in the same order.

        Covers neither the epoch nor weights and zones.
        """
        cdef uint8_t out[RH_LAYOUT_DIGEST_BYTES]
        status = rh_layout_digest(self._layout, out)
        if status != RH_OK:
            raise_status(status, "digest")
        return PyBytes_FromStringAndSize(<char *>out, RH_LAYOUT_DIGEST_BYTES)

    def dumps(self):
        """The layout as bytes: versioned, checksummed, the same for equal layouts."""
        cdef void *data = NULL
        cdef size_t size = 0
        cdef rh_status status
        with nogil:
            status = rh_layout_dumps(self._layout, &data, &size)
        if status != RH_OK:
            raise_status(status, "dumps")
        try:
            return PyBytes_FromStringAndSize(<char *>data, <Py_ssize_t>size)
        finally:
            rh_free(data)

    @classmethod
    def loads(cls, data):
        """The layout in bytes that `dumps` gave; Corrupt for any others."""
        cdef Py_buffer view
        cdef rh_layout *layout = NULL
        cdef rh_status status
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                status = rh_layout_loads(view.buf, <size_t>view.len, &layout)
        finally:
            PyBuffer_Release(&view)
        if status == RH_CORRUPT:
            raise Corrupt("these bytes are no layout, or damaged", what="layout")
        if status != RH_OK:
            raise_status(status, "loads")
        return _adopt(cls, layout)

    def __eq__(self, other):
        """Equal: the same nodes, weights, zones, table and epoch."""
        if not isinstance(other, Layout):
            return NotImplemented
        return self is other or self.dumps() == other.dumps()

    def __hash__(self):
        return hash(self.digest())

    def __ringhold_layout__(self):
        """The layout for another extension module; see ``ringhold/capsule.h``."""
        return new_capsule(self._layout, RH_LAYOUT_CAPSULE, self)

    def __repr__(self):
        return (
            f"<{type(self).__name__} of {self.partitions} partitions, {self.replicas} replicas on "
            f"{len(self.names)} nodes, epoch {self.epoch}>"
        )

    def __reduce__(self):
        return type(self).loads, (self.dumps(),)


cdef class LayoutPlan:
    """What a rebalance comes to; made by `Layout.rebalance`.

    layout: the next layout
    moves: tuple of (partition, source, target), sorted by partition: names, of a node of the old
        layout and of the one that takes its place
    moved: how many moves there are
    lower_bound: what any layout of these nodes had to move if zones and distinct copies were no
        matter: the least sum of max(0, have - quota) over the ways to round the shares
    gap: moved - lower_bound. 0 where nothing but shares binds; more tells what zones cost, and
        not that a better plan exists
    """

    def __cinit__(self):
        self._moves = NULL

    def __init__(self):
        raise TypeError("a LayoutPlan is made by Layout.rebalance")

    def __dealloc__(self):
        rh_free(self._moves)

    def __reduce__(self):
        raise TypeError("a LayoutPlan cannot be pickled or copied; its layout can")

    @property
    def moves(self):
        """Tuple of (partition, source, target), sorted by partition."""
        cdef Py_ssize_t i
        cdef rh_layout_move *move
        if self._listed is None:
            listed = []
            for i in range(self.moved):
                move = &self._moves[i]
                listed.append((
                    move.partition,
                    self._before.names[move.source],
                    self.layout.names[move.target],
                ))
            self._listed = tuple(listed)
        return self._listed

    @property
    def gap(self):
        """Moves beyond the lower bound: what zones and distinct copies cost."""
        return self.moved - self.lower_bound

    def __repr__(self):
        return (
            f"<LayoutPlan to epoch {self.layout.epoch}: {self.moved} moves, "
            f"{self.gap} above the lower bound>"
        )


cdef int _check_numbers(object replicas, object partitions) except -1:
    if replicas < 1:
        raise InvalidInput(f"replicas must be at least 1, not {replicas}")
    if (
        not RH_LAYOUT_PARTITIONS_MIN <= partitions <= RH_LAYOUT_PARTITIONS_MAX
        or partitions & (partitions - 1)
    ):
        raise InvalidInput(
            f"partitions must be a power of two from {RH_LAYOUT_PARTITIONS_MIN} to "
            f"{RH_LAYOUT_PARTITIONS_MAX}, not {partitions}"
        )
    if replicas > RH_LAYOUT_NODES_MAX:
        raise InvalidInput(f"a layout has at most {RH_LAYOUT_NODES_MAX} replicas, not {replicas}")
    return 0


cdef rh_node *_lend(list specs) except NULL:
    """An array of nodes whose bytes are those of `specs`; for PyMem_Free."""
    cdef size_t count = <size_t>len(specs)
    cdef size_t i
    cdef rh_node *nodes = <rh_node *>PyMem_Malloc((count + 1) * sizeof(rh_node))
    if nodes == NULL:
        raise MemoryError
    for i in range(count):
        fill_node(&nodes[i], <tuple>specs[i])
    return nodes


cdef int _raise_nodes(rh_status status, list specs, object replicas, object partitions) except -1:
    if status == RH_NOT_ENOUGH_NODES:
        usable = sum([weight > 0 for _, weight, _ in specs])
        raise NotEnoughNodes(
            f"{replicas} replicas need as many nodes, and {usable} of weight above 0 are given",
            wanted=replicas,
            usable=usable,
        )
    if status == RH_DUPLICATE_NODE:
        seen = set()
        for name, _, _ in specs:
            if name in seen:
                text = name.decode("utf-8", "surrogateescape")
                raise InvalidInput(f"node {text!r} is given twice")
            seen.add(name)
    return raise_status(
        status,
        f"a layout has at most {RH_LAYOUT_NODES_MAX} nodes, {RH_LAYOUT_COPIES_MAX} copies of "
        f"partitions and 2**64 - 1 epochs; this would have {len(specs)} nodes and "
        f"{replicas * partitions} copies",
    )


cdef rh_layout_info _info(Layout layout) noexcept:
    cdef rh_layout_info info
    rh_layout_get_info(layout._layout, &info)
    return info


cdef int _describe(Layout layout) except -1:
    info = _info(layout)
    layout.partitions = <int>info.partitions
    layout.replicas = info.replicas
    layout.names = tuple([name for name, _, _ in _members(layout)])
    return 0


cdef Layout _adopt(object cls, rh_layout *made):
    cdef Layout layout
    try:
        layout = cls.__new__(cls, _UNSET)
    except BaseException:
        rh_layout_free(made)
        raise
    layout._layout = made
    _describe(layout)
    return layout


cdef int _warn_of_few_zones(Layout layout) except -1:
    info = _info(layout)
    if info.zoned and info.zones < info.replicas:
        warnings.warn(
            f"{info.replicas} replicas lie in only {info.zones} zones: no more have a usable node",
            PlacementWarning,
            stacklevel=1,
        )
    return 0


cdef list _members(Layout layout):
    """(name, weight, zone) of the nodes in order of names."""
    cdef rh_layout_member member
    cdef rh_layout_info info = _info(layout)
    cdef size_t i
    members = []
    for i in range(info.nodes):
        status = rh_layout_get_member(layout._layout, i, &member)
        if status != RH_OK:
            raise_status(status, f"node number {i}")
        zone = None
        if member.node.zone != NULL:
            zone = decode_text(member.node.zone, member.node.zone_bytes)
        members.append((
            decode_text(member.node.name, member.node.name_bytes), member.node.weight, zone
        ))
    return members


cdef tuple _read(Layout layout, uint32_t partition, const void *key, size_t key_bytes):
    """The names of the nodes of a key, or without one (NULL) of a partition."""
    cdef uint32_t few[REPLICAS_ON_STACK]
    cdef uint32_t *numbers = few
    cdef rh_status status
    cdef Py_ssize_t i
    if layout.replicas > REPLICAS_ON_STACK:
        numbers = <uint32_t *>PyMem_Malloc(<size_t>layout.replicas * sizeof(uint32_t))
        if numbers == NULL:
            raise MemoryError
    try:
        if key != NULL:
            status = rh_layout_lookup(layout._layout, key, key_bytes, numbers)
        else:
            status = rh_layout_nodes(layout._layout, partition, numbers)
        if status != RH_OK:
            raise_status(status, "lookup")
        return tuple([layout.names[numbers[i]] for i in range(layout.replicas)])
    finally:
        if numbers != few:
            PyMem_Free(numbers)
