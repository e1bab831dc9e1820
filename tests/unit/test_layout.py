"""The layout's promises one by one; that moves are fewest is shown in tests/property.

Method: tables are read partition by partition and counted; hashes come from the Python package
xxhash; bytes are damaged one by one.
"""

import collections
import copy
import doctest
import itertools
import pickle
import threading
import warnings

import pytest
import xxhash

from ringhold.core import Layout, LayoutPlan, _layout
from ringhold.errors import Corrupt, InvalidInput, NotEnoughNodes
from ringhold.types import Node, PlacementWarning


def table(layout):
    return [layout.nodes(p) for p in range(layout.partitions)]


def counts(layout):
    found = collections.Counter(name for row in table(layout) for name in row)
    return {name: found[name] for name in layout.names}


def equal_nodes(count, zones=0, first=0):
    return [Node(f"n{i}", 1.0, f"z{i % zones}" if zones else None) for i in range(first, count)]


# Looking up


def test_a_key_lies_in_the_partition_of_its_top_bits():
    for bits in (4, 5, 12, 20):
        layout = Layout(["a", "b"], replicas=1, partitions=2**bits)
        for key in ("", "ä", "\udcff", "x" * 5000, b"", b"\xff\0"):
            data = key if isinstance(key, bytes) else key.encode("utf-8", "surrogateescape")
            partition = xxhash.xxh3_64_intdigest(data) >> (64 - bits)
            assert layout.partition(key) == layout.partition(data) == partition
            assert layout.lookup(key) == layout.lookup(data) == layout.nodes(partition)


@pytest.mark.parametrize("replicas", [1, 2, 3, 16, 17, 40])
def test_replicas_are_distinct_nodes(replicas):
    layout = Layout(equal_nodes(40), replicas=replicas, partitions=64)
    assert layout.replicas == replicas
    for row in table(layout):
        assert len(row) == len(set(row)) == replicas
        assert set(row) <= set(layout.names)


def test_defaults():
    layout = Layout(["a", "b", "c", "d"])
    assert (layout.replicas, layout.partitions, layout.epoch) == (3, 4096, 1)


def test_the_ways_and_the_order_to_give_nodes_are_no_matter():
    layout = Layout({"a": 1, "b": 1.0, "ä": 1, "\udcff": 1})
    assert layout == Layout(["\udcff", "b", b"\xc3\xa4", "a"])
    assert layout == Layout(iter([Node("b"), Node("ä"), Node("a"), Node("\udcff")]))
    assert layout.names == ("a", "b", "ä", "\udcff")
    assert set(itertools.chain(*table(layout))) == {"a", "b", "ä", "\udcff"}


# Shares and zones


def test_shares_follow_weights_to_within_one():
    weights = {f"n{i}": 0.5 + i % 7 for i in range(50)}
    found = counts(Layout(weights))
    for name, weight in weights.items():
        assert abs(found[name] - 3 * 4096 * weight / sum(weights.values())) < 1


def test_equal_remainders_go_to_smaller_names():
    found = counts(Layout(["a", "b", "c"], replicas=1, partitions=16))
    assert found == {"a": 6, "b": 5, "c": 5}


def test_no_node_holds_a_partition_twice_however_heavy():
    found = counts(Layout({"a": 1000, "b": 1, "c": 1}, replicas=2, partitions=64))
    assert found == {"a": 64, "b": 32, "c": 32}
    found = counts(Layout({"a": 1000, "b": 999, "c": 1}, replicas=3, partitions=64))
    assert found == {"a": 64, "b": 64, "c": 64}


def test_what_sums_to_a_whole_number_is_one():
    # In doubles 16 * 0.1 / 1.6 is not 1; nobody who wrote these weights meant anything else.
    found = counts(Layout({"a": 0.1, "b": 0.3, "c": 1.2}, replicas=1, partitions=16))
    assert found == {"a": 1, "b": 3, "c": 12}


