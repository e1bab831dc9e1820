"""The lock table's promises one by one; tests/property/test_lock_table_model.py has a model of it.

Method: each test makes one small scene and says what every owner sees.
"""

import gc
import pickle

import pytest

import ringhold
from ringhold import LockTable, Mode
from ringhold.errors import DeadlockError, InvalidInput, LockError, NotOwned

IS, IX, S, U, SIX, X = Mode
COMPATIBLE = {IS: [IS, IX, S, U, SIX], IX: [IS, IX], S: [IS, S, U], U: [IS, S], SIX: [IS], X: []}
OWNER_MAX = 2**63 - 1


def seen(grants):
    return [(grant.name, grant.owner, grant.mode) for grant in grants]


def state(table, *names):
    return len(table), [(table.holders(name), table.waiters(name)) for name in names]


# Modes


def test_the_modes_and_their_order():
    assert [mode.name for mode in Mode] == [
        *("INTENT_SHARED", "INTENT_EXCLUSIVE", "SHARED", "UPDATE"),
        *("SHARED_INTENT_EXCLUSIVE", "EXCLUSIVE"),
    ]
    assert ringhold.Mode is Mode
    assert all(pickle.loads(pickle.dumps(mode)) is mode for mode in Mode)


@pytest.mark.parametrize("held", Mode)
@pytest.mark.parametrize("asked", Mode)
def test_two_owners_hold_together_exactly_what_is_compatible(held, asked):
    table = LockTable()
    table.try_acquire("a", 1, held)
    together = asked in COMPATIBLE[held]
    assert bool(table.try_acquire("a", 2, asked)) == together
    table.request("b", 1, held)
    assert bool(table.request("b", 2, asked)) == together
    table.try_acquire("c", 1, held)
    assert (table.acquire_many(["d", "c"], 3, asked) is not None) == together


@pytest.mark.parametrize(
    ("held", "asked", "both"),
    [
        *((IX, S, SIX), (U, IX, SIX), (S, U, U), (IS, IX, IX), (IS, S, S), (IS, U, U)),
        *((SIX, U, SIX), (SIX, S, SIX), (SIX, IX, SIX), (IS, SIX, SIX), (IX, IX, IX)),
        *((mode, X, X) for mode in Mode),
        *((mode, mode, mode) for mode in Mode),
    ],
)
def test_asking_again_gives_the_weakest_mode_that_covers_both(held, asked, both):
    for first, second in ((held, asked), (asked, held)):
        table = LockTable()
        token = table.try_acquire("a", 1, first)
        again = table.try_acquire("a", 1, second)
        assert table.mode("a", 1) is both
        assert (again == token) == (first is both)
        assert again >= token


@pytest.mark.parametrize("mode", Mode)
def test_strings_of_modes_will_do_everywhere(mode):
    table, text = LockTable(), mode.name.lower()
    assert table.try_acquire("a", 1, text) > 0
    assert table.request("b", 1, mode=text) > 0
    assert len(table.acquire_many(["c", "d"], 1, text)) == 2
    assert [table.mode(name, 1) for name in "abcd"] == [mode] * 4
    assert table.downgrade("a", 1, text) == []
    assert table.mode("a", 1) is mode


def test_exclusive_is_the_mode_of_whoever_names_none():
    table = LockTable()
    table.try_acquire("a", 1)
    table.request("b", 1)
    table.acquire_many(["c"], 1)
    assert [table.mode(name, 1) for name in "abc"] == [X] * 3


def test_arguments_go_by_name_too():
    table = LockTable()
    assert table.try_acquire(name="a", owner=1, mode="shared") > 0
    assert table.request(name="a", owner=2, mode=X) == 0
    assert table.acquire_many(names=["b"], owner=1, mode=S) is not None
    assert table.downgrade(name="a", owner=1, mode=IS) == []
    assert table.cancel(name="a", owner=2) == []
    assert table.mode(name="a", owner=1) is IS
    assert table.holders(name="a") == [(1, IS)]
    assert table.waiters(name="a") == []
    table.renew(owner=1, deadline_ns=5)
    assert table.expire(now_ns=5) == []
    assert table.release(name="a", owner=1) == []
    assert table.release_owner(owner=1) == []


# Tokens and counts


