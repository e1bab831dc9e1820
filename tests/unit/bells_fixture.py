"""What tests of doorbells ask of the folder of the bells and of the running loop."""

from __future__ import annotations

import asyncio
from pathlib import Path


def readers() -> list[int]:
    """The descriptors the running loop reads, but its own."""
    loop = asyncio.get_running_loop()
    own = loop._ssock.fileno()  # type: ignore[attr-defined]
    return [fd for fd in loop._selector.get_map() if fd != own]  # type: ignore[attr-defined]


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - {"changed"}
