"""Any text and any bytes are names of the lock table; wrong arguments are told and change nothing.

Method: every argument of every method in turn is replaced by wrong types and wrong values, beside
a holder and a waiter whose state is compared before and after.
"""

import pickle

import pytest

import ringhold
from ringhold import LockTable, Mode
from ringhold.errors import InvalidInput

IS, IX, S, U, SIX, X = Mode
OWNER_MAX = 2**63 - 1


def seen(grants):
    return [(grant.name, grant.owner, grant.mode) for grant in grants]


def state(table, *names):
    return len(table), [(table.holders(name), table.waiters(name)) for name in names]


# Names


@pytest.mark.parametrize(
    "text", ["a", "ä", "\udcff\udcfe", "nul\0inside", "\0", "n" * 4096, "日本"]
)
def test_text_and_its_bytes_are_one_name(text):
    table, encoded = LockTable(), text.encode("utf-8", "surrogateescape")
    token = table.try_acquire(text, 1)
    assert table.try_acquire(encoded, 1) == token
    assert table.request(encoded, 2) == 0
    assert table.holders(text) == table.holders(encoded) == [(1, X)]
    assert table.waiters(encoded) == [(2, X)]
    assert table.mode(encoded, 1) is X
    assert table.acquire_many([encoded, text], 1) == [token, token]
    table.release(text, 1)
    table.release(encoded, 1)
    table.downgrade(encoded, 1, S)
    assert seen(table.cancel(encoded, 2)) == []
    table.request(text, 2)
    table.release(text, 1)
    assert seen(table.release(encoded, 1)) == [(text, 2, X)]
    assert len(table) == 1


def test_names_that_differ_in_one_byte_are_two():
    table = LockTable()
    names = ["a", "a\0", "\0a", "a\0\0", "A", "a "]
    names += ["x" * length for length in range(1, 130)]
    names += ["y" * 4095, "y" * 4096, "y" * 4095 + "z"]
    tokens = {table.try_acquire(name, owner) for owner, name in enumerate(names, 1)}
    assert 0 not in tokens
    assert len(table) == len(tokens) == len(names)
    assert [table.holders(name)[0][0] for name in names] == list(range(1, len(names) + 1))


@pytest.mark.parametrize(
    "pair", [(303032, 519794), (120374, 538697), (346450, 1010075), (543265, 1119893)]
)
def test_names_whose_hashes_agree_are_two(pair):
    """In all bits that choose a shard or are kept beside a name; found by trying 2.5 million."""
    one, other = (f"lock/of/a/customer/{number:07}" for number in pair)
    difference = ringhold.checksum(one.encode()) ^ ringhold.checksum(other.encode())
    assert difference & (63 << 58 | 0xFFFFFFFF) == 0
    table = LockTable()
    assert table.try_acquire(one, 1) > 0
    assert table.try_acquire(other, 2) > 0
    assert table.request(one, 3) == 0
    assert (table.holders(one), table.holders(other)) == ([(1, X)], [(2, X)])
    assert table.release(other, 2) == []
    assert [grant.owner for grant in table.release(one, 1)] == [3]
    assert len(table) == 1


@pytest.mark.parametrize("owner", [1, 2, 2**31, 2**32, 2**32 + 1, 2**62, OWNER_MAX])
def test_owners_go_up_to_63_bits(owner):
    table = LockTable()
    assert table.try_acquire("a", owner) > 0
    assert table.holders("a") == [(owner, X)]
    assert table.request("a", owner - 1 or 5) == 0
    (grant,) = table.release_owner(owner)
    assert grant.owner == (owner - 1 or 5)


def test_owners_that_differ_in_one_bit_are_two():
    table, owners = LockTable(), [1, *(2**bit + 1 for bit in range(1, 63))]
    for count, owner in enumerate(owners):
        assert table.mode("a", owner) is None
        assert table.holders("a") == [(other, S) for other in owners[:count]]
        table.try_acquire("a", owner, S)
    for owner in reversed(owners):
        table.release("a", owner)
        assert table.mode("a", owner) is None
    assert len(table) == 0


# Wrong arguments