def test_tokens_only_grow_over_all_names_and_all_ways():
    table, tokens = LockTable(), []
    for round_ in range(50):
        tokens.append(table.try_acquire(f"a{round_ % 7}", 1))
        tokens.append(table.request("b", 2, S))
        tokens += table.acquire_many(["c", "d"], 3)
        tokens.append(table.request("b", 2, X))
        assert table.request("b", 4) == 0
        tokens += [grant.token for grant in table.release_owner(2)]
        for owner in (1, 3, 4):
            table.release_owner(owner)
    assert tokens[0] > 0
    assert all(type(token) is int for token in tokens)
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 50 * 6


def test_what_is_held_is_counted_and_keeps_its_token():
    table = LockTable()
    token = table.try_acquire("a", 1, X)
    assert table.try_acquire("a", 1, S) == token
    assert table.request("a", 1) == token
    assert table.acquire_many(["a", "a"], 1) == [token, token]
    assert table.request("a", 2) == 0
    for _ in range(4):
        assert table.release("a", 1) == []
        assert table.mode("a", 1) is X
    assert seen(table.release("a", 1)) == [("a", 2, X)]
    assert table.mode("a", 1) is None


def test_what_was_let_go_comes_back_with_a_new_token():
    table = LockTable()
    token = table.try_acquire("a", 1)
    table.release("a", 1)
    assert table.try_acquire("a", 1) > token


def test_an_upgrade_counts_and_stays_until_the_count_is_nought():
    table = LockTable()
    shared = table.request("a", 1, S)
    exclusive = table.request("a", 1, X)
    assert exclusive > shared
    assert table.request("a", 1, S) == exclusive
    table.release("a", 1)
    table.release("a", 1)
    assert table.mode("a", 1) is X
    table.release("a", 1)
    assert len(table) == 0


def test_a_hundred_thousand_acquisitions_take_as_many_releases():
    table = LockTable()
    for _ in range(100_000):
        table.try_acquire("a", 1)
    for _ in range(99_999):
        table.release("a", 1)
    assert table.mode("a", 1) is X
    table.release("a", 1)
    with pytest.raises(NotOwned):
        table.release("a", 1)


# Queues


def test_waiters_come_in_their_order_and_batches_together():
    table = LockTable()
    table.request("a", 1, X)
    asked = [(2, S), (3, U), (4, IS), (5, X), (6, S), (7, S)]
    for owner, mode in asked:
        assert table.request("a", owner, mode) == 0
    assert table.waiters("a") == asked
    assert table.holders("a") == [(1, X)]
    grants = table.release("a", 1)
    assert seen(grants) == [("a", 2, S), ("a", 3, U), ("a", 4, IS)]
    assert [g.token for g in grants] == sorted({g.token for g in grants})
    assert table.waiters("a") == asked[3:]
    assert table.release("a", 2) == table.release("a", 4) == []
    assert seen(table.release("a", 3)) == [("a", 5, X)]
    assert seen(table.release("a", 5)) == [("a", 6, S), ("a", 7, S)]


def test_those_who_are_served_pass_only_waiters_that_they_do_not_hinder():
    table = LockTable()
    table.request("a", 1, X)
    for owner, mode in ((2, S), (3, IX), (4, IS), (5, S), (6, IX)):
        assert table.request("a", owner, mode) == 0
    assert seen(table.release("a", 1)) == [("a", 2, S), ("a", 4, IS)]
    assert table.waiters("a") == [(3, IX), (5, S), (6, IX)]
    assert seen(table.release("a", 2)) == [("a", 3, IX)]
    assert table.waiters("a") == [(5, S), (6, IX)]


def test_a_reader_does_not_pass_a_writer_that_waits():
    table = LockTable()
    table.request("a", 1, S)
    assert table.request("a", 2, X) == 0
    assert table.try_acquire("a", 3, S) == 0
    assert table.acquire_many(["b", "a"], 3, S) is None
    assert table.request("a", 3, S) == 0
    assert table.waiters("a") == [(2, X), (3, S)]
    assert table.waiters("b") == table.holders("b") == []


def test_whoever_hinders_no_waiter_passes():
    table = LockTable()
    table.request("a", 1, S)
    assert table.request("a", 2, IX) == 0
    for owner, way in ((3, table.try_acquire), (4, table.request)):
        assert way("a", owner, IS) > 0
    assert table.acquire_many(["a"], 5, IS) is not None
    assert table.waiters("a") == [(2, IX)]


