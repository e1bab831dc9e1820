"""The lock table equals a model that is too plain to be wrong, and its waiting always ends.

Method: every call goes to the table and to the model, and outcome, holders, waiters, modes, tokens
and length are compared after each; circles of waiting are built on purpose, one wait short of
closing and closed. A second oracle needs no graph: when all who do not wait let go of everything,
everybody is granted, or a deadlock was let in.
"""

import copy
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_table_model import COVER, IS, IX, MEMBER, MODES, Model, Pair, S, X

from ringhold import Mode
from ringhold.errors import DeadlockError

names = st.sampled_from(["a", "b", "c"])
owners = st.integers(1, 6)
modes = st.sampled_from(MODES)
times = st.integers(0, 10)
operations = st.one_of(
    st.tuples(st.just("request"), names, owners, modes),
    st.tuples(st.just("request"), names, owners, modes),
    st.tuples(st.just("try_acquire"), names, owners, modes),
    st.tuples(st.just("release"), names, owners),
    st.tuples(st.just("release_owner"), owners),
    st.tuples(st.just("cancel"), names, owners),
    st.tuples(st.just("acquire_many"), st.lists(names, max_size=4), owners, modes),
    st.tuples(st.just("downgrade"), names, owners, modes),
    st.tuples(st.just("renew"), owners, times),
    st.tuples(st.just("expire"), times),
)


@settings(max_examples=500)
@given(st.lists(operations, max_size=40))
def test_every_sequence_of_operations_does_what_the_model_does(sequence):
    pair = Pair()
    for method, *args in sequence:
        pair.call(method, *args)
        pair.check_all("abc", range(1, 7))


@settings(max_examples=200)
@given(st.lists(operations, max_size=40))
def test_nobody_waits_once_all_others_have_let_go(sequence):
    """No deadlock was let in, whatever a graph says."""
    pair = Pair()
    for method, *args in sequence:
        pair.call(method, *args)
    let_everybody_go(pair)


def let_everybody_go(pair):
    while len(pair.table):
        free = pair.model.free_owners()
        assert free, "a deadlock was let in"
        for owner in sorted(free):
            pair.release_owner(owner)


class Reckless(Model):
    """A model that lets deadlocks happen."""

    def __init__(self, model):
        super().__init__()
        self.holds, self.queues = copy.deepcopy((model.holds, model.queues))

    def waits_for_itself(self, owner):
        return False


@settings(max_examples=200)
@given(st.lists(operations, max_size=40))
def test_whoever_was_refused_would_have_waited_for_ever(sequence):
    pair = Pair()
    for method, *args in sequence:
        if isinstance(pair.call(method, *args), DeadlockError):
            doomed = Reckless(pair.model)
            assert doomed.request(*args) is None
            while free := doomed.free_owners():
                for owner in free:
                    doomed.release_owner(owner)
            assert doomed.wait_of(args[1])


# A million operations


SHARES = {"request": 32, "try_acquire": 14, "release": 26, "cancel": 5, "downgrade": 6}
SHARES |= {"acquire_many": 5, "release_owner": 4, "renew": 5, "expire": 3}


