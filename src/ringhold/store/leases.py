"""When a lease may end by time: only after time in which the store could be written.

The gap rule. Every commit that writes notes when it began. The first one after a gap longer than
half the shortest TTL of all leases gives each its whole TTL again, before any is judged: its
holder may have tried to renew it all the time. A process stopped inside a commit, a full disk,
a machine that slept are such gaps, and so is a store that nobody used; whoever waits for a lease
to end keeps writing (`needs_commit`), and so proves that the holder could have.

TTLs below TTL_NS_MIN count as TTL_NS_MIN in this rule, so that most commits need not look for the
shortest: leases shorter than that are not protected from gaps shorter than half of it.

All times are nanoseconds of CLOCK_BOOTTIME of one boot.
"""

from __future__ import annotations

from dataclasses import dataclass

TTL_NS_MIN = 1_000_000_000

SIGNING_NS_MAX = 10_000_000
"""How much older than its signature the moment can be by which a commit judges leases."""


def may_be_gap(gap_ns: int) -> bool:
    """False when no lease, however short, makes `gap_ns` a gap."""
    return 2 * gap_ns > TTL_NS_MIN


def is_gap(gap_ns: int, shortest_ttl_ns: int) -> bool:
    return 2 * gap_ns > max(shortest_ttl_ns, TTL_NS_MIN)


def needs_commit(gap_ns: int, shortest_ttl_ns: int) -> bool:
    """Whether who waits for a lease to end must write, lest the silence become a gap."""
    return 4 * gap_ns >= max(shortest_ttl_ns, TTL_NS_MIN)


@dataclass(frozen=True, slots=True)
class LeaseTime:
    """What one snapshot says about one lease.

    committed_ns: when the newest commit began; begun_ns: when the newest began that may still be
    under way, at most `committed_ns` when there is none; shortest_ttl_ns: of all leases.
    """

    deadline_ns: int
    ttl_ns: int
    shortest_ttl_ns: int
    committed_ns: int
    begun_ns: int

    def until(self, now_ns: int) -> int:
        """The moment before which nobody can end the lease by time.

        At least the stored deadline. Later than that once every commit that can follow would
        find a gap: `now_ns` must be read before `begun_ns` is looked up, so that a commit not
        known here judges by a moment after `now_ns` - SIGNING_NS_MAX.
        """
        until_ns = self.deadline_ns
        if self.begun_ns > self.committed_ns:
            if is_gap(self.begun_ns - self.committed_ns, self.shortest_ttl_ns):
                # The commit under way, or if it fails the next, gives the whole TTL again.
                until_ns = max(until_ns, self.begun_ns + self.ttl_ns)
            elif self.begun_ns >= until_ns:
                # It judges by the deadline, and may be ending the lease right now.
                return until_ns
        # The next commit measures its gap from the newest, and half a TTL that is then the
        # shortest: this lease's own at most.
        newest_ns = max(self.committed_ns, self.begun_ns)
        next_ns = now_ns - SIGNING_NS_MAX
        if is_gap(next_ns - newest_ns, self.ttl_ns):
            until_ns = max(until_ns, next_ns + self.ttl_ns)
        return until_ns