def test_trying_leaves_no_trace():
    table = LockTable()
    table.request("a", 1)
    before = state(table, "a")
    assert table.try_acquire("a", 2, IS) == 0
    assert state(table, "a") == before
    assert table.try_acquire("b", 2) > 0


def test_an_upgrade_goes_before_everybody_who_holds_nothing():
    table = LockTable()
    table.request("a", 1, S)
    table.request("a", 2, S)
    assert table.request("a", 3, S) > 0
    assert table.request("a", 4, X) == 0
    assert table.request("a", 1, U) > 0
    assert table.request("a", 1, X) == 0
    assert table.waiters("a") == [(1, X), (4, X)]
    assert table.release("a", 2) == []
    assert seen(table.release("a", 3)) == [("a", 1, X)]
    assert table.waiters("a") == [(4, X)]


def test_of_two_upgrades_the_earlier_goes_first():
    table = LockTable()
    for owner in (1, 2):
        table.request("a", owner, IS)
    table.request("a", 3, S)
    assert table.request("a", 4, X) == 0
    assert table.request("a", 2, IX) == 0
    assert table.request("a", 1, IX) == 0
    assert table.waiters("a") == [(2, IX), (1, IX), (4, X)]
    assert seen(table.release("a", 3)) == [("a", 2, IX), ("a", 1, IX)]


def test_an_upgrade_of_the_only_holder_is_granted_past_the_queue():
    table = LockTable()
    token = table.request("a", 1, S)
    assert table.request("a", 2, X) == 0
    upgraded = table.request("a", 1, X)
    assert upgraded > token
    assert table.holders("a") == [(1, X)]
    assert table.waiters("a") == [(2, X)]


def test_an_upgrade_does_not_pass_an_earlier_one_in_its_way():
    table = LockTable()
    for owner, mode in ((1, IS), (2, IS), (3, IX)):
        table.request("a", owner, mode)
    assert table.request("a", 1, S) == 0
    assert table.try_acquire("a", 2, IX) == 0
    assert table.request("a", 2, IX) == 0
    assert seen(table.release("a", 3)) == [("a", 1, S)]
    assert table.waiters("a") == [(2, IX)]


def test_whoever_waits_may_try_for_other_names_and_for_what_it_holds():
    table = LockTable()
    token = table.request("a", 1)
    table.request("b", 2)
    assert table.request("b", 1) == 0
    assert table.try_acquire("c", 1) > 0
    assert table.acquire_many(["d", "e"], 1) is not None
    assert table.try_acquire("a", 1, S) == token


def test_more_of_a_name_that_is_waited_for_is_not_to_be_had():
    table = LockTable()
    table.request("a", 1, S)
    assert table.request("a", 2, IX) == 0
    assert table.try_acquire("a", 2, IS) == 0
    assert table.acquire_many(["b", "a"], 2, IS) is None
    assert table.holders("a") == [(1, S)]
    # Neither for an upgrade that waits.
    table.request("c", 1, IS)
    table.request("c", 3, S)
    token = table.request("c", 4, IS)
    assert table.request("c", 4, X) == 0
    assert table.try_acquire("c", 4, S) == 0
    assert table.try_acquire("c", 4, IS) == token


def test_an_upgrade_passes_nobody_while_its_owner_waits_elsewhere():
    """Whoever it passed would wait for it, and here holds what its owner waits for."""
    table = LockTable()
    table.request("a", 1, IS)
    table.request("a", 2, S)
    table.request("b", 3)
    assert table.request("a", 3, IX) == 0
    assert table.request("b", 1) == 0
    assert table.try_acquire("a", 1, S) == 0
    assert table.acquire_many(["c", "a"], 1, S) is None
    table.cancel("b", 1)
    assert table.try_acquire("a", 1, S) > 0


def test_a_waiter_that_gives_up_lets_those_behind_it_in():
    table = LockTable()
    table.request("a", 1, S)
    table.request("a", 2, X)
    table.request("a", 3, S)
    assert table.cancel("b", 2) == table.cancel("a", 1) == table.cancel("a", 9) == []
    assert seen(table.cancel("a", 2)) == [("a", 3, S)]
    assert table.cancel("a", 2) == []
    assert table.waiters("a") == []
    assert table.request("b", 2) > 0


