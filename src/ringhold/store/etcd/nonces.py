"""The leases under which etcd remembers the nonces of commits.

Guarantees: a nonce is remembered for NONCE_S - LEASE_TURN_S seconds at least, also after its store
is closed, and a commit that is repeated names the lease of its first try: while that lives it is
applied once or found to be applied already, and after that never. A store that commits takes a new
lease every LEASE_TURN_S: what one lease deletes at its end stays small.

Both faces of a store know of the same commits without a known outcome (`Unknown`): what was tried
on one may be repeated on the other. Their leases are their own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from ringhold.env import Env
from ringhold.errors import StoreUnavailable
from ringhold.store.etcd import wire
from ringhold.store.etcd.calls import LEASE_GRANT, Connection, Failed, Refused

NONCE_S = 120
LEASE_TURN_S = 10.0
LEASE_ID_BYTES = 8
UNKNOWN_MAX = 10_000
"""Of so many commits without a known outcome the leases are remembered."""


class Unknown:
    """Commits whose outcome is not known, and the leases that they name. For all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[bytes, int] = {}

    def lease(self, nonce: bytes) -> int | None:
        """That of the first try, if there was one whose outcome is not known."""
        return self._leases.get(nonce)

    def add(self, nonce: bytes, lease: int) -> None:
        """The commit may be repeated, under the same lease. 0 is of one that writes nothing, but
        asks: it leaves what is known of the one it asks about."""
        if not lease:
            return
        with self._lock:
            self._leases[nonce] = lease
            if len(self._leases) > UNKNOWN_MAX:
                del self._leases[next(iter(self._leases))]

    def discard(self, nonce: bytes) -> None:
        with self._lock:
            self._leases.pop(nonce, None)


class Nonces:
    """The leases of one face, and what is `unknown` to both."""

    def __init__(self, connection: Connection, env: Env, timeout_s: float, unknown: Unknown):
        self.unknown = unknown
        self._connection = connection
        self._env = env
        self._timeout_s = timeout_s
        self._lease = 0
        self._turn_ns = 0
        self._turning: asyncio.Task[int] | None = None

    async def lease(self, nonce: bytes, left_s: Callable[[], float]) -> int:
        """The lease for `nonce`. StoreUnavailable if there is none within the time left."""
        known = self.unknown.lease(nonce)
        if known is not None:
            return known
        return await self._fresh(left_s) if self._is_due() else self._lease

    def _is_due(self) -> bool:
        return self._env.clock.boottime_ns() >= self._turn_ns

    async def _fresh(self, left_s: Callable[[], float]) -> int:
        if self._turning is None:
            self._turning = asyncio.ensure_future(self._turn(self._timeout_s))
            self._turning.add_done_callback(self._turned)
        try:
            async with asyncio.timeout(left_s()):
                # Whoever gives up or is cancelled leaves it to the others who wait for it.
                return await asyncio.shield(self._turning)
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> StoreUnavailable:
        return self._connection.unavailable(Failed("no lease was granted in time", sent=False))

    async def _turn(self, timeout_s: float) -> int:
        while True:
            sent_ns = self._env.clock.boottime_ns()
            lease = int.from_bytes(self._env.random_bytes(LEASE_ID_BYTES), "big") >> 1 or 1
            request = wire.LeaseGrantRequest(NONCE_S, lease)
            try:
                await self._connection.until(LEASE_GRANT, request, timeout_s)
            except Refused as refused:
                if refused.says("lease already exists"):
                    continue  # Most likely our own, granted by a try whose answer got lost.
                raise self._connection.refusal(refused) from None
            self._lease = lease
            self._turn_ns = sent_ns + int(LEASE_TURN_S * 1e9)
            return lease

    def _turned(self, turning: asyncio.Task[int]) -> None:
        self._turning = None
        if not turning.cancelled():
            turning.exception()

    def ended(self, lease: int) -> None:
        """etcd does not know the lease any more."""
        if lease == self._lease:
            self._turn_ns = 0

    async def close(self) -> None:
        """Leaves the leases to their end: others may ask for a commit after its store is closed."""
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.gather(self._turning, return_exceptions=True)
