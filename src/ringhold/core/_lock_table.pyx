# cython: language_level=3, boundscheck=False, wraparound=False
"""`LockTable`: who holds which name in which mode, and who is next, over ``rh_lock_table``.

Guarantees that no two owners ever hold a name in modes that exclude each other, that waiters are
granted in order, that a wait which would never end is refused, and that tokens only grow. Does
not wait, wake anybody, or look at a clock: the caller brings owners and time.

The GIL is kept throughout: a call is over sooner than the GIL could change hands, and a process
that forks from Python never does so inside of one.
"""

from operator import index as _as_index

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint64_t

from ringhold.core._capsule cimport new_capsule
from ringhold.core._nodes cimport decode_text, view_text
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_CONFLICT, RH_DEADLOCK, RH_INVALID_ARGUMENT, RH_LOCK_EXCLUSIVE, RH_LOCK_NAME_BYTES_MAX,
    RH_LOCK_NONE, RH_LOCK_TABLE_CAPSULE, RH_NOT_OWNED, RH_OK, rh_free, rh_lock_acquire_many,
    rh_lock_cancel, rh_lock_downgrade, rh_lock_expire, rh_lock_get_holders, rh_lock_get_mode,
    rh_lock_get_waiters, rh_lock_grant, rh_lock_grants, rh_lock_grants_free, rh_lock_grants_new,
    rh_lock_grants_read, rh_lock_mode, rh_lock_party, rh_lock_release, rh_lock_release_owner,
    rh_lock_renew, rh_lock_request, rh_lock_table_free, rh_lock_table_new,
    rh_lock_table_options, rh_lock_table_size, rh_lock_try_acquire, rh_status,
)

from ringhold.errors import DeadlockError, InvalidInput, NotOwned
from ringhold.types import Mode, TableGrant

cdef extern from "Python.h":
    bint PyLong_CheckExact(object number)
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow)


# By the numbers that the modes have in C.
cdef tuple _MODES = (
    None,
    Mode.INTENT_SHARED,
    Mode.INTENT_EXCLUSIVE,
    Mode.SHARED,
    Mode.UPDATE,
    Mode.SHARED_INTENT_EXCLUSIVE,
    Mode.EXCLUSIVE,
)
cdef dict _BY_NAME = {mode.value: number for number, mode in enumerate(_MODES) if number}
cdef object _EXCLUSIVE = Mode.EXCLUSIVE


cdef rh_lock_mode _mode_number(object mode) except RH_LOCK_NONE:
    cdef int number
    for number in range(1, RH_LOCK_EXCLUSIVE + 1):
        if mode is <object>_MODES[number]:
            return <rh_lock_mode>number
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a ringhold.Mode or its name, not {type(mode).__name__}")
    known = _BY_NAME.get(mode)
    if known is None:
        raise InvalidInput(f"there is no mode {mode!r}; there are: {', '.join(_BY_NAME)}")
    number = known
    return <rh_lock_mode>number


cdef inline rh_lock_mode _mode_of(object mode) except RH_LOCK_NONE:
    return RH_LOCK_EXCLUSIVE if mode is _EXCLUSIVE else _mode_number(mode)


cdef int64_t _whole(object number, str what) except? -1:
    """Any integer but a bool, of 64 bits; InvalidInput beyond."""
    if isinstance(number, bool):
        raise TypeError(f"{what} must be an int, not a bool")
    try:
        return _as_index(number)
    except OverflowError as error:
        raise InvalidInput(f"{what} must fit into 64 bits, but is {number}") from error


cdef uint64_t _owner_number(object owner) except 0:
    cdef int64_t number = _whole(owner, "owner")
    if number <= 0:
        raise InvalidInput(f"an owner is 1 to 2**63 - 1, not {owner}")
    return <uint64_t>number


cdef inline uint64_t _owner_of(object owner) except 0:
    cdef int overflow = 0
    cdef int64_t number
    if PyLong_CheckExact(owner):
        number = PyLong_AsLongLongAndOverflow(owner, &overflow)
        if number > 0:
            return <uint64_t>number
    return _owner_number(owner)


