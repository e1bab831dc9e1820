"""Whether an opening of a store may still be used, and by which process."""

from __future__ import annotations

from ringhold.env import process_id
from ringhold.errors import Closed


class Opening:
    """Shared by the parts of one open store, which must not keep the store itself alive."""

    def __init__(self, path: str):
        self.path = path
        self.pid = process_id()
        self.closed = False

    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that opened the store."""
        return process_id() != self.pid

    def check(self) -> None:
        if self.is_inherited():
            raise Closed(
                f"the store {self.path} was opened by the process {self.pid}, which this one "
                "was forked from",
                pid=self.pid,
            )
        if self.closed:
            raise Closed(f"the store {self.path} is closed")