class Workload:
    """Random operations that mostly mean something: what is held is released, the free request."""

    def __init__(self, rng, names, owners, modes=MODES):
        self.modes = modes
        self.rng, self.names, self.owners = rng, names, range(1, owners + 1)
        self.pair, self.now = Pair(), 0
        self.kinds = [kind for kind, share in SHARES.items() for _ in range(share)]

    def pick(self, choices):
        return choices[int(self.rng.random() * len(choices))]

    def step(self):
        model, kind = self.pair.model, self.pick(self.kinds)
        name, owner = self.pick(self.names), self.pick(self.owners)
        sensible = self.rng.random() < 0.9
        if sensible and kind in ("request", "acquire_many") and model.wait_of(owner):
            owner = next((other for other in self.owners if not model.wait_of(other)), owner)
        elif sensible and kind in ("release", "downgrade") and model.holds.get(name):
            owner = self.pick(list(model.holds[name]))
        elif sensible and kind == "cancel":
            name = next((other for other in self.names if model.queues.get(other)), name)
            owner = self.pick([waiter.owner for waiter in model.queues.get(name, ())] or [owner])
        return kind, self.pair.call(kind, *self.arguments(kind, name, owner))

    def arguments(self, kind, name, owner):
        if kind in ("request", "try_acquire", "downgrade"):
            return name, owner, self.pick(self.modes)
        if kind == "acquire_many":
            names = [self.pick(self.names) for _ in range(self.pick((1, 2, 3, 4)))]
            return names, owner, self.pick(self.modes)
        if kind in ("release", "cancel"):
            return name, owner
        if kind == "release_owner":
            return (owner,)
        self.now += self.pick((0, 1, 2, 3))
        return (owner, self.now + self.pick(range(-5, 40))) if kind == "renew" else (self.now,)


def kind_of(result):
    if isinstance(result, Exception):
        return type(result).__name__
    if isinstance(result, list):
        return f"list of {min(len(result), 2)}"
    return result if result is None else bool(result)


