"""A lock table too plain to be wrong: lists, dicts and a waits-for graph made afresh each time.

It makes no tokens. A `Hold` whose token is None was granted just now; `Pair` takes the token that
the table gave, and checks that it is larger than every one before.
"""

from ringhold import LockTable, Mode
from ringhold.errors import DeadlockError, InvalidInput, NotOwned

IS, IX, S, U, SIX, X = MODES = (
    *("intent_shared", "intent_exclusive", "shared", "update"),
    *("shared_intent_exclusive", "exclusive"),
)
COMPATIBLE = {IS: {IS, IX, S, U, SIX}, IX: {IS, IX}, S: {IS, S, U}, U: {IS, S}, SIX: {IS}, X: set()}
CONFLICTS = {mode: set(MODES) - COMPATIBLE[mode] for mode in MODES}
MEMBER = {mode: Mode[mode.upper()] for mode in MODES}


def cover(a, b):
    """The weakest mode that covers both: the fewest conflicts that include both's."""
    covering = [mode for mode in MODES if CONFLICTS[mode] >= CONFLICTS[a] | CONFLICTS[b]]
    return min(covering, key=lambda mode: len(CONFLICTS[mode]))


COVER = {(a, b): cover(a, b) for a in MODES for b in MODES}


class Hold:
    def __init__(self, mode):
        self.mode, self.count, self.token = mode, 0, None


class Waiter:
    def __init__(self, owner, mode, upgrade):
        self.owner, self.mode, self.upgrade = owner, mode, upgrade


class Model:
    """`holds[name]` maps owners to what they hold, `queues[name]` lists who waits, in order."""

    def __init__(self):
        self.holds, self.queues, self.deadlines = {}, {}, {}

    def names(self):
        return {name for table in (self.holds, self.queues) for name in table if table[name]}

    def wait_of(self, owner):
        for name, queue in self.queues.items():
            for waiter in queue:
                if waiter.owner == owner:
                    return name, waiter
        return None

    def blockers(self, name, waiter, ahead):
        """Whom `waiter` waits for when the waiters `ahead` stand before it."""
        others = CONFLICTS[waiter.mode]
        found = [owner for owner, hold in self.holds.get(name, {}).items() if hold.mode in others]
        found += [other.owner for other in ahead if other.mode in others]
        return [owner for owner in found if owner != waiter.owner]

    def graph(self):
        return {
            waiter.owner: self.blockers(name, waiter, queue[:place])
            for name, queue in self.queues.items()
            for place, waiter in enumerate(queue)
        }

    def waits_for_itself(self, owner):
        graph, seen = self.graph(), set()
        reached = list(graph[owner])
        while reached:
            other = reached.pop()
            if other == owner:
                return True
            if other not in seen:
                seen.add(other)
                reached += graph.get(other, ())
        return False

    def wish(self, name, owner, mode):
        """The waiter that the owner would be, and those it would stand behind.

        An upgrade passes whoever holds nothing, but not while its owner waits elsewhere: those it
        passed would wait for it, and might be waited for.
        """
        hold = self.holds.get(name, {}).get(owner)
        waiter = Waiter(owner, COVER[hold.mode, mode] if hold else mode, hold is not None)
        queue = self.queues.get(name, [])
        first = hold is not None and not self.wait_of(owner)
        return waiter, [other for other in queue if other.upgrade or not first]

    def free(self, name, waiter, ahead):
        hold = self.holds.get(name, {}).get(waiter.owner)
        if hold and hold.mode == waiter.mode:
            return True
        wait = self.wait_of(waiter.owner)
        return not (wait and wait[0] == name) and not self.blockers(name, waiter, ahead)

    def grant(self, name, waiter):
        hold = self.holds.setdefault(name, {}).setdefault(waiter.owner, Hold(waiter.mode))
        if hold.mode != waiter.mode:
            hold.mode, hold.token = waiter.mode, None
        hold.count += 1
        return hold

    def try_acquire(self, name, owner, mode):
        waiter, ahead = self.wish(name, owner, mode)
        return self.grant(name, waiter) if self.free(name, waiter, ahead) else None

    def request(self, name, owner, mode):
        if self.wait_of(owner):
            raise InvalidInput("waits already")
        waiter, ahead = self.wish(name, owner, mode)
        if self.free(name, waiter, ahead):
            return self.grant(name, waiter)
        queue = self.queues.setdefault(name, [])
        queue.insert(len(ahead), waiter)
        if self.waits_for_itself(owner):
            queue.remove(waiter)
            raise DeadlockError
        return None

    def acquire_many(self, names, owner, mode):
        if not names:
            raise InvalidInput("no names")
        if not all(self.free(name, *self.wish(name, owner, mode)) for name in names):
            return None
        return [self.try_acquire(name, owner, mode) for name in names]

    def wake(self, names):
        """Grants in queue order whatever nobody blocks: [(name, owner, hold)]."""
        granted = []
        for name in names:
            waiting = []
            for waiter in self.queues.get(name, []):
                if self.blockers(name, waiter, waiting):
                    waiting.append(waiter)
                else:
                    granted.append((name, waiter.owner, self.grant(name, waiter)))
            self.queues[name] = waiting
        return granted

    def forget(self, owners):
        """The deadlines of those who let go of something and have nothing left."""
        for owner in owners:
            if not self.wait_of(owner) and not any(owner in held for held in self.holds.values()):
                self.deadlines.pop(owner, None)

    def release(self, name, owner):
        hold = self.holds.get(name, {}).get(owner)
        if hold is None:
            raise NotOwned
        hold.count -= 1
        if not hold.count:
            del self.holds[name][owner]
            self.forget([owner])
        return self.wake([name])

    def cancel(self, name, owner):
        queue = self.queues.get(name, [])
        self.queues[name] = [waiter for waiter in queue if waiter.owner != owner]
        if len(queue) > len(self.queues[name]):
            self.forget([owner])
        return self.wake([name])

    def downgrade(self, name, owner, mode):
        hold = self.holds.get(name, {}).get(owner)
        if hold is None:
            raise NotOwned
        if COVER[hold.mode, mode] != hold.mode:
            raise InvalidInput("not weaker")
        hold.mode = mode
        return self.wake([name])

    def drop(self, owners):
        for held in self.holds.values():
            for owner in owners:
                held.pop(owner, None)
        for name, queue in self.queues.items():
            self.queues[name] = [waiter for waiter in queue if waiter.owner not in owners]
        self.forget(owners)
        return self.wake(self.queues.keys() | self.holds.keys())

    def release_owner(self, owner):
        return self.drop([owner])

    def renew(self, owner, deadline_ns):
        self.deadlines[owner] = deadline_ns

    def expire(self, now_ns):
        return self.drop([owner for owner, end in self.deadlines.items() if now_ns > end])