def test_an_upgrade_that_is_cancelled_leaves_what_was_held():
    table = LockTable()
    token = table.request("a", 1, S)
    table.request("a", 2, S)
    assert table.request("a", 1, X) == 0
    assert table.try_acquire("a", 3, S) == 0
    assert table.cancel("a", 1) == []
    assert table.mode("a", 1) is S
    assert table.request("a", 1, S) == token
    assert table.release("a", 1) == table.release("a", 1) == []
    assert table.mode("a", 1) is None


def test_an_owner_waits_for_one_name_at_a_time():
    table = LockTable()
    table.request("a", 1)
    table.request("b", 1)
    assert table.request("a", 2) == 0
    for name in ("a", "b", "free"):
        with pytest.raises(InvalidInput):
            table.request(name, 2)
    assert state(table, "a", "b", "free") == (2, [([(1, X)], [(2, X)]), ([(1, X)], []), ([], [])])
    table.cancel("a", 2)
    assert table.request("free", 2) > 0


def test_nobody_starves_behind_readers_that_come_for_ever():
    """Readers overlap all the time; the writer waits for those before it and for no other."""
    table = LockTable()
    table.request("a", 1, S)
    assert table.request("a", 1000, X) == 0
    for reader in range(2, 200):
        assert table.request("a", reader, S) == 0
    assert seen(table.release("a", 1)) == [("a", 1000, X)]
    assert len(table.release("a", 1000)) == 198


def test_a_thousand_waiters_get_their_turn_in_order():
    table, turns = LockTable(), list(range(2, 1002))
    table.request("a", 1)
    for owner in turns:
        assert table.request("a", owner) == 0
    assert [owner for owner, _ in table.waiters("a")] == turns
    order, last = [], 1
    for _ in turns:
        (grant,) = table.release("a", last)
        last = grant.owner
        order.append(last)
    assert order == turns
    table.release("a", last)
    assert len(table) == 0


# Release, downgrade, many, deadlines


def test_releasing_what_is_not_held_is_refused_and_changes_nothing():
    table = LockTable()
    table.request("ä", 1)
    table.request("ä", 2)
    before = state(table, "ä")
    for name, owner in (("ä", 2), ("ä", 3), ("b", 1)):
        for call in (table.release, lambda n, o: table.downgrade(n, o, S)):
            with pytest.raises(NotOwned) as caught:
                call(name, owner)
            assert caught.value.name == name
            assert repr(name) in str(caught.value)
            assert isinstance(caught.value, LockError | RuntimeError)
    assert state(table, "ä") == before


def test_a_hundred_thousand_owners_share_a_name_and_each_can_go():
    table, owners = LockTable(), range(1, 100_001)
    for owner in owners:
        assert table.try_acquire("a", owner, IS) > 0
    assert [owner for owner, _ in table.holders("a")] == list(owners)
    for owner in owners:
        table.release_owner(owner)
        assert table.mode("a", owner) is None
    assert len(table) == 0


def test_an_owner_that_goes_loses_everything_and_everybody_behind_it_comes():
    table = LockTable()
    for name in ("a", "b"):
        table.request(name, 1)
        table.request(name, 1)
    table.request("a", 2)
    table.request("b", 3)
    table.request("c", 9, S)
    table.request("c", 1, X)
    table.request("c", 4, S)
    grants = table.release_owner(1)
    assert sorted(seen(grants)) == [("a", 2, X), ("b", 3, X), ("c", 4, S)]
    assert table.release_owner(1) == []
    assert table.mode("a", 1) is None
    assert table.waiters("c") == []
    assert len(table) == 3


def test_an_upgrade_whose_hold_is_let_go_still_waits_at_its_place():
    table = LockTable()
    table.request("a", 1, S)
    table.request("a", 2, S)
    assert table.request("a", 3, X) == table.request("a", 1, X) == 0
    assert table.release("a", 1) == []
    assert table.mode("a", 1) is None
    assert table.waiters("a") == [(1, X), (3, X)]
    assert seen(table.release("a", 2)) == [("a", 1, X)]
    assert seen(table.release("a", 1)) == [("a", 3, X)]


