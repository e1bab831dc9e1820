# cython: language_level=3, boundscheck=False, wraparound=False
"""`Ring`: consistent hashing with virtual nodes, weights and zones, over ``rh_ring``.

Guarantees that a key moves only to or from the node that was changed, that a lookup running
beside a change sees the ring as it was before or as it is after, and that the index of a name
never changes. Does not balance exactly: at 160 points per node shares vary by about 8 %.
"""

from operator import index as _as_index

from libc.stdint cimport uint32_t, uint64_t

from ringhold.core._capsule cimport new_capsule
from ringhold.core._nodes cimport encode_text, node_spec, node_specs, view_key
from ringhold.core._ring_batch cimport lookup_batch, raise_lookup
from ringhold.core._ring_forms cimport (
    diff_snapshots, digest_snapshot, dump_snapshot, load_snapshot,
)
from ringhold.core._ring_walk cimport explain_key, find_bounded, list_points, walk_replicas
from ringhold.core._snapshot cimport (
    Snapshot, edit_snapshot, info_of, make_snapshot, members_of, profile_of, raise_refused,
)
from ringhold.core.c_ringhold cimport (
    RH_DUPLICATE_NODE, RH_OK, RH_RING_ADD, RH_RING_CAPSULE, RH_RING_REMOVE, RH_RING_REWEIGHT,
    RH_RING_VNODES_DEFAULT, RH_UNKNOWN_NODE, rh_ring_change_kind, rh_ring_find, rh_ring_lookup,
    rh_ring_lookup_hash, rh_status,
)

from ringhold.errors import InvalidInput

cdef Snapshot _EMPTY = make_snapshot([], RH_RING_VNODES_DEFAULT, "ringhold")