def outcome_of(table, method, args):
    try:
        return getattr(table, method)(*args)
    except (DeadlockError, InvalidInput, NotOwned) as error:
        return error


class Pair:
    """A table and the model: every call goes to both, and outcomes and states are compared."""

    def __init__(self):
        self.table, self.model, self.last = LockTable(), Model(), 0

    def __getattr__(self, method):
        def call(*args):
            return self.call(method, *args)

        return call

    def call(self, method, *args):
        expected = outcome_of(self.model, method, args)
        result = outcome_of(self.table, method, args)
        if isinstance(expected, Exception) or isinstance(result, Exception):
            assert type(result) is type(expected), f"{method}{args}: {result!r}, not {expected!r}"
        else:
            self.compare(method, args, result, expected)
        if method == "acquire_many":
            self.check(args[0])
        elif isinstance(args[0], str):
            self.check(args[:1])
        else:
            self.check(self.model.holds.keys() | self.model.queues.keys())
        return result

    def compare(self, method, args, result, expected):
        if method == "acquire_many" and expected is not None:
            assert type(result) is list
            assert len(result) == len(expected)
            for token, hold in zip(result, expected, strict=True):
                self.take(token, hold)
        elif method in ("try_acquire", "request", "acquire_many"):
            if expected is not None:
                self.take(result, expected)
            else:
                assert result == (None if method == "acquire_many" else 0), f"{method}{args}"
        elif method == "renew":
            assert result is None
        else:
            self.compare_grants(result, expected)

    def take(self, token, hold):
        assert type(token) is int
        if hold.token is None:
            assert token > self.last
            hold.token = self.last = token
        assert token == hold.token

    def compare_grants(self, grants, expected):
        """Grants of one name come in queue order with growing tokens, names in any order."""
        assert type(grants) is list
        assert len(grants) == len(expected)
        before = self.last
        holds = {(name, owner): hold for name, owner, hold in expected}
        for grant in grants:
            hold = holds[grant.name, grant.owner]
            assert hold.token is None
            assert grant.token > before
            assert grant.mode is MEMBER[hold.mode]
            hold.token = grant.token
            self.last = max(self.last, grant.token)
        assert len({hold.token for hold in holds.values()}) == len(grants)
        if len(grants) > 1:
            for name in {name for name, _, _ in expected}:
                given = [grant for grant in grants if grant.name == name]
                assert [grant.owner for grant in given] == [o for n, o, _ in expected if n == name]
                assert [g.token for g in given] == sorted(g.token for g in given)

    def check(self, names):
        for name in names:
            holders = [(o, MEMBER[h.mode]) for o, h in self.model.holds.get(name, {}).items()]
            assert self.table.holders(name) == holders
            waiters = [(w.owner, MEMBER[w.mode]) for w in self.model.queues.get(name, ())]
            assert self.table.waiters(name) == waiters
        assert len(self.table) == len(self.model.names())

    def check_all(self, names, owners):
        """Everything there is to see; and no circle of waiting was let in."""
        self.check(names)
        for name in names:
            for owner in owners:
                hold = self.model.holds.get(name, {}).get(owner)
                expected = hold and MEMBER[hold.mode]
                assert self.table.mode(name, owner) is expected
        assert not any(self.model.waits_for_itself(owner) for owner in self.model.graph())