CALLS = {
    "try_acquire": ("name", "owner", "mode"),
    "request": ("name", "owner", "mode"),
    "release": ("name", "owner"),
    "release_owner": ("owner",),
    "cancel": ("name", "owner"),
    "acquire_many": ("names", "owner", "mode"),
    "downgrade": ("name", "owner", "mode"),
    "holders": ("name",),
    "waiters": ("name",),
    "mode": ("name", "owner"),
    "renew": ("owner", "deadline_ns"),
    "expire": ("now_ns",),
}
GOOD = {"name": "a", "names": ["new", "a"], "owner": 1, "mode": "intent_shared"}
GOOD |= {"deadline_ns": 9, "now_ns": 0}
NO_NAMES = [None, 5, 1.5, True, [], ["a"], ("a",), {}, bytearray(b"a"), memoryview(b"a"), object()]
BAD_NAMES = ["", b"", "n" * 5000, b"n" * 5000, "ä" * 2049, "\ud800", "ok\udfff"]
BAD_TIMES = [2**63, 2**64, 10**30, -(2**63) - 1, -(10**30)]
WRONG_TYPES = {
    "name": NO_NAMES,
    "names": [None, 5, 1.5, True, "abc", b"abc", object(), *([name] for name in NO_NAMES)],
    "owner": [None, 1.0, float("nan"), True, False, [], "1", b"1", 1j, object()],
    "mode": [None, 1, 0, 1.0, True, [], b"shared", ("shared",), object(), Mode],
    "deadline_ns": [None, 1.5, float("inf"), True, [], "1", object()],
    "now_ns": [None, 1.5, float("nan"), False, [], "1", object()],
}
WRONG_VALUES = {
    "name": BAD_NAMES,
    "names": [[], (), *(["new", name] for name in BAD_NAMES)],
    "owner": [0, -1, -(2**63), 2**63, 2**64, 2**64 + 1, 10**30, -(10**30)],
    "mode": ["", "x", "EXCLUSIVE", "Shared", "shared ", "shared\0", "exclusive" * 1000, "\udcff"],
    "deadline_ns": BAD_TIMES,
    "now_ns": BAD_TIMES,
}


def cases(wrong):
    return [
        pytest.param(method, parameter, value, id=f"{method}-{parameter}-{str(value)[:12]!a}")
        for method, parameters in CALLS.items()
        for parameter in parameters
        for value in wrong[parameter]
    ]


def refused(method, parameter, value, error):
    table = LockTable()
    token = table.try_acquire("a", 1, S)
    table.request("a", 2, X)
    table.renew(1, 5)
    before = state(table, "a", "new")
    arguments = {name: GOOD[name] for name in CALLS[method]} | {parameter: value}
    for call in (
        lambda: getattr(table, method)(*arguments.values()),
        lambda: getattr(table, method)(**arguments),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value)
    assert state(table, "a", "new") == before
    assert table.try_acquire("a", 1, S) == token
    return caught.value


@pytest.mark.parametrize(("method", "parameter", "value"), cases(WRONG_TYPES))
def test_wrong_types_are_type_errors_and_change_nothing(method, parameter, value):
    refused(method, parameter, value, TypeError)


@pytest.mark.parametrize(("method", "parameter", "value"), cases(WRONG_VALUES))
def test_wrong_values_are_invalid_input_and_change_nothing(method, parameter, value):
    assert type(refused(method, parameter, value, ValueError)) is InvalidInput


@pytest.mark.parametrize("method", CALLS)
def test_missing_and_unknown_arguments_are_type_errors(method):
    table, good = LockTable(), [GOOD[name] for name in CALLS[method]]
    needed = [value for value in good if value != "intent_shared" or method == "downgrade"]
    for args, keywords in ((needed[:-1], {}), ([*good, 1], {}), (good, {"timeout": 1})):
        with pytest.raises(TypeError):
            getattr(table, method)(*args, **keywords)
    assert len(table) == 0


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_a_seed_changes_no_answer(seed):
    table = LockTable(hash_seed=seed)
    names = ["a", "b" * 17, "c" * 300]
    assert [table.try_acquire(name, 1) for name in names] == [1, 2, 3]
    assert [table.request(name, 2) for name in names[:1]] == [0]
    assert [grant.name for grant in table.release_owner(1)] == ["a"]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_there_are_not(seed):
    with pytest.raises(InvalidInput, match="hash_seed"):
        LockTable(hash_seed=seed)


def test_a_table_takes_nothing_but_a_seed_and_does_not_pickle():
    with pytest.raises(TypeError):
        LockTable(5)
    with pytest.raises(TypeError):
        LockTable(hash_seed="x")
    with pytest.raises(TypeError):
        pickle.dumps(LockTable())


def test_names_that_fail_while_they_are_read_acquire_nothing():
    table = LockTable()

    def names():
        yield "a"
        raise RuntimeError("gone")

    with pytest.raises((RuntimeError, TypeError)):
        table.acquire_many(names(), 1)
    assert len(table) == 0