cdef class Ring:
    """A consistent hash ring: every key has an owner, and changes move as few keys as possible.

    Ring(nodes=(), *, vnodes=160, profile="ringhold")

    `nodes` is an iterable of names, a mapping of names to weights, or an iterable of
    ``Node(name, weight, zone)``. A node of weight w has max(1, round(vnodes * w)) points, one of
    weight 0 is present and owns nothing. Names and zones are ``str`` or ``bytes``, keys any
    contiguous buffer as well, the same text being the same in all; names and zones come back as
    ``str`` (UTF-8 with surrogateescape).

    Weights multiply `vnodes`: 100 nodes of weight 500 are eight million points. A ring that lives
    through thousands of names keeps them all; ``Ring.loads(ring.dumps())`` has the present ones.

    `profile` says by which rules points are formed and keys hashed. Under "ringhold", points are
    XXH3_64(name + '#' + LE32(i)), keys are placed by XXH3_64, and the owner is the node of the
    first point at or after the key's hash. "ketama" (libketama), "libmemcached",
    "libmemcached-unweighted", "libmemcached-spy", "twemproxy", "uhashring" and
    "uhashring-ketama" agree bit by bit with those programs, where names are "host:port". They
    take whole numbers as weights and, "uhashring" excepted, 160 vnodes; where a node's points
    depend on the weights of all, changing one may move keys between others.

    Raises TypeError for wrong types; InvalidInput (a ValueError) for a name given twice, a weight
    that is negative or not finite, an unknown profile, and what the profile does not have.

    Any number of threads may use one ring, also while another changes it. Source: Karger et al.,
    "Consistent Hashing and Random Trees", STOC 1997.

    >>> ring = Ring(["a", "b", "c"])
    >>> ring["user/7"] == ring[b"user/7"] == ring.replicas("user/7", 2)[0]
    True
    """

    def __cinit__(self):
        self._snapshot = _EMPTY

    def __init__(self, nodes=(), *, vnodes=RH_RING_VNODES_DEFAULT, profile="ringhold"):
        self._snapshot = make_snapshot(node_specs(nodes), _as_index(vnodes), profile)

    # Looking up

    def __getitem__(self, key):
        """The name of the node that owns `key`; EmptyRing when no node has a point."""
        cdef Snapshot snapshot
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint32_t index = 0
        cdef rh_status status
        _alive = view_key(key, &data, &size)
        snapshot = self._snapshot
        status = rh_ring_lookup(snapshot.ring, data, size, &index)
        if status != RH_OK:
            raise_lookup(status, snapshot)
        return <str>snapshot.names[index]

    def lookup(self, key, /):
        """The same as ``ring[key]``."""
        return self[key]

    def lookup_hash(self, h, /):
        """The owner of a key whose hash is `h`, made by the profile's own hash function.

        Raises InvalidInput unless 0 <= h < 2**64, or 2**32 in profiles of 32 bits, and in those
        of 128 bits; EmptyRing when no node has a point.

        >>> Ring(["a"]).lookup_hash(2**64 - 1)
        'a'
        """
        cdef Snapshot snapshot = self._snapshot
        cdef uint64_t hashed
        cdef uint32_t index = 0
        cdef rh_status status
        if not isinstance(h, int):
            h = _as_index(h)
        try:
            hashed = h
        except OverflowError as error:
            raise InvalidInput(f"a hash is at least 0 and below 2**64, not {h}") from error
        status = rh_ring_lookup_hash(snapshot.ring, hashed, &index)
        if status != RH_OK:
            raise_lookup(status, snapshot)
        return <str>snapshot.names[index]

    def lookup_many(self, keys, out=None):
        """The owners of many keys, as indexes into `names`.

        `keys` is a sequence of keys, or a contiguous one-dimensional buffer of native 64-bit
        unsigned hashes (format Q or L) as for `lookup_hash`. The result is a new
        ``array.array('I')``, or `out`, a writable buffer of format I and of the same length. The
        GIL is released while owners are searched; the whole batch is answered by the ring as it
        was when it began.

        Raises TypeError for other keys and buffers, among them one str or bytes object;
        ValueError for an `out` of another length and for hashes out of range; EmptyRing when no
        node has a point; RuntimeError when another thread changes the length of a list of keys.
        After an error `out` may be partly written.

        >>> ring = Ring(["a", "b"])
        >>> [ring.names[i] for i in ring.lookup_many(["x", b"y"])] == [ring["x"], ring["y"]]
        True
        """
        return lookup_batch(self._snapshot, keys, out)

    def replicas(self, key, n, *, exclude=()):
        """`n` distinct nodes for `key` as a tuple of names, the owner first.

        They come in walk order from the key's point; with zones, no zone is used twice before
        every zone was used once, none a third time before every second, and so on. A node
        without a zone is a zone of its own; nodes of weight 0 are never used. `exclude` is an
        iterable of names to leave out, the result being that of a ring without them; unknown
        names in it are ignored.

        Raises NotEnoughNodes when fewer than `n` nodes are usable, InvalidInput for n < 0. Warns
        with PlacementWarning when nodes have zones and fewer than `n` of them are usable.

        >>> sorted(Ring(["a", "b", "c"]).replicas("user/7", 2, exclude=["b"]))
        ['a', 'c']
        """
        return walk_replicas(self._snapshot, key, n, exclude)

    def lookup_bounded(self, key, loads, *, bound=1.25):
        """The first node in walk order from `key` that has room for one more.

        `loads` maps names to what each node carries now, in any one unit: finite and not
        negative, missing names 0, unknown names ignored. A node has room while its load is below
        ceil(bound * (total + 1) * weight / all weights), `total` being the sum of the loads of
        the nodes present.

        Raises InvalidInput for a bound below 1 or NaN and for impossible loads, EmptyRing when no
        node has a point. Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with
        Bounded Loads", 2016.

        >>> ring = Ring(["a", "b"])
        >>> ring.lookup_bounded("user/7", {ring["user/7"]: 10}) == ring["user/7"]
        False
        """
        return find_bounded(self._snapshot, key, loads, bound)

    def explain(self, key):
        """Why `key` is where it is, as a `Placement`; EmptyRing when no node has a point.

        >>> Ring(["a"]).explain("user/7").replicas
        ('a',)
        """
        return explain_key(self._snapshot, key)

    # Changing

    def add(self, name, weight=1.0, zone=None):
        """Adds a node; InvalidInput when the name is present or the weight no weight.

        A name that was removed before gets its old index back.
        """
        status = _edit(self, RH_RING_ADD, node_spec(name, weight, zone))
        if status == RH_DUPLICATE_NODE:
            raise InvalidInput(f"node {name!r} is in the ring already")

    def remove(self, name):
        """Removes a node, whose index stays its own; KeyError when there is none of that name."""
        status = _edit(self, RH_RING_REMOVE, (encode_text(name, "node name"), 0.0, None))
        if status == RH_UNKNOWN_NODE:
            raise KeyError(name)

    def reweight(self, name, weight):
        """Gives a node another weight; index and zone stay.

        Raises KeyError when there is no node of that name, InvalidInput when the weight is none.
        """
        status = _edit(self, RH_RING_REWEIGHT, node_spec(name, weight, None))
        if status == RH_UNKNOWN_NODE:
            raise KeyError(name)

    # Reading

    @property
    def names(self):
        """Every name the ring ever had, in order of insertion; removed ones keep their index."""
        return self._snapshot.names

    @property
    def vnodes(self):
        """Points of a node of weight 1."""
        return info_of(self._snapshot).vnodes

    @property
    def profile(self):
        """The name of the rules by which points are formed and keys hashed."""
        return profile_of(self._snapshot)

    @property
    def weights(self):
        """The nodes present and their weights, a new dict in order of insertion."""
        return {name: weight for name, weight, _ in members_of(self._snapshot)}

    @property
    def zones(self):
        """The nodes present and their zones (None: without), a new dict."""
        return {name: zone for name, _, zone in members_of(self._snapshot)}

    def points(self):
        """All points in ascending order, as a list of (value, name of the node).

        Values have the bits of the profile's hashes: 64, or 32 in the profiles of the ketama
        family, or 128 under "uhashring".
        """
        return list_points(self._snapshot)

    def __len__(self):
        return info_of(self._snapshot).nodes

    def __iter__(self):
        return iter([name for name, _, _ in members_of(self._snapshot)])

    def __contains__(self, name):
        cdef uint32_t index = 0
        cdef const void *data = NULL
        cdef size_t size = 0
        if not isinstance(name, (str, bytes)):
            return False
        try:
            _alive = view_key(name, &data, &size)
        except InvalidInput:
            return False  # text that no bytes stand for is no node's name
        return rh_ring_find(self._snapshot.ring, data, size, &index) == RH_OK

    # Rings as a whole

    def diff(self, new):
        """What moves when this ring becomes `new`, as a `RingDiff`: exact arcs, in one pass.

        Raises EmptyRing when either has no point, InvalidInput for rings of different profiles
        and for points of 128 bits.

        >>> ring = Ring(["a", "b"])
        >>> ring.diff(ring).moves
        ()
        """
        if not isinstance(new, Ring):
            raise TypeError(f"a ring differs from a ring, not from {type(new).__name__}")
        return diff_snapshots(self._snapshot, (<Ring>new)._snapshot)

    def digest(self):
        """16 bytes, equal for two rings if and only if they place every key alike.

        Covers the profile, the points, their nodes and the zones of these; not drained nodes,
        weights that give the same points, or the order of insertion.

        >>> Ring(["a", "b"]).digest() == Ring({"b": 1, "a": 1, "drained": 0}).digest()
        True
        """
        return digest_snapshot(self._snapshot)

    def dumps(self):
        """The ring as bytes, versioned and checksummed.

        They do not depend on the order of insertion, that of the libmemcached profiles
        excepted, where it breaks ties. Removed names are left out.
        """
        return dump_snapshot(self._snapshot)

    @classmethod
    def loads(cls, data):
        """The ring in the bytes that `dumps` made; Corrupt for any others.

        `names` is sorted then, that of the libmemcached profiles excepted.

        >>> ring = Ring(["a", "b"])
        >>> Ring.loads(ring.dumps()) == ring
        True
        """
        cdef Ring ring = cls.__new__(cls)
        ring._snapshot = load_snapshot(data)
        return ring

    def copy(self):
        """An independent ring with the same nodes and indexes; costs nothing until one changes."""
        cdef Ring other = type(self).__new__(type(self))
        other._snapshot = self._snapshot
        return other

    def __eq__(self, other):
        """Equal: the same nodes, weights, zones, vnodes and profile, as `dumps` writes them."""
        if not isinstance(other, Ring):
            return NotImplemented
        return dump_snapshot(self._snapshot) == dump_snapshot((<Ring>other)._snapshot)

    __hash__ = None

    def __ringhold_ring__(self):
        """The ring as it is now for another extension module; see ``ringhold/capsule.h``."""
        cdef Snapshot snapshot = self._snapshot
        return new_capsule(snapshot.ring, RH_RING_CAPSULE, snapshot)

    def __repr__(self):
        info = info_of(self._snapshot)
        return f"<{type(self).__name__} of {info.nodes} nodes, {info.points} points>"

    def __reduce__(self):
        present = {name: (weight, zone) for name, weight, zone in members_of(self._snapshot)}
        return (
            _restore,
            (type(self), self.vnodes, self.profile, self._snapshot.names, present),
            getattr(self, "__dict__", None),
        )


