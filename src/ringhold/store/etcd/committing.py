"""Commits, sent until their outcome is known.

Guarantees: a commit is applied at most once, however often it is sent, and its outcome is told as
it is: done, refused, certainly not applied, or not known as long as etcd does not answer.
"""

from __future__ import annotations

from ringhold.env import Env
from ringhold.errors import Conflict, OutcomeUnknown, RingholdError, StoreUnavailable
from ringhold.store.etcd import wire
from ringhold.store.etcd.calls import (
    LEASE_TIME_TO_LIVE,
    NO_LEASE,
    TXN,
    Connection,
    Failed,
    Refused,
)
from ringhold.store.etcd.commits import Commit, Sealed, check_size
from ringhold.store.etcd.names import Names
from ringhold.store.etcd.nonces import NONCE_S, Nonces
from ringhold.store.etcd.patience import Patience
from ringhold.store.etcd.together import Together
from ringhold.store.requests import CommitRequest, lease_gone

NONCE_BYTES = 16


class Committer:
    """Commits of one face of a store. `together`: how they are sent first, if not one by one."""

    def __init__(
        self,
        connection: Connection,
        names: Names,
        nonces: Nonces,
        env: Env,
        timeout_s: float,
        together: Together | None = None,
    ):
        self._connection = connection
        self._names = names
        self._nonces = nonces
        self._env = env
        self._timeout_s = timeout_s
        self._together = together

    def check_size(self, request: CommitRequest) -> None:
        check_size(request, self._names, self._connection.address)

    def patience(self) -> Patience:
        return Patience(self._env, self._timeout_s)

    async def commit(self, request: CommitRequest, patience: Patience) -> int:
        """As `Transactional.commit`, of a request whose size was checked."""
        nonce = request.nonce or self._env.random_bytes(NONCE_BYTES)
        if self._nonces.unknown.lease(nonce) is not None:
            patience.unknown = Failed("an earlier try was not answered", sent=True)
        lease = await self._nonces.lease(nonce, patience.left_s) if request.writes else 0
        commit = Commit(request, self._names, nonce, lease)
        while True:
            try:
                answer = await self._sent(commit, commit.request, patience)
            except Refused as refused:
                if not refused.says(NO_LEASE):
                    raise self._refused(refused, patience.unknown, commit) from None
                await self._explain_lease(request, commit, patience)
                if not await patience.again():
                    raise self._refused(refused, patience.unknown, commit) from None
                lease = await self._nonces.lease(nonce, patience.left_s)
                commit = Commit(request, self._names, nonce, lease)
                continue
            try:
                revision = await self._believed(commit, answer, patience)
            except Sealed as sealed:
                commit = Commit(request, self._names, nonce, lease, sealed.revision)
                continue
            except Conflict:
                # What writes nothing seals nothing: a try that wrote may still be on its way.
                if request.writes:
                    self._nonces.unknown.discard(nonce)
                raise
            self._nonces.unknown.discard(nonce)
            return revision

    async def _believed(self, commit: Commit, answer: wire.TxnResponse, patience: Patience) -> int:
        """The revision of the commit. Sealed; Conflict once no other try can be applied."""
        try:
            return commit.outcome(answer)
        except Conflict:
            if patience.unknown is None or not commit.writes:
                raise
            revision = await self._sealed(commit, patience)
            if revision is None:
                raise
            return revision

    async def _sent(
        self, commit: Commit, request: wire.TxnRequest, patience: Patience
    ) -> wire.TxnResponse:
        """The answer to the first try that gets one. Refused, StoreUnavailable, OutcomeUnknown."""
        while True:
            try:
                with patience.sending(commit.writes):
                    if self._together is not None and patience.first:
                        return await self._together.send(commit, patience)
                    return await self._connection.call(TXN, request, timeout_s=patience.attempt_s())
            except Failed as error:
                if error.sent and commit.writes:
                    patience.unknown = error
                if not await patience.again():
                    raise self._given_up(error, patience.unknown, commit) from None
            except Refused as refused:
                if not (refused.certificate and await patience.again()):
                    raise

    async def _sealed(self, commit: Commit, patience: Patience) -> int | None:
        """See `Commit.sealed`."""
        try:
            answer = await self._sent(commit, commit.seal(), patience)
        except Refused as refused:
            raise self._refused(refused, patience.unknown, commit) from None
        return commit.sealed(answer)

    def _given_up(self, error: Failed, unknown: Failed | None, commit: Commit) -> RingholdError:
        if unknown is None:
            return self._connection.unavailable(error)
        self._nonces.unknown.add(commit.nonce, commit.nonce_lease)
        return OutcomeUnknown(
            f"etcd at {', '.join(self._connection.address.endpoints)} did not answer whether the "
            f"commit {commit.nonce.hex()} was applied: {unknown}"
        )

    def _refused(self, refused: Refused, unknown: Failed | None, commit: Commit) -> Exception:
        error = self._connection.refusal(refused)
        return error if unknown is None else self._unknown(unknown, error, commit)

    def _unknown(self, unknown: Failed, error: Exception, commit: Commit) -> OutcomeUnknown:
        """This time it was refused; the time before it may have been applied."""
        self._nonces.unknown.add(commit.nonce, commit.nonce_lease)
        return OutcomeUnknown(f"commit {commit.nonce.hex()}: {unknown}, then {error}")

    async def _explain_lease(
        self, request: CommitRequest, commit: Commit, patience: Patience
    ) -> None:
        """SessionExpired if the lease that etcd misses is one of the puts'; OutcomeUnknown if it is
        the nonce's, and the commit may have been applied while that lived.

        As long as the nonce's lease lives so does a nonce that was applied, and etcd would have
        found that before it looked at leases.
        """
        try:
            if await self._lives(commit.nonce_lease, patience):
                for lease in dict.fromkeys(put.lease for put in request.puts):
                    if lease is not None and not await self._lives(
                        self._names.lease(lease), patience
                    ):
                        raise lease_gone(lease)
            else:
                self._nonces.ended(commit.nonce_lease)
        except StoreUnavailable as error:
            if patience.unknown is None:
                raise
            raise self._unknown(patience.unknown, error, commit) from None
        if patience.unknown is not None:
            self._nonces.unknown.add(commit.nonce, commit.nonce_lease)
            raise OutcomeUnknown(
                f"commit {commit.nonce.hex()}: what became of it is known for {NONCE_S} s only"
            )

    async def _lives(self, lease: int, patience: Patience) -> bool:
        request = wire.LeaseRequest(lease)
        try:
            answer = await self._connection.until(LEASE_TIME_TO_LIVE, request, patience.left_s())
        except Refused as refused:
            raise self._connection.refusal(refused) from None
        return answer.ttl_s > 0
