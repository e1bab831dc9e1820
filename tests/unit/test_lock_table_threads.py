"""Threads and forked children share a lock table, and no round of calls leaves memory behind.

Method: threads hold real critical sections that lose updates when two are inside; children answer
by exit code; memory is compared after as many rounds as would show a leak of one name each.
"""

import contextlib
import gc
import os
import queue
import signal
import sys
import threading
import time
import tracemalloc
import warnings

from ringhold import LockTable, Mode
from ringhold.errors import DeadlockError, InvalidInput, NotOwned

IS, IX, S, U, SIX, X = Mode


def state(table, *names):
    return len(table), [(table.holders(name), table.waiters(name)) for name in names]


# Threads


class Crew:
    """Threads that share a table; whoever gets grants hands them to their owners."""

    def __init__(self, count):
        self.table, self.inboxes = (
            LockTable(),
            {i: queue.SimpleQueue() for i in range(1, count + 1)},
        )
        self.failures = []

    def acquire(self, name, owner, mode=X):
        return self.table.request(name, owner, mode) or self.inboxes[owner].get(timeout=60).token

    def hand_out(self, grants):
        for grant in grants:
            self.inboxes[grant.owner].put(grant)

    def run(self, work):
        def guarded(owner):
            try:
                work(owner)
            except BaseException as error:
                self.failures.append(error)
                raise

        threads = [threading.Thread(target=guarded, args=(owner,)) for owner in self.inboxes]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=120)
        finally:
            sys.setswitchinterval(interval)
        assert not self.failures
        assert not any(thread.is_alive() for thread in threads)
        assert len(self.table) == 0


def test_eight_threads_lose_no_update_and_no_turn():
    crew, shared, turns = Crew(8), {"n0": 0, "n1": 0}, []

    def work(owner):
        for i in range(400):
            name = f"n{(owner + i) % 2}"
            token = crew.acquire(name, owner)
            value = shared[name]
            time.sleep(0)
            shared[name] = value + 1
            turns.append((name, token))
            crew.hand_out(crew.table.release(name, owner))

    crew.run(work)
    assert sum(shared.values()) == len(turns) == 8 * 400
    assert all(inbox.empty() for inbox in crew.inboxes.values())
    for name in shared:
        tokens = [token for turn, token in turns if turn == name]
        assert tokens == sorted(set(tokens))


def test_readers_and_writers_of_eight_threads_keep_out_of_each_others_way():
    crew, inside = Crew(8), {"readers": set(), "writers": set()}

    def work(owner):
        for i in range(400):
            mode, room = (X, "writers") if (owner + i) % 4 == 0 else (S, "readers")
            crew.acquire("a", owner, mode)
            inside[room].add(owner)
            assert inside["writers"] <= {owner}
            assert not (inside["writers"] and inside["readers"])
            time.sleep(0)
            inside[room].discard(owner)
            crew.hand_out(crew.table.release("a", owner))

    crew.run(work)


def test_eight_threads_in_each_others_way_are_told_of_deadlocks_and_all_come_through():
    crew, refusals, done = Crew(8), [], []

    def work(owner):
        names = [f"n{(owner * 3 + i) % 4}" for i in range(3)]
        for i in range(150):
            while True:
                try:
                    for name in names:
                        crew.acquire(name, owner, (X, S, U)[i % 3])
                        time.sleep(0)
                except DeadlockError:
                    refusals.append(owner)
                    crew.hand_out(crew.table.release_owner(owner))
                else:
                    break
            done.append(owner)
            crew.hand_out(crew.table.release_owner(owner))

    crew.run(work)
    assert len(done) == 8 * 150
    assert refusals


