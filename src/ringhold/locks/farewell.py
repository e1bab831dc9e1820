"""The sessions that a process still has when it ends, on stores that do not see that it does.

Guarantees: when the interpreter exits, or a child of multiprocessing does, they are ended within
about EXIT_S: what they held counts as lost here, then their leases are revoked. Where no store
answers in that time they are left to run out. A forked child never ends its parent's.

A process that is killed by a signal, or by ``os._exit``, is told of to nobody.

What runs by then: Ringhold's own loop, which is stopped first; daemon threads, for which all is as
after a `close`; no thread that could be waited for, and from Python 3.12 on no new one. Hence the
store is called on the thread that exits.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from ringhold.bridge import end_loop
from ringhold.env import forks, real_env
from ringhold.errors import RingholdError
from ringhold.store.base import BlindToDeath

if TYPE_CHECKING:
    from ringhold.locks.session import SessionState

logger = logging.getLogger("ringhold")

EXIT_S = 2.0
LOOP_S = 1.0
"""What of it those calls have that are under way when the process ends."""

LAST = -1000
"""Finalizers of multiprocessing run by falling priority, its own down to -100."""

_open: dict[SessionState, BlindToDeath] = {}
_inherited: list[dict[SessionState, BlindToDeath]] = []
_finalizers: dict[int, Any] = {}
"""Of multiprocessing, by the generation of forks; None where it was not in use."""

_calls = 0


def owe(session: SessionState, store: object) -> None:
    """`session` is ended with the process, unless `settle` comes first."""
    if not isinstance(store, BlindToDeath):
        return
    if forks.generation not in _finalizers:
        _finalizers[forks.generation] = _finalizer()
    for other in list(_open):
        # Those whose loop ended before they were closed are renewed by nobody.
        if other.expired:
            settle(other)
    _open[session] = store


def settle(session: SessionState) -> None:
    _open.pop(session, None)


def _finalizer() -> Any:
    """Where multiprocessing is in use: called after it has waited for the children, who may be at
    work under a lock of their parent's. Its own children skip atexit before Python 3.13."""
    util = sys.modules.get("multiprocessing.util")
    processes = sys.modules.get("multiprocessing.process")
    if util is None or processes is None:
        return None
    is_child = processes.parent_process() is not None
    return util.Finalize(None, _end_child if is_child else _at_exit, exitpriority=LAST)


def _end_child() -> None:
    # The threads of a child are waited for only after its finalizers otherwise: they may be at work
    # under a lock.
    threading._shutdown()  # type: ignore[attr-defined]
    _end_sessions()


def _at_exit() -> None:
    """Called by atexit, and by multiprocessing where that is in use: the last call ends them."""
    global _calls
    _calls += 1
    if _calls > (_finalizers.get(forks.generation) is not None):
        _end_sessions()


def _end_sessions() -> None:
    clock = real_env().clock
    deadline_ns = clock.monotonic_ns() + int(EXIT_S * 1e9)
    end_loop(LOOP_S)
    sessions = list(_open.items())
    _open.clear()
    for session, _ in sessions:
        session.forsake()
    for place, (session, store) in enumerate(sessions):
        left_s = (deadline_ns - clock.monotonic_ns()) / 1e9
        if left_s <= 0:
            break
        try:
            store.end_lease(session.id, left_s / (len(sessions) - place))
        except RingholdError as error:
            logger.info("session %s is left to expire: %s", session.id.hex(), error)


def _after_fork() -> None:
    global _open
    # Kept: destructors of what is the parent's must not run here.
    _inherited.append(_open)
    _open = {}


# Not later: what a program arranges for its end once it has a cluster still finds that open.
atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