def random_run(seed, count):
    rng, outcomes = random.Random(seed), Counter()
    for segment in range(100):
        padding = rng.choice(["", "-" * 30, "-" * 500])
        names = [f"n{i}{padding}" for i in range(rng.randint(1, 4))]
        workload = Workload(rng, names, rng.randint(2, 8))
        for step in range(count // 100):
            try:
                kind, result = workload.step()
            except AssertionError as error:
                error.add_note(f"seed {seed}, segment {segment}, operation {step}")
                raise
            outcomes[kind, kind_of(result)] += 1
            if step % 100 == 0:
                workload.pair.check_all(names, workload.owners)
        let_everybody_go(workload.pair)
    return outcomes


@pytest.mark.timeout(900)
def test_a_million_random_operations_equal_the_model():
    outcomes = random_run(seed=3, count=10**6)
    # What the run is for has happened, and often.
    for kind in ("request", "try_acquire"):
        assert min(outcomes[kind, True], outcomes[kind, False]) > 5000
    assert outcomes["request", "InvalidInput"] > 500
    assert outcomes["request", "DeadlockError"] > 5000
    for kind in ("release", "release_owner", "cancel", "downgrade", "expire"):
        for grants in ("list of 0", "list of 1", "list of 2"):
            assert outcomes[kind, grants] > 50
    assert min(outcomes["release", "NotOwned"], outcomes["downgrade", "NotOwned"]) > 500
    assert min(outcomes["acquire_many", kind] for kind in ("list of 2", None)) > 1000


@pytest.mark.parametrize(
    ("names", "owners", "modes", "count", "holders"),
    [
        (300, 30, MODES, 6000, 3),
        (40, 60, MODES, 6000, 3),
        (2, 600, [IS], 6000, 300),
        (2, 600, [IS] * 200 + [IX, S, X], 3000, 50),
    ],
)
def test_crowds_of_names_and_of_owners_equal_the_model(names, owners, modes, count, holders):
    rng, most = random.Random(names), 0
    names = [f"n{i}" * rng.choice((1, 9, 99)) for i in range(names)]
    workload = Workload(rng, names, owners, modes)
    for _ in range(count):
        workload.step()
        most = max(most, *map(len, workload.pair.model.holds.values()), 0)
    assert most >= holders
    workload.pair.check_all(workload.names, workload.owners)
    let_everybody_go(workload.pair)


# Modes


@pytest.mark.parametrize("held", MODES)
@pytest.mark.parametrize("asked", MODES)
def test_every_pair_of_modes_between_two_owners_and_within_one(held, asked):
    pair = Pair()
    pair.request("a", 1, held)
    pair.try_acquire("a", 2, asked)
    pair.request("a", 2, asked)
    pair.try_acquire("a", 3, held)
    pair.release("a", 1)
    alone = Pair()
    alone.request("a", 1, held)
    alone.request("a", 1, asked)
    assert alone.table.mode("a", 1) is MEMBER[COVER[held, asked]]
    alone.release("a", 1)
    assert alone.table.mode("a", 1) is MEMBER[COVER[held, asked]]
    alone.downgrade("a", 1, asked)
    alone.release("a", 1)
    assert len(alone.table) == 0


@pytest.mark.parametrize("held", MODES)
@pytest.mark.parametrize("first", MODES)
def test_every_triple_of_a_holder_a_waiter_and_a_newcomer(held, first):
    for asked in MODES:
        for arrive in ("request", "try_acquire"):
            pair = Pair()
            pair.request("a", 1, held)
            pair.request("a", 2, first)
            pair.call(arrive, "a", 3, asked)
            pair.request("a", 4, asked)
            for owner in (1, 2, 3, 4):
                pair.release_owner(owner)
            assert len(pair.table) == 0


@pytest.mark.parametrize("held", MODES)
@pytest.mark.parametrize("asked", MODES)
def test_every_upgrade_beside_every_holder_and_past_every_waiter(held, asked):
    for other in MODES:
        for waiting in MODES:
            pair = Pair()
            pair.request("a", 1, held)
            pair.try_acquire("a", 2, other)
            pair.request("a", 3, waiting)
            pair.try_acquire("a", 1, asked)
            pair.request("a", 1, asked)
            pair.release_owner(2)
            pair.release_owner(1)
            pair.release_owner(3)
            assert len(pair.table) == 0


# Circles of waiting

# A circle is a list of links. By a "hold" link an owner waits for a name that the next one holds.
# By an "order" link it waits only because the next one stands before it in the queue of a name
# that the one after holds; so no two of these follow each other.


def circles(owners):
    shapes = [[]]
    for _ in range(owners):
        shapes = [[*shape, link] for shape in shapes for link in ("hold", "order")]
    rounds = [(shape, [*shape[1:], shape[0]]) for shape in shapes]
    return [
        shape
        for shape, following in rounds
        if ("order", "order") not in zip(shape, following, strict=True)
        and (owners > 2 or "order" not in shape)
    ]


def requests_of(shape):
    """What is held and what is requested, in pairs that a circle needs in this order."""
    count, held, chains = len(shape), [], []
    for place, link in enumerate(shape):
        owner, following = place + 1, (place + 1) % count + 1
        after = (place + 2) % count + 1
        name = f"n{place}"
        if link == "order":
            held.append((name, after, S))
            chains.append([(name, following, X), (name, owner, S)])
        elif shape[place - 1] != "order":
            held.append((name, following, X))
            chains.append([(name, owner, X)])
    return held, chains


@pytest.mark.parametrize("count", range(2, 9))
def test_a_circle_is_refused_to_whoever_closes_it_and_to_nobody_before(count):
    rng = random.Random(count)
    shapes = circles(count)
    assert any("order" in shape for shape in shapes) == (count > 2)
    for shape in shapes:
        held, chains = requests_of(shape)
        for _ in range(3):
            pair = Pair()
            for name, owner, mode in held:
                assert pair.request(name, owner, mode) > 0
            pending = [list(chain) for chain in chains]
            while sum(map(len, pending)) > 1:
                chain = rng.choice([chain for chain in pending if chain])
                assert pair.request(*chain.pop(0)) == 0
            ((name, owner, mode),) = [wanted for chain in pending for wanted in chain]
            assert isinstance(pair.request(name, owner, mode), DeadlockError)
            assert isinstance(pair.request(name, owner, mode), DeadlockError)
            assert pair.try_acquire(name, owner, mode) == 0
            everybody = range(1, count + 1)
            pair.check_all([f"n{i}" for i in range(count)], everybody)
            pair.release_owner(owner)
            let_everybody_go(pair)


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("way", ["release", "release_owner", "cancel", "downgrade", "expire"])
def test_a_circle_that_was_opened_elsewhere_is_not_refused(count, way):
    """Each owner i holds name i and waits for name i + 1; one link is taken out again."""
    pair = Pair()
    for i in range(1, count + 1):
        pair.request(f"n{i}", i, X)
    for i in range(1, count):
        pair.request(f"n{i + 1}", i, S)
    if way == "release":
        pair.release("n1", 1)
    elif way == "downgrade":
        pair.downgrade("n1", 1, S)
    elif way == "cancel":
        pair.cancel(f"n{count}", count - 1)
    elif way == "release_owner":
        pair.release_owner(1)
    else:
        pair.renew(1, 5)
        pair.expire(6)
    assert not isinstance(pair.request("n1", count, S), DeadlockError)
    let_everybody_go(pair)


@pytest.mark.parametrize("count", range(2, 9))
def test_a_chain_a_star_and_a_net_without_a_circle_are_not_refused(count):
    chain = Pair()
    for i in range(1, count + 1):
        chain.request(f"n{i}", i, X)
    for i in range(1, count):
        assert chain.request(f"n{i + 1}", i, X) == 0
    assert chain.request("n1", count + 1, X) == 0
    let_everybody_go(chain)

    star = Pair()
    for i in range(2, count + 2):
        star.request("shared", i, S)
    assert star.request("shared", 1, X) == 0
    star.request("other", 2, X)
    for i in range(3, count + 2):
        assert star.request("other", i, X) == 0
    let_everybody_go(star)


@pytest.mark.parametrize("count", range(2, 9))
def test_of_the_holders_that_upgrade_all_but_the_first_are_refused(count):
    pair = Pair()
    for owner in range(1, count + 1):
        pair.request("a", owner, S)
    assert pair.request("a", 1, X) == 0
    for owner in range(2, count + 1):
        assert isinstance(pair.request("a", owner, X), DeadlockError)
        assert isinstance(pair.request("a", owner, IX), DeadlockError)
    for owner in range(2, count):
        assert pair.release("a", owner) == []
    (grant,) = pair.release("a", count)
    assert (grant.owner, grant.mode) == (1, Mode.EXCLUSIVE)


def test_an_upgrade_that_steps_before_a_waiter_can_close_a_circle():
    pair = Pair()
    for owner, mode in ((1, IS), (2, IS), (4, S)):
        pair.request("a", owner, mode)
    pair.request("b", 3, X)
    assert pair.request("a", 3, IX) == 0
    assert pair.request("b", 2, S) == 0
    assert isinstance(pair.request("a", 1, X), DeadlockError)
    # Without the wait of owner 2 the same step is none.
    pair.cancel("b", 2)
    assert pair.request("a", 1, X) == 0
    let_everybody_go(pair)


def test_a_wait_behind_compatible_waiters_is_no_link():
    """Owner 3 stands behind owner 2 in a queue, yet waits for owner 1 alone."""
    pair = Pair()
    pair.request("a", 1, X)
    pair.request("b", 3, X)
    assert pair.request("a", 2, S) == 0
    assert pair.request("a", 3, S) == 0
    pair.request("c", 2, S)
    (_, grant) = pair.release("a", 1)
    assert grant.owner == 3
    assert pair.request("b", 2, X) == 0
    let_everybody_go(pair)


def test_two_owners_that_wait_for_a_third_are_no_circle():
    pair = Pair()
    pair.request("a", 1, S)
    pair.request("a", 2, S)
    pair.request("b", 3, X)
    assert pair.request("b", 1, S) == 0
    assert pair.request("b", 2, S) == 0
    assert isinstance(pair.request("a", 3, X), DeadlockError)
    assert pair.request("a", 3, S) > 0
    let_everybody_go(pair)
