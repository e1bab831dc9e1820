"""The copy of grpcio that this process works with.

gRPC cannot go on in a forked child: its locks may have been copied while a thread of the parent
held them, and the threads that its engine counts on are not there. Children were seen to wait for
ever, to abort and to crash. It has hooks for forks of its own, which wait for calls under way to
end, and skip their work when those do not.

Therefore a child whose parent used grpcio loads it a second time, before its first channel: the
whole package, with a copy of its extension module from memory, because the dynamic linker knows
the file it has loaded already by its inode. What was inherited is not touched any more, not even to
be destroyed (`abandon`); whoever else imports grpcio in the child from then on gets the copy.

Connections: a child lets go of its parent's before anything else runs (see `channels`), and the
parent begins anew, because it was seen to lose answers to a child that did nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import logging
import os
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

if "grpc" in sys.modules:  # noqa: SIM108 - an assignment alone must not precede imports
    # Then the choices below may come too late: it reads them when it is first used.
    _too_late = os.environ.get("GRPC_ENABLE_FORK_SUPPORT") != "0"
else:
    _too_late = False

# Chosen before grpcio is first used in a process: epoll, its other poller, is one object of the
# kernel that a child goes on sharing with its parent, each waking up for the other's sockets.
os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")
# Its own hooks do half of their work when they find calls under way, and then children crash.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Else it writes to standard error of every fork and every handshake that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from ringhold.env import copy_in_memory, forks, process_id
from ringhold.errors import StoreUnavailable

__all__ = ["abandon", "grpc", "use"]

logger = logging.getLogger("ringhold")

_PACKAGE = "grpc"
_EXTENSION = "grpc._cython.cygrpc"
_FILE = str(sys.modules[_EXTENSION].__file__)

_renewing = threading.Lock()
_used = False
_generation = forks.generation


def _after_fork() -> None:
    global _renewing
    _renewing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def use() -> None:
    """To be called before every channel is opened. StoreUnavailable when a child needs a copy of
    its own and the system refuses to load one."""
    global _generation, _used
    if _used and _generation == forks.generation:
        return
    with _renewing:
        if _too_late and not _used:
            logger.warning(
                "grpcio was imported before Ringhold's engine for etcd: if it was used as well, "
                "forked children of this process may abort or hang. Set GRPC_ENABLE_FORK_SUPPORT=0 "
                "and GRPC_POLL_STRATEGY=poll in the environment, or start processes by spawn"
            )
        if _used and _generation != forks.generation:
            _put_in_place(_load_copy())
        _generation = forks.generation
        _used = True


def abandon(kept: object) -> None:
    """In a forked child: what its parent had of grpcio is kept as it was, `kept` and all that it
    refers to for ever, and destructors do nothing: they would cancel calls of the parent.

    At the end of a process that leaves its channels open as well: there a destructor would wait for
    ever for a lock that a daemon thread had when Python stopped it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    for module in [module for name, module in sys.modules.items() if _is_part(name)]:
        found: list[Any] = list(vars(module).values())
        for each in found:
            if isinstance(each, type) and "__del__" in vars(each):
                del each.__del__  # type: ignore[attr-defined]


class _Finder:
    """Finds the extension module at `path`."""

    def __init__(self, path: str):
        self._path = path

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _EXTENSION:
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, self._path)
        return importlib.machinery.ModuleSpec(name, loader, origin=self._path)


def _load_copy() -> ModuleType:
    inherited = {name: module for name, module in sys.modules.items() if _is_part(name)}
    try:
        fd = copy_in_memory(_FILE)
        # A path never used before: the import system remembers modules by it.
        finder = _Finder(f"/proc/{process_id()}/fd/{fd}")
        sys.meta_path.insert(0, finder)
        for name in inherited:
            del sys.modules[name]
        try:
            return importlib.import_module(_PACKAGE)
        finally:
            sys.meta_path.remove(finder)
            os.close(fd)
    except (OSError, ImportError) as error:
        sys.modules.update(inherited)
        raise StoreUnavailable(
            "a forked process needs a copy of grpcio of its own, which cannot be loaded from "
            f"memory here ({error}): start processes by spawn instead of fork"
        ) from error


def _is_part(name: str) -> bool:
    return name == _PACKAGE or name.startswith(_PACKAGE + ".")


def _put_in_place(copy: ModuleType) -> None:
    """Makes every module of this engine use `copy`: its functions and its classes."""
    engine = __name__.rpartition(".")[0] + "."
    for name, module in list(sys.modules.items()):
        if name.startswith(engine) and _PACKAGE in vars(module):
            setattr(module, _PACKAGE, copy)