cdef int _refuse(rh_status status, object name, object owner) except -1:
    """Raises what a status other than RH_OK and RH_CONFLICT says of a call."""
    cdef const void *data = NULL
    cdef size_t size = 0
    text = None
    if name is not None:
        _alive = view_text(name, &data, &size, "name")
        if size == 0 or size > RH_LOCK_NAME_BYTES_MAX:
            raise InvalidInput(
                f"a name has 1 to {RH_LOCK_NAME_BYTES_MAX} bytes, but this one has {size}"
            )
        text = decode_text(data, size)
    if status == RH_NOT_OWNED:
        raise NotOwned(f"owner {owner} does not hold {text!r}", name=text, owner=owner)
    if status == RH_DEADLOCK:
        raise DeadlockError(
            f"owner {owner} would wait for {text!r} for ever: whoever is in the way waits, "
            f"directly or through others, for owner {owner}",
            name=text,
            owner=owner,
        )
    return raise_status(status, f"lock {text!r}, owner {owner}")


cdef list _parties(const rh_lock_party *parties, size_t count):
    cdef size_t i
    return [(parties[i].owner, _MODES[<int>parties[i].mode]) for i in range(count)]


cdef inline rh_lock_grants *_buffer(LockTable table) except NULL:
    if table.grants == NULL:
        status = rh_lock_grants_new(&table.grants)
        if status != RH_OK:
            raise_status(status, "grants")
    return table.grants


cdef list _read_grants(LockTable table):
    """The grants in the buffer, which is the table's again only when all are read.

    Making any object, a list too, may run other Python code, which takes another buffer: the
    garbage collector may run then, and finalizers with it.
    """
    cdef rh_lock_grants *grants = table.grants
    cdef const rh_lock_grant *items = NULL
    cdef const void *last = NULL
    cdef size_t count = 0
    cdef size_t i
    cdef str name = ""
    rh_lock_grants_read(grants, &items, &count)
    if count == 0:
        return []
    table.grants = NULL
    try:
        found = []
        for i in range(count):
            if items[i].name != last:
                last = items[i].name
                name = decode_text(last, items[i].name_bytes)
            found.append(
                TableGrant(name, items[i].owner, items[i].token, _MODES[<int>items[i].mode])
            )
    finally:
        if table.grants == NULL:
            table.grants = grants
        else:
            rh_lock_grants_free(grants)
    return found