def test_every_kind_of_call_from_eight_threads_leaves_an_empty_table():
    crew = Crew(8)

    def work(owner):
        table, other = crew.table, owner % 8 + 1
        for i in range(500):
            table.try_acquire(f"n{i % 5}", owner, list(Mode)[i % 6])
            table.acquire_many([f"n{j}" for j in range(i % 5, 9)], owner, S)
            table.renew(owner, i)
            table.holders(f"n{i % 9}"), table.waiters("n0"), table.mode("n1", other), len(table)
            table.expire(i // 2)
            with contextlib.suppress(DeadlockError):
                table.request(f"n{i % 7}", owner, (S, X)[i % 2])
            table.cancel(f"n{i % 7}", owner)
            with contextlib.suppress(NotOwned):
                table.release(f"n{i % 5}", owner)
            table.release_owner(owner)

    crew.run(work)


# Processes and memory


def in_a_child(work):
    """Runs `work` in a forked child that an alarm ends should it hang; its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        signal.alarm(30)
        work()
        code = 0
    finally:
        os._exit(code)


def test_a_forked_child_uses_the_table_it_inherited_and_the_parent_sees_nothing_of_it():
    table = LockTable()
    token = table.request("a", 1)
    table.request("a", 2)

    def work():
        assert table.holders("a") == [(1, X)]
        assert table.waiters("a") == [(2, X)]
        (grant,) = table.release("a", 1)
        assert (grant.owner, table.try_acquire("b", 3) > grant.token > token) == (2, True)
        assert len(table.acquire_many([f"n{i}" for i in range(1000)], 3)) == 1000

    assert in_a_child(work) == 0
    assert in_a_child(lambda: table.release("a", 9)) != 0
    assert state(table, "a", "b") == (1, [([(1, X)], [(2, X)]), ([], [])])


def test_a_child_forked_amid_the_calls_of_other_threads_uses_its_table():
    table, stop = LockTable(), threading.Event()
    names = [f"n{i}" for i in range(2000)]

    def work(owner):
        while not stop.is_set():
            table.acquire_many(names, owner, S)
            table.release_owner(owner)

    threads = [threading.Thread(target=work, args=(owner,)) for owner in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_a_child(lambda: table.acquire_many([*names, "free"], 3, S) or 1 / 0) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def repertoire(table, i):
    name = f"{i:0>300}"
    table.request(name, 1, S)
    table.request(name, 2, S)
    table.renew(2, i)
    assert table.request(name, 1, X) == 0
    for wrong in (
        lambda: table.request(name, 2, X),
        lambda: table.release(name, 3),
        lambda: table.request(name, -1),
        lambda: table.acquire_many([name, "", name], 5),
        lambda: table.acquire_many([name, None], 5),
    ):
        with contextlib.suppress(DeadlockError, NotOwned, InvalidInput, TypeError):
            wrong()
    assert table.acquire_many([f"x{i}", name], 3) is None
    assert len(table.acquire_many([f"x{i}", f"y{i}"], i + 10)) == 2
    assert len(table.expire(i + 1)) == 1
    table.downgrade(name, 1, IS)
    table.holders(name), table.waiters(name), table.mode(name, 1)
    table.release_owner(1)
    table.release_owner(i + 10)


def test_a_hundred_thousand_rounds_of_everything_leak_nothing():
    """Every round has names and an owner of its own; the second half must not take more."""
    table, rounds = LockTable(), 100_000
    # What stays keeps the table from clearing its memory whenever all are gone.
    table.acquire_many([f"kept {i}" for i in range(2000)], 2**62)
    for i in range(rounds // 2):
        repertoire(table, i)
    gc.collect()
    resident = resident_bytes()
    for i in range(rounds // 2, rounds):
        repertoire(table, i)
    gc.collect()
    assert len(table) == 2000
    # 50 000 names of 300 bytes are 15 MB.
    assert resident_bytes() - resident < 4 << 20


def test_python_objects_are_given_back():
    table = LockTable()
    for i in range(100):
        repertoire(table, i)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        for i in range(2000):
            repertoire(table, i)
        gc.collect()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    grown = sum(stat.size_diff for stat in after.compare_to(before, "filename"))
    assert grown < 64 << 10


def test_tables_are_freed_with_all_that_is_held_in_them():
    def fill_and_drop():
        table = LockTable()
        table.acquire_many([f"{i:0>1000}" for i in range(2000)], 1)
        for owner in range(2, 500):
            table.request(f"{owner:0>1000}", owner)
            table.renew(owner, owner)

    for _ in range(20):
        fill_and_drop()
    resident = resident_bytes()
    for _ in range(40):
        fill_and_drop()
    # 40 tables of 2000 names of 1000 bytes are 80 MB.
    assert resident_bytes() - resident < 16 << 20