@pytest.mark.parametrize("zones", [3, 4, 7])
def test_with_enough_zones_none_holds_a_partition_twice(zones):
    nodes = equal_nodes(20, zones)
    layout = Layout(nodes)
    for row in table(layout):
        assert len({layout.zones[name] for name in row}) == 3


def test_zones_take_turns_until_they_are_used_up():
    nodes = [Node(name, 1, zone) for name, zone in zip("abcdef", "xxxxyz", strict=True)]
    for replicas, used in [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1])]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layout = Layout(nodes, replicas=replicas, partitions=64)
        assert [w.category for w in caught] == [PlacementWarning] * (replicas > 3)
        for row in table(layout):
            spread = collections.Counter(layout.zones[name] for name in row)
            assert sorted(spread.values(), reverse=True) == used


def test_a_full_zone_shares_out_among_its_nodes():
    nodes = [Node("a", 5, "x"), Node("b", 1, "x"), Node("c", 1, "y"), Node("d", 1, "y")]
    found = counts(Layout(nodes, replicas=2, partitions=60 + 4))
    assert found == {"a": 53, "b": 11, "c": 32, "d": 32}


def test_a_node_without_zone_is_a_zone_of_its_own():
    layout = Layout([Node("a", 9, "x"), Node("b", 9, "x"), Node("c"), Node("d")], partitions=64)
    assert all({"c", "d"} < set(row) for row in table(layout))