cdef class LockTable:
    """Named locks in six modes: IS, IX, S, U, SIX and X. Nobody waits in it: who has to is queued.

    LockTable(*, hash_seed=0)

    Names are ``str`` or ``bytes`` of 1 to 4096 bytes, the same text being the same name in both,
    and come back as ``str`` (UTF-8 with surrogateescape). Owners are ints from 1 to 2**63 - 1,
    whatever they stand for. Modes are `ringhold.Mode` or its lower-case names.

    ==== ======================= ===================
    \\    mode                    goes together with
    ==== ======================= ===================
    IS   intent_shared           IS IX S U SIX
    IX   intent_exclusive        IS IX
    S    shared                  IS S U
    U    update                  IS S
    SIX  shared_intent_exclusive IS
    X    exclusive               nothing
    ==== ======================= ===================

    An owner is never in its own way: asking again counts, and for more leads to the weakest mode
    that covers both (IX + S = SIX). Waiters are served first come, first served, but a request
    that raises a mode already held, an upgrade, waits for holders and earlier upgrades only. What
    makes room returns those who got it now as ``TableGrant(name, owner, token, mode)``, those of
    one name in their order; to wake them is the caller's affair.

    Names are hashed with `hash_seed`, 0 to 2**64 - 1. Where strangers choose the names give a
    random one, or they can choose names that make the table slow.

    Every call raises TypeError for wrong types and InvalidInput (a ValueError) for a name or
    owner out of bounds and for an unknown mode, and then has changed nothing. Any number of
    threads may use one table. A table can be neither copied nor pickled.

    Modes as in Gray, Lorie, Putzolu, Traiger, "Granularity of Locks and Degrees of Consistency in
    a Shared Data Base", 1976.

    >>> table = LockTable()
    >>> table.try_acquire("order/7", 1), table.request("order/7", 2, "shared")
    (1, 0)
    >>> table.release("order/7", 1)  # doctest: +NORMALIZE_WHITESPACE
    [TableGrant(name='order/7', owner=2, token=2, mode=<Mode.SHARED: 'shared'>)]
    """

    def __cinit__(self, *, hash_seed=0):
        cdef rh_lock_table_options options
        seed = _as_index(hash_seed)
        if not 0 <= seed < 2**64:
            raise InvalidInput(f"hash_seed must be at least 0 and below 2**64, not {seed}")
        options.hash_seed = seed
        status = rh_lock_table_new(&options, &self.table)
        if status != RH_OK:
            raise_status(status, "a lock table")

    def __reduce__(self):
        raise TypeError("a LockTable can be neither copied nor pickled: its locks are held in it")

    def __dealloc__(self):
        rh_lock_table_free(self.table)
        rh_lock_grants_free(self.grants)

    # Acquiring

    def try_acquire(self, name, owner, mode=_EXCLUSIVE):
        """The token of the grant, or 0 when there is somebody to wait for.

        Tokens are larger than every one the table gave before, except that asking for what is
        held already counts and returns the token of the hold. Never passes an earlier waiter whose
        mode excludes this one; an upgrade passes those that are no upgrades, unless its owner is
        waiting for something itself. 0 also for more of a name the owner is waiting for.
        """
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint64_t token = 0
        cdef uint64_t number = _owner_of(owner)
        cdef rh_lock_mode wanted = _mode_of(mode)
        _alive = view_text(name, &data, &size, "name")
        status = rh_lock_try_acquire(self.table, data, size, number, wanted, &token)
        if status != RH_OK and status != RH_CONFLICT:
            _refuse(status, name, owner)
        return token

    def request(self, name, owner, mode=_EXCLUSIVE):
        """The token of the grant, or 0: then the owner is queued, and its grant will be returned
        by the call that makes room.

        A queued upgrade keeps the mode held until then.

        Raises DeadlockError, and queues nothing, when the wait would close a cycle of owners that
        wait for each other, be it for holders or for earlier waiters; InvalidInput while the
        owner is waiting for anything.
        """
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint64_t token = 0
        cdef uint64_t number = _owner_of(owner)
        cdef rh_lock_mode wanted = _mode_of(mode)
        _alive = view_text(name, &data, &size, "name")
        status = rh_lock_request(self.table, data, size, number, wanted, &token)
        if status == RH_INVALID_ARGUMENT and 0 < size <= RH_LOCK_NAME_BYTES_MAX:
            raise InvalidInput(
                f"owner {owner} is waiting already, and an owner waits for one name at a time: "
                f"cancel that wait before asking for {name!r}"
            )
        if status != RH_OK:
            _refuse(status, name, owner)
        return token

    def acquire_many(self, names, owner, mode=_EXCLUSIVE):
        """Tries to acquire all names, an iterable, and returns their tokens in order.

        None, and nothing is changed, when `try_acquire` of any of them would return 0. A name
        that is given twice is acquired twice. InvalidInput for no names.
        """
        cdef uint64_t number = _owner_of(owner)
        cdef rh_lock_mode wanted = _mode_of(mode)
        if isinstance(names, (str, bytes)):
            raise TypeError(f"names must be an iterable of names, not one {type(names).__name__}")
        return _acquire_many(self, tuple(names), number, wanted)

    # Giving up

    def release(self, name, owner):
        """Undoes one acquisition; returns the grants that follow.

        The mode stays as it is until all are undone. A wait for more of the same name goes on.
        Raises NotOwned when the owner holds nothing of that name.
        """
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint64_t number = _owner_of(owner)
        _alive = view_text(name, &data, &size, "name")
        status = rh_lock_release(self.table, data, size, number, _buffer(self))
        if status != RH_OK:
            _refuse(status, name, owner)
        return _read_grants(self)

    def release_owner(self, owner):
        """Gives up all that the owner holds and awaits, then grants; its deadline is forgotten."""
        status = rh_lock_release_owner(self.table, _owner_of(owner), _buffer(self))
        if status != RH_OK:
            _refuse(status, None, owner)
        return _read_grants(self)

    def cancel(self, name, owner):
        """Ends the owner's wait for the name, if it waits; returns the grants that follow.

        Of an upgrade the mode held remains.
        """
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint64_t number = _owner_of(owner)
        _alive = view_text(name, &data, &size, "name")
        status = rh_lock_cancel(self.table, data, size, number, _buffer(self))
        if status != RH_OK:
            _refuse(status, name, owner)
        return _read_grants(self)

    def downgrade(self, name, owner, mode):
        """Lowers the mode held; token and count stay. Returns the grants that follow.

        Raises InvalidInput when the mode held does not cover `mode`, NotOwned when nothing is
        held.
        """
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint64_t number = _owner_of(owner)
        cdef rh_lock_mode wanted = _mode_of(mode)
        _alive = view_text(name, &data, &size, "name")
        status = rh_lock_downgrade(self.table, data, size, number, wanted, _buffer(self))
        if status == RH_INVALID_ARGUMENT and 0 < size <= RH_LOCK_NAME_BYTES_MAX:
            raise InvalidInput(
                f"owner {owner} holds {name!r} in mode {self.mode(name, owner).value}, which "
                f"does not cover {_MODES[<int>wanted].value}"
            )
        if status != RH_OK:
            _refuse(status, name, owner)
        return _read_grants(self)

    # Deadlines

    def renew(self, owner, deadline_ns):
        """Gives the owner a deadline, or a later or earlier one, on the caller's clock.

        It may be given before anything is acquired. It is forgotten when the owner has let go of
        all that it held and awaited; owners without one hold as long as they like.
        """
        cdef uint64_t number = _owner_of(owner)
        status = rh_lock_renew(self.table, number, _whole(deadline_ns, "deadline_ns"))
        if status != RH_OK:
            _refuse(status, None, owner)

    def expire(self, now_ns):
        """Takes everything from the owners whose deadline is before `now_ns`, then grants.

        None of them is left when the first grant is made.
        """
        status = rh_lock_expire(self.table, _whole(now_ns, "now_ns"), _buffer(self))
        if status != RH_OK:
            raise_status(status, "expire")
        return _read_grants(self)

    # Reading

    def holders(self, name):
        """The holders as (owner, mode), in the order in which they came."""
        return _read_parties(self, name, False)

    def waiters(self, name):
        """The waiters as (owner, mode they will hold), in queue order."""
        return _read_parties(self, name, True)

    def mode(self, name, owner):
        """The mode in which the owner holds the name; None when it does not."""
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef rh_lock_mode mode = RH_LOCK_NONE
        cdef uint64_t number = _owner_of(owner)
        _alive = view_text(name, &data, &size, "name")
        status = rh_lock_get_mode(self.table, data, size, number, &mode)
        if status != RH_OK:
            _refuse(status, name, owner)
        return _MODES[<int>mode]

    def __len__(self):
        """How many names are held or awaited."""
        cdef size_t size = 0
        status = rh_lock_table_size(self.table, &size)
        if status != RH_OK:
            raise_status(status, "len")
        return size

    def __ringhold_lock_table__(self):
        """The table for another extension module; see ``ringhold/capsule.h``."""
        return new_capsule(self.table, RH_LOCK_TABLE_CAPSULE, self)

    def __repr__(self):
        return f"<{type(self).__name__} of {len(self)} names>"