def _restore(kind, vnodes, profile, names, present):
    """A pickled ring: its names in their old places, then without the removed ones."""
    cdef Ring ring = kind.__new__(kind)
    specs = []
    for name in names:
        weight, zone = present.get(name, (0.0, None))
        specs.append(node_spec(name, weight, zone))
    ring._snapshot = make_snapshot(specs, vnodes, profile)
    removed = [(encode_text(name, "node name"), 0.0, None) for name in names if name not in present]
    _edit_all(ring, RH_RING_REMOVE, removed)
    return ring


cdef rh_status _edit(Ring ring, rh_ring_change_kind kind, tuple spec) except *:
    return _edit_all(ring, kind, [spec])


cdef rh_status _edit_all(Ring ring, rh_ring_change_kind kind, list specs) except *:
    """Swaps in a changed snapshot, unless another thread was first: then starts over.

    Returns RH_OK, or that a name is taken or unknown, which the caller has a better word for.
    """
    cdef Snapshot old, new
    cdef rh_status status
    while True:
        old = ring._snapshot
        new = Snapshot.__new__(Snapshot)
        status = edit_snapshot(old, kind, specs, new)
        if status in (RH_DUPLICATE_NODE, RH_UNKNOWN_NODE):
            return status
        if status != RH_OK:
            raise_refused(status, info_of(old).vnodes, profile_of(old))
        if ring._snapshot is old:
            ring._snapshot = new
            return status