def test_drained_nodes_hold_nothing_and_their_zones_do_not_count():
    nodes = [Node("a", 1, "x"), Node("b", 1, "x"), Node("c", 0, "y")]
    with pytest.warns(PlacementWarning, match="2 replicas lie in only 1 zones") as caught:
        layout = Layout(nodes, replicas=2, partitions=16)
    assert caught[0].filename == __file__
    assert counts(layout) == {"a": 16, "b": 16, "c": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # drained nodes alone have zones
        Layout([Node("a"), Node("b"), Node("c", 0, "y")], replicas=2)


def test_copies_and_primaries_are_spread():
    """Against the naive table that turns the list of nodes by one."""
    names = [f"n{i:02}" for i in range(50)]
    cyclic = [tuple(names[(p + i) % 50] for i in range(3)) for p in range(4096)]
    layout = Layout(names)
    later = layout.rebalance([*names[5:], "new1", "new2"]).layout
    renewed = layout
    for i in range(10):
        renewed = renewed.rebalance([*renewed.names[1:], f"x{i}"]).layout

    def partners(rows):
        pairs = collections.Counter(
            frozenset(pair) for row in rows for pair in itertools.combinations(row, 2)
        )
        met = collections.Counter(name for pair in pairs for name in pair)
        return min(met.values()), max(pairs.values())

    assert partners(cyclic) == (4, 164)
    for rows in (table(layout), table(later), table(renewed)):
        fewest, most = partners(rows)
        assert fewest >= 44
        assert most <= 30
    primaries = collections.Counter(row[0] for row in table(layout))
    assert max(primaries.values()) - min(primaries.values()) <= 4


# Rebalancing


def test_the_lower_bound_counts_only_copies_that_can_be_kept():
    """Shares grow, so that of those rounded up none is any use to a node that has fewer."""
    layout = Layout(equal_nodes(11))
    plan = layout.rebalance(equal_nodes(10))
    assert plan.lower_bound == plan.moved == counts(layout)["n10"]


def test_a_node_gives_up_copies_of_all_its_partitions():
    layout = Layout(equal_nodes(20))
    moved = [p for p, _, _ in layout.rebalance(equal_nodes(21)).moves]
    assert 0.35 < sum(p < layout.partitions // 2 for p in moved) / len(moved) < 0.65


def test_weights_that_are_meant_to_be_equal_are():
    layout = Layout({"a": 15, "b": 17}, replicas=1, partitions=32)
    assert counts(layout) == {"a": 15, "b": 17}
    plan = layout.rebalance({"a": 1, "b": 1 + 1e-13})
    assert counts(plan.layout) == {"a": 16, "b": 16}


def test_a_plan_says_what_moves():
    layout = Layout(equal_nodes(10))
    plan = layout.rebalance(equal_nodes(11))
    assert plan.moved == len(plan.moves) == 3 * 4096 // 11
    assert plan.lower_bound == plan.moved
    assert plan.gap == 0
    assert {target for _, _, target in plan.moves} == {"n10"}
    assert plan.moves is plan.moves
    rows = [list(row) for row in table(layout)]
    for partition, source, target in plan.moves:
        rows[partition][rows[partition].index(source)] = target
    assert [tuple(row) for row in rows] == table(plan.layout)
    assert [move[0] for move in plan.moves] == sorted(move[0] for move in plan.moves)


def test_nothing_moves_without_reason():
    layout = Layout(equal_nodes(10, 3))
    plan = layout.rebalance(equal_nodes(10, 3)[::-1])
    assert (plan.moved, plan.moves, plan.gap) == (0, (), 0)
    assert plan.layout.epoch == 2
    assert plan.layout != layout
    assert plan.layout.digest() == layout.digest()


def test_a_drained_node_is_emptied_like_a_removed_one():
    layout = Layout(equal_nodes(10))
    held = counts(layout)["n0"]
    drained = layout.rebalance([Node("n0", 0), *equal_nodes(10, first=1)])
    removed = layout.rebalance(equal_nodes(10, first=1))
    assert drained.moved == removed.moved == held
    assert {source for _, source, _ in removed.moves} == {"n0"}
    assert drained.moves == removed.moves
    assert drained.layout.digest() == removed.layout.digest()
    assert "n0" in drained.layout.names
    assert "n0" not in removed.layout.names


@pytest.mark.parametrize("zones", [0, 3, 6])
def test_several_changes_at_once(zones):
    layout = Layout(equal_nodes(30, zones))
    nodes = [
        Node(node.name, 2.0 if i < 4 else node.weight, node.zone)
        for i, node in enumerate(equal_nodes(33, zones, first=2))
    ]
    plan = layout.rebalance(nodes)
    found = counts(plan.layout)
    total = sum(node.weight for node in nodes)
    if not zones:
        assert plan.gap == 0
        for node in nodes:
            assert abs(found[node.name] - 3 * 4096 * node.weight / total) < 1
    for row in table(plan.layout):
        assert len(set(row)) == 3
        assert not zones or len({plan.layout.zones[name] for name in row}) == 3


def test_a_node_that_changes_its_zone():
    layout = Layout(equal_nodes(9, 3))
    nodes = [Node("n0", 1, "z1"), *equal_nodes(9, 3, first=1)]
    plan = layout.rebalance(nodes)
    for row in table(plan.layout):
        assert len({plan.layout.zones[name] for name in row}) == 3
    assert plan.layout.zones["n0"] == "z1"
    assert counts(plan.layout)["n3"] == 2048


def test_a_zone_that_comes_or_goes():
    layout = Layout(equal_nodes(8, 2), replicas=2)
    more = layout.rebalance([*equal_nodes(8, 2), Node("m", 1, "z9")]).layout
    assert all(len({more.zones[name] for name in row}) == 2 for row in table(more))
    with pytest.warns(PlacementWarning):
        less = layout.rebalance(equal_nodes(8, 2)[::2])
    assert less.layout.epoch == 2
    assert sum(counts(less.layout).values()) == 2 * 4096


def test_large_rebalances_keep_to_the_bounds():
    """2^22 partitions times nodes, weights of many sizes, zones of unequal size."""
    nodes = [Node(f"n{i}", 1 + i % 5, f"z{i % 7 % 5}") for i in range(1024)]
    layout = Layout(nodes)
    plan = layout.rebalance([*nodes[20:], *(Node(f"m{i}", 3, f"z{i % 5}") for i in range(20))])
    assert plan.moved >= plan.lower_bound > 0
    for row in table(plan.layout):
        assert len({plan.layout.zones[name] for name in row}) == 3


def test_a_failed_rebalance_changes_nothing():
    layout = Layout(["a", "b", "c"])
    before = layout.dumps()
    with pytest.raises(NotEnoughNodes) as caught:
        layout.rebalance({"a": 1, "b": 1, "c": 0})
    assert (caught.value.wanted, caught.value.usable) == (3, 2)
    with pytest.raises(InvalidInput, match="'a' is given twice"):
        layout.rebalance(["a", "b", "c", b"a"])
    with pytest.raises(TypeError):
        layout.rebalance("abc")
    assert layout.dumps() == before


# Bytes


def mixed():
    return Layout([Node("a", 2.5, "x"), Node("\udcff", 0), Node("c", 1, ""), "d"], replicas=2)


def test_bytes_keep_everything():
    layout = mixed().rebalance([Node("a", 2.5, "x"), Node("c", 1, ""), "d", "e"]).layout
    again = Layout.loads(layout.dumps())
    assert again == layout
    assert hash(again) == hash(layout)
    assert table(again) == table(layout)
    assert (again.epoch, again.replicas, again.partitions) == (2, 2, 4096)
    assert again.weights == {"a": 2.5, "c": 1.0, "d": 1.0, "e": 1.0}
    assert again.zones == {"a": "x", "c": "", "d": None, "e": None}
    assert again.digest() == layout.digest()
    assert Layout.loads(memoryview(layout.dumps())) == layout


def test_a_layout_read_back_is_rebalanced_the_same():
    layout = mixed()
    plans = [each.rebalance(["a", "c", "d"]) for each in (layout, Layout.loads(layout.dumps()))]
    assert plans[0].moves == plans[1].moves
    assert plans[0].layout == plans[1].layout


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies(protocol):
    layout = mixed()
    assert pickle.loads(pickle.dumps(layout, protocol)) == layout
    assert copy.copy(layout) == copy.deepcopy(layout) == layout


def test_damaged_bytes_are_corrupt():
    data = Layout(["a", "b"], replicas=1, partitions=16).dumps()
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            Layout.loads(data[:size])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            Layout.loads(damaged)
    with pytest.raises(Corrupt):
        Layout.loads(data + b"\0")


@pytest.mark.parametrize("data", ["text", 5, None, [1]])
def test_what_are_no_bytes_are_type_errors(data):
    with pytest.raises(TypeError):
        Layout.loads(data)


def test_equality_and_digest():
    layout = Layout(["a", "b", "c"])
    assert layout == Layout(["c", "b", "a"])
    assert layout != Layout(["a", "b", "d"])
    assert layout != Layout(["a", "b", "c"], replicas=2)
    assert layout != Layout(["a", "b", "c"], partitions=2048)
    assert layout != ["a", "b", "c"]
    assert len(layout.digest()) == 16
    assert layout.digest() == Layout({"a": 2, "b": 2, "c": 2, "d": 0}).digest()
    assert layout.digest() != Layout(["a", "b", "d"]).digest()
    assert layout.digest() != Layout(["a", "b", "c"], replicas=2).digest()


def test_subclasses_stay_what_they_are():
    class Named(Layout):
        pass

    layout = Named(["a", "b", "c"])
    assert type(layout.rebalance(["a", "b", "d"]).layout) is Named
    assert type(Named.loads(layout.dumps())) is Named
    assert type(pickle.loads(pickle.dumps(Layout(["a", "b", "c"])))) is Layout


def test_reprs():
    layout = Layout(["a", "b", "c"])
    assert repr(layout) == "<Layout of 4096 partitions, 3 replicas on 3 nodes, epoch 1>"
    plan = layout.rebalance(["a", "b", "d"])
    assert repr(plan) == "<LayoutPlan to epoch 2: 4096 moves, 0 above the lower bound>"


def test_the_examples_of_the_docstrings():
    failed, attempted = doctest.testmod(_layout)
    assert failed == 0
    assert attempted >= 4


def test_threads_rebalance_one_layout_at_once():
    layout = Layout(equal_nodes(40, 4))
    expected = layout.rebalance(equal_nodes(41, 4)).layout
    found = []

    def rebalance():
        found.append(layout.rebalance(equal_nodes(41, 4)).layout == expected)

    threads = [threading.Thread(target=rebalance) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


# Wrong arguments


@pytest.mark.parametrize("nodes", ["abc", b"abc", 5, None, [5], [None], [("a", 1)]])
def test_nodes_of_wrong_types(nodes):
    with pytest.raises(TypeError):
        Layout(nodes)


@pytest.mark.parametrize("weight", [-1, -0.5, float("nan"), float("inf")])
def test_impossible_weights(weight):
    with pytest.raises(InvalidInput, match="weight of node 'a'"):
        Layout({"a": weight}, replicas=1)


@pytest.mark.parametrize("nodes", [[], {}, ["a", "b"], {"a": 1, "b": 1, "c": 0}])
def test_fewer_usable_nodes_than_replicas(nodes):
    with pytest.raises(NotEnoughNodes) as caught:
        Layout(nodes)
    assert caught.value.wanted == 3
    assert caught.value.usable == min(len(nodes), 2)


@pytest.mark.parametrize("partitions", [0, 1, 8, 15, 17, 4095, 2**21, -16, 2**70])
def test_partitions_out_of_range(partitions):
    with pytest.raises(InvalidInput, match="power of two"):
        Layout(["a"], replicas=1, partitions=partitions)


@pytest.mark.parametrize("replicas", [0, -1, 2**40, 70000])
def test_replicas_out_of_range(replicas):
    with pytest.raises(InvalidInput, match="replicas"):
        Layout(["a"], replicas=replicas)


@pytest.mark.parametrize("value", [1.0, "1", None])
def test_numbers_of_wrong_types(value):
    with pytest.raises(TypeError):
        Layout(["a"], replicas=value)
    with pytest.raises(TypeError):
        Layout(["a"], replicas=1, partitions=value)
    with pytest.raises(TypeError):
        Layout(["a"], replicas=1).nodes(value)


@pytest.mark.parametrize("partition", [-1, 16, 2**40, -(2**70)])
def test_partitions_that_there_are_not(partition):
    with pytest.raises(InvalidInput, match="not in 0"):
        Layout(["a"], replicas=1, partitions=16).nodes(partition)


@pytest.mark.parametrize("key", [5, None, ("a",)])
def test_keys_of_wrong_types(key):
    layout = Layout(["a"], replicas=1)
    for lookup in (layout.partition, layout.lookup):
        with pytest.raises(TypeError, match="key must be str, bytes or a buffer"):
            lookup(key)


def test_the_same_bytes_are_the_same_key():
    layout = Layout(["a", "b"], replicas=1)
    for key in (b"key", bytearray(b"key"), memoryview(b"key")):
        assert layout.partition(key) == layout.partition("key")
        assert layout.lookup(key) == layout.lookup("key")


def test_too_many_nodes_or_copies():
    with pytest.raises(InvalidInput, match="at most 65535 nodes"):
        Layout((str(i) for i in range(65536)), replicas=1, partitions=16)
    with pytest.raises(InvalidInput, match="copies"):
        Layout((str(i) for i in range(257)), replicas=257, partitions=2**20)


def test_layouts_and_plans_are_immutable():
    layout = Layout(["a", "b", "c"])
    plan = layout.rebalance(["a", "b", "d"])
    for thing, name in [(layout, "names"), (layout, "epoch"), (plan, "layout"), (plan, "moves")]:
        with pytest.raises(AttributeError):
            setattr(thing, name, None)
    layout.__init__(["x", "y", "z"])
    assert layout.names == ("a", "b", "c")
    with pytest.raises(TypeError):
        LayoutPlan()
    with pytest.raises(TypeError):
        Layout.__new__(Layout)
