"""Commits of several tasks at the same moment, sent as one transaction.

A transaction of etcd may have others inside, each with compares and an outcome of its own. So what
tasks commit in one turn of the loop, or while UNDER_WAY_MAX transactions are under way, costs one
call, one proposal and one fsync.

etcd judges the compares of all before it applies the first. Together are therefore only commits of
which none writes what another compares or writes: in whatever order, they would do the same. They
share a revision, at which a watch sees all of them, like the changes of one commit. What a commit
compared is unchanged at its revision all the same: a watch from the next one on misses nothing.

Only first tries are sent so. When etcd refuses them, nothing was applied, and each is sent alone,
to be told what is wrong with it. When it does not answer, each commit may have been applied, as it
may after a call of its own, and is sent again under its nonce.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from ringhold.store.etcd import wire
from ringhold.store.etcd.address import EtcdAddress
from ringhold.store.etcd.calls import TOGETHER, TXN, Connection, Failed, Refused
from ringhold.store.etcd.commits import Commit
from ringhold.store.etcd.patience import Patience

UNDER_WAY_MAX = 2
"""How many transactions are under way before others wait to be more: one would leave etcd idle
while the answer is on its way, and with many each has few commits."""


class _Group:
    """Commits that go together, and the `patience` of each.

    ready: set when it need not wait for others to come
    answers: None if etcd refuses them together
    """

    def __init__(self, address: EtcdAddress):
        self.commits: list[Commit] = []
        self.patiences: list[Patience] = []
        self.ready = asyncio.Event()
        self.answers: asyncio.Future[list[wire.TxnResponse] | None] = asyncio.Future()
        self._address = address
        self._compared: set[bytes] = set()
        self._written: set[bytes] = set()
        self._operations = 0
        self._bytes = 0

    def take(self, commit: Commit) -> bool:
        """Whether `commit` can be one of them: then it is from now on."""
        request = commit.request
        operations = max(
            self._operations, len(request.compare), len(request.success), len(request.failure)
        )
        size = self._bytes + commit.bytes_max()
        # Of a transaction inside, etcd takes as many operations fewer as there are of them.
        if len(self.commits) + 1 + operations > self._address.max_txn_ops:
            return False
        if size > self._address.max_request_bytes:
            return False
        compared = {compare.key for compare in request.compare}
        written = commit.written_keys()
        if not (
            self._written.isdisjoint(compared)
            and self._written.isdisjoint(written)
            and self._compared.isdisjoint(written)
        ):
            return False
        self._compared |= compared
        self._written |= written
        self._operations, self._bytes = operations, size
        self.commits.append(commit)
        return True


class Together:
    """Sends the first tries of the commits of one loop."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._gathering: _Group | None = None
        self._under_way = 0

    async def send(self, commit: Commit, patience: Patience) -> wire.TxnResponse:
        """As `Connection.call`."""
        answers = None
        if commit.writes and not any(compare.range_end for compare in commit.request.compare):
            group = self._join(commit)
            place = len(group.commits) - 1
            group.patiences.append(patience)
            if place:
                # Nobody else's answer depends on whether this one is still waited for.
                answers = await asyncio.shield(group.answers)
            else:
                answers = await self._lead(group)
        if answers is not None:
            return answers[place]
        return await self._connection.call(TXN, commit.request, timeout_s=patience.attempt_s())

    def _join(self, commit: Commit) -> _Group:
        """The group of `commit`, the last of its commits by now."""
        group = self._gathering
        if group is not None:
            if group.take(commit):
                return group
            group.ready.set()
        group = self._gathering = _Group(self._connection.address)
        if not group.take(commit):
            # It is as large as etcd takes them: nobody can join.
            group.commits.append(commit)
            group.ready.set()
            self._gathering = None
        return group

    async def _lead(self, group: _Group) -> list[wire.TxnResponse] | None:
        """As the first of the group: sends it in due time."""
        sent = False
        try:
            await asyncio.sleep(0)
            if self._under_way >= UNDER_WAY_MAX:
                await group.ready.wait()
            self._leave(group)
            sent = True
            self._under_way += 1
            try:
                timeout_s = min(patience.attempt_s() for patience in group.patiences)
                answers = await self._answers(group.commits, timeout_s)
            finally:
                self._under_way -= 1
                if self._gathering is not None:
                    self._gathering.ready.set()
        except BaseException as error:
            self._leave(group)
            if not isinstance(error, Exception):
                # The loop may be ending, or somebody cancels whatever runs: the others go on.
                error = Failed("the task that commits with others was cancelled", sent=sent)
            group.answers.set_exception(error)
            group.answers.exception()  # Not lost, if nobody waits for it any more.
            raise
        group.answers.set_result(answers)
        return answers

    def _leave(self, group: _Group) -> None:
        """Nobody joins the group from now on."""
        if self._gathering is group:
            self._gathering = None

    async def _answers(
        self, commits: Sequence[Commit], timeout_s: float
    ) -> list[wire.TxnResponse] | None:
        call = self._connection.call
        if len(commits) == 1:
            return [await call(TXN, commits[0].request, timeout_s=timeout_s)]
        inside = tuple(wire.TxnOp(commit.request) for commit in commits)
        try:
            answer = await call(TOGETHER, wire.TogetherRequest(inside), timeout_s=timeout_s)
        except Refused as refused:
            if refused.certificate:
                raise
            return None
        if len(answer.responses) != len(inside):
            raise Failed("etcd did not answer to each of the commits it was sent", sent=True)
        return [replace(each.response_txn, header=answer.header) for each in answer.responses]