cdef list _read_parties(LockTable table, object name, bint waiters):
    cdef const void *data = NULL
    cdef size_t size = 0
    cdef rh_lock_party *parties = NULL
    cdef size_t count = 0
    _alive = view_text(name, &data, &size, "name")
    if waiters:
        status = rh_lock_get_waiters(table.table, data, size, &parties, &count)
    else:
        status = rh_lock_get_holders(table.table, data, size, &parties, &count)
    if status != RH_OK:
        _refuse(status, name, None)
    try:
        return _parties(parties, count)
    finally:
        rh_free(parties)


cdef object _acquire_many(LockTable table, tuple names, uint64_t owner, rh_lock_mode mode):
    cdef size_t count = <size_t>len(names)
    cdef const void **data
    cdef size_t *sizes
    cdef uint64_t *tokens
    cdef size_t i
    if count == 0:
        raise InvalidInput("acquire_many needs at least one name")
    data = <const void **>PyMem_Malloc(count * (sizeof(void *) + sizeof(size_t) + 8))
    if data == NULL:
        raise MemoryError
    sizes = <size_t *>(data + count)
    tokens = <uint64_t *>(sizes + count)
    try:
        # What view_text returns may be all that keeps the bytes alive.
        alive = [view_text(names[i], &data[i], &sizes[i], "name") for i in range(count)]
        status = rh_lock_acquire_many(table.table, data, sizes, count, owner, mode, tokens)
        if status == RH_CONFLICT:
            return None
        if status == RH_INVALID_ARGUMENT:
            for i in range(count):
                if not 0 < sizes[i] <= RH_LOCK_NAME_BYTES_MAX:
                    _refuse(status, alive[i], owner)
        if status != RH_OK:
            raise_status(status, f"{count} locks, owner {owner}")
        return [tokens[i] for i in range(count)]
    finally:
        PyMem_Free(data)