def test_a_downgrade_lets_in_whoever_then_fits_and_keeps_token_and_count():
    table = LockTable()
    token = table.request("a", 1, X)
    table.request("a", 1, X)
    table.request("a", 2, S)
    table.request("a", 3, S)
    table.request("a", 4, X)
    assert seen(table.downgrade("a", 1, S)) == [("a", 2, S), ("a", 3, S)]
    assert table.request("a", 1, S) == token
    assert table.downgrade("a", 1, S) == []
    for _ in range(3):
        assert table.mode("a", 1) is S
        table.release("a", 1)
    assert table.mode("a", 1) is None


@pytest.mark.parametrize(
    ("held", "asked"),
    [(S, X), (IS, S), (IX, S), (S, IX), (U, SIX), (U, IX), (SIX, X), (IX, U), (S, U)],
)
def test_a_downgrade_never_strengthens(held, asked):
    table = LockTable()
    table.request("a", 1, held)
    with pytest.raises(InvalidInput):
        table.downgrade("a", 1, asked)
    assert table.mode("a", 1) is held


def test_many_are_acquired_all_or_none():
    table = LockTable()
    held = table.request("a", 1, S)
    table.request("z", 2)
    before = state(table, "a", "b", "z")
    assert table.acquire_many(["b", "a", "z"], 1) is None
    assert table.acquire_many(["z", "b"], 1) is None
    assert state(table, "a", "b", "z") == before
    table.release("z", 2)
    tokens = table.acquire_many(("z", "a", "b", "a", "z"), 1)
    assert len(tokens) == 5
    assert (tokens[0], tokens[1]) == (tokens[4], tokens[3])
    assert len({*tokens, held}) == 4
    for name, count in (("z", 2), ("b", 1), ("a", 3)):
        for _ in range(count):
            assert table.mode(name, 1) is X
            table.release(name, 1)
        assert table.mode(name, 1) is None
    assert len(table) == 0


def test_many_that_are_held_keep_their_tokens():
    table = LockTable()
    tokens = table.acquire_many([f"n{i}" for i in range(1000)], 1, S)
    assert len(set(tokens)) == 1000
    assert table.acquire_many([f"n{i}".encode() for i in range(1000)], 1, IS) == tokens
    assert len(table) == 1000


def test_a_deadline_may_come_before_the_first_acquisition():
    table = LockTable()
    table.renew(1, 10)
    table.request("a", 1)
    assert table.try_acquire("b", 1) > 0
    assert table.expire(11) == []
    assert len(table) == 0


def test_deadlines_are_past_only_when_now_is_greater():
    table = LockTable()
    for owner, deadline in ((1, 10), (2, 20)):
        table.request(f"n{owner}", owner)
        assert table.renew(owner, deadline) is None
    table.request("n1", 3)
    assert table.expire(10) == []
    assert seen(table.expire(11)) == [("n1", 3, X)]
    table.renew(2, 30)
    assert table.expire(29) == table.expire(30) == []
    assert table.mode("n2", 2) is X
    table.renew(2, 5)
    assert table.expire(6) == []
    assert table.mode("n2", 2) is None
    assert table.mode("n1", 3) is X
    assert table.expire(OWNER_MAX) == []
    assert table.mode("n1", 3) is X


def test_everybody_expired_is_gone_before_anybody_is_granted():
    table = LockTable()
    table.request("a", 1)
    table.request("b", 2)
    table.request("a", 2)
    table.request("a", 3)
    table.renew(1, 10)
    table.renew(2, 10)
    assert seen(table.expire(11)) == [("a", 3, X)]
    assert len(table) == 1


def test_a_deadline_goes_with_the_last_thing_its_owner_has():
    table = LockTable()
    table.request("a", 1)
    table.renew(1, 10)
    table.release("a", 1)
    table.request("a", 1)
    assert table.expire(11) == []
    assert table.mode("a", 1) is X


def test_a_wait_alone_keeps_a_deadline():
    table = LockTable()
    table.request("a", 1)
    table.request("b", 2)
    table.renew(2, 10)
    assert table.request("a", 2) == 0
    table.release("b", 2)
    assert table.waiters("a") == [(2, X)]
    assert table.expire(11) == []
    assert table.waiters("a") == []


