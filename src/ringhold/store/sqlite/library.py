"""The copy of SQLite that this process works with.

SQLite keeps a list, for the whole process, of the files that are open and of the locks it holds
on them, and a new connection takes its word. A forked child inherits that list but none of the
locks. Connections it opened would lock nothing at all: a checkpoint could overwrite what they
read, a newcomer could empty the shared memory under them; and where the parent was committing at
that moment, they would wait for ever for a write lock that nobody holds. Besides, a mutex may
have been copied while a thread of the parent held it. SQLite forbids even to close what was
inherited, so nothing can be put right from outside.

Therefore a child whose parent used SQLite loads the extension module a second time, before its
first connection: a copy with none of that state. It is loaded from memory, because the dynamic
linker knows the file it has loaded already by its inode.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import threading
from types import ModuleType

from ringhold.env import copy_in_memory, forks, process_id
from ringhold.errors import StoreUnavailable

_NAME = "apsw"

_renewing = threading.Lock()
_used = False
_generation = forks.generation


def _after_fork() -> None:
    global _renewing
    _renewing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def use() -> None:
    """To be called before every connection is opened. StoreUnavailable when a child needs a copy
    of its own and the system refuses to load one."""
    global _generation, _used
    if _used and _generation == forks.generation:
        return
    with _renewing:
        if _used and _generation != forks.generation:
            _put_in_place(_load_copy())
        _generation = forks.generation
        _used = True


def _load_copy() -> ModuleType:
    inherited = sys.modules[_NAME]
    try:
        fd = copy_in_memory(str(inherited.__file__))
        try:
            # A path never used before: the import system remembers modules by it.
            path = f"/proc/{process_id()}/fd/{fd}"
            loader = importlib.machinery.ExtensionFileLoader(_NAME, path)
            spec = importlib.machinery.ModuleSpec(_NAME, loader, origin=path)
            copy = importlib.util.module_from_spec(spec)
            loader.exec_module(copy)
        finally:
            os.close(fd)
            # Others in this process may use it, and know its classes by identity.
            sys.modules[_NAME] = inherited
    except (OSError, ImportError) as error:
        raise StoreUnavailable(
            "a forked process needs a copy of SQLite of its own, which cannot be loaded from "
            f"memory here ({error}): start processes by spawn instead of fork"
        ) from error
    return copy


def _put_in_place(copy: ModuleType) -> None:
    """Makes every module of this engine use `copy`: its functions and its error classes."""
    engine = __name__.rpartition(".")[0] + "."
    for name, module in list(sys.modules.items()):
        if name.startswith(engine) and _NAME in vars(module):
            setattr(module, _NAME, copy)
