"""Goal: `LeaseTime.until` never promises a moment before which some commit ends the lease.

Method: random histories of commits, each with the moment it judges by and the later moment at
which it is seen; some are stopped in between, some fail. What is promised on the way is compared
with when the lease was gone.
"""

from __future__ import annotations

import random

import pytest

from ringhold.store.leases import SIGNING_NS_MAX, LeaseTime, is_gap

MS = 1_000_000


class History:
    """A store of leases, as the dumb reading of the rule has it."""

    def __init__(self, order: random.Random):
        self.order = order
        self.now = 1_000_000 * MS
        self.committed = self.begun = self.now
        self.leases = {0: (4000 * MS, self.now + 4000 * MS)}
        self.promised = 0
        self.promises_beyond_deadline = 0

    def ask(self) -> None:
        if 0 not in self.leases:
            return
        ttl, deadline = self.leases[0]
        shortest = min(ttl for ttl, _ in self.leases.values())
        until = LeaseTime(deadline, ttl, shortest, self.committed, self.begun).until(self.now)
        assert until >= deadline
        self.promises_beyond_deadline += until > deadline
        self.promised = max(self.promised, until)

    def stay(self, longest_ms: int) -> None:
        """Time passes, and is asked about."""
        for _ in range(self.order.randrange(4)):
            self.now += self.order.randrange(longest_ms) * MS
            self.ask()

    def commit(self) -> None:
        judged = self.begun = self.now
        # The moment may have been read a little before the signature is seen.
        self.now += self.order.choice([0, SIGNING_NS_MAX])
        leases = dict(self.leases)
        shortest = min((ttl for ttl, _ in leases.values()), default=None)
        if shortest is not None and is_gap(judged - self.committed, shortest):
            leases = {key: (ttl, judged + ttl) for key, (ttl, _) in leases.items()}
        leases = {key: lease for key, lease in leases.items() if lease[1] > judged}
        other = self.order.randrange(1, 4)
        if self.order.random() < 0.5:
            leases[other] = (self.order.choice([500, 1000, 2000, 60_000]) * MS, 0)
            leases[other] = (leases[other][0], judged + leases[other][0])
        else:
            leases.pop(other, None)
        if 0 in leases and self.order.random() < 0.05:
            leases[0] = (leases[0][0], judged + leases[0][0])
        self.stay(self.order.choice([1, 10, 100, 3000]))
        if self.order.random() < 0.9:
            self.leases, self.committed = leases, judged
            assert 0 in leases or self.now >= self.promised
        elif self.order.random() < 0.5:
            self.begun = 0  # It failed and said so; otherwise its process died.


@pytest.mark.parametrize("seed", range(8))
def test_nobody_ends_a_lease_before_the_moment_that_was_promised(seed: int) -> None:
    order = random.Random(seed)
    ended = beyond = 0
    for _ in range(300):
        history = History(order)
        pace_ms = order.choice([200, 600, 1500, 5000])
        for _ in range(60):
            history.stay(pace_ms)
            history.commit()
            if 0 not in history.leases:
                ended += 1
                break
        beyond += history.promises_beyond_deadline > 0
    assert min(ended, beyond) > 10