def test_the_length_is_the_names_held_or_waited_for():
    table = LockTable()
    assert len(table) == 0
    assert table.holders("a") == table.waiters("a") == []
    assert table.mode("a", 1) is None
    assert len(table) == 0
    table.request("a", 1)
    table.request("a", 2)
    table.request("b", 1)
    assert len(table) == 2
    table.release_owner(1)
    assert len(table) == 1
    for i in range(5000):
        table.try_acquire(f"n{i}", 7)
    assert len(table) == 5001
    table.release_owner(7)
    table.release("a", 2)
    assert len(table) == 0


def test_tables_know_nothing_of_each_other():
    tables = [LockTable() for _ in range(10)]
    for table in tables:
        assert table.try_acquire("a", 1) > 0
    del tables[5:]
    gc.collect()
    assert all(table.mode("a", 1) is X for table in tables)


def test_a_deadlock_is_refused_and_leaves_everything_as_it_was():
    table = LockTable()
    table.request("a", 1)
    table.request("ä", 2)
    table.request("ä", 1)
    before = state(table, "a", "ä")
    with pytest.raises(DeadlockError) as caught:
        table.request("a", 2)
    assert caught.value.name == "a"
    assert repr("a") in str(caught.value)
    assert not caught.value.retryable
    assert state(table, "a", "ä") == before
    assert seen(table.release("ä", 2)) == [("ä", 1, X)]


def test_a_circle_of_ten_thousand_owners_is_found():
    table, count = LockTable(), 10_000
    for owner in range(1, count + 1):
        table.request(f"n{owner}", owner)
    for owner in range(1, count):
        assert table.request(f"n{owner + 1}", owner) == 0
    with pytest.raises(DeadlockError):
        table.request("n1", count)
    table.release("n1", 1)
    assert table.request("n1", count) > 0


def test_a_net_of_more_paths_than_could_be_walked_is_searched_in_time():
    """Sixty layers of two owners each; both of a layer wait for both of the next."""
    table = LockTable()
    for layer in range(60):
        for owner in (2 * layer + 1, 2 * layer + 2):
            table.request(f"n{layer}", owner, S)
    for layer in reversed(range(1, 60)):
        for owner in (2 * layer - 1, 2 * layer):
            assert table.request(f"n{layer}", owner, X) == 0
    with pytest.raises(DeadlockError):
        table.request("n0", 120, X)
    assert table.request("free", 120, X) > 0


def test_errors_pickle_with_their_data():
    table = LockTable()
    table.request("\udcff", 1, S)
    table.request("\udcff", 2, S)
    table.request("\udcff", 1, X)
    for call, error in (
        (lambda: table.release("\udcff", 3), NotOwned),
        (lambda: table.request("\udcff", 2, X), DeadlockError),
        (lambda: table.request("", 5), InvalidInput),
    ):
        with pytest.raises(error) as caught:
            call()
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is error
        assert str(again) == str(caught.value)
        assert vars(again) == vars(caught.value)
        assert error is InvalidInput or again.name == "\udcff"


def test_a_grant_tells_name_owner_token_and_mode():
    table = LockTable()
    first = table.request(b"\xff\0", OWNER_MAX, "shared")
    table.request(b"\xff\0", 7, "exclusive")
    (grant,) = table.release(b"\xff\0", OWNER_MAX)
    assert (grant.name, grant.owner, grant.mode) == ("\udcff\0", 7, X)
    assert type(grant.token) is int
    assert grant.token > first
    assert table.request(b"\xff\0", 7) == grant.token
    with pytest.raises((AttributeError, TypeError)):
        grant.token = 5


# Finalizers


class Releases:
    """Gives its lock back when the collector finds it, in a circle with itself."""

    def __init__(self, table, name, owner):
        self.give_back = lambda: table.release(name, owner)
        self.me = self

    def __del__(self):
        self.give_back()


def test_a_collection_in_the_middle_of_a_call_does_not_take_its_grants():
    table = LockTable()
    for name, holder in (("a", 1), ("b", 3)):
        table.try_acquire(name, holder)
        table.request(name, holder + 1)
    gc.collect()
    threshold = gc.get_threshold()
    gc.disable()
    try:
        Releases(table, "b", 3)
        keep = [[] for _ in range(1000)]  # no list is left over: the next one is allocated
        gc.set_threshold(1)
        gc.enable()
        got = table.release("a", 1)
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    del keep
    gc.collect()
    assert seen(got) == [("a", 2, X)]
    assert state(table, "b") == (2, [([(4, X)], [])])
