"""What the commands show on a terminal: tables and progress bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fsspec.callbacks import Callback  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


@contextmanager
def progress_bar(what: str) -> Iterator[TransferProgress]:
    """A bar on a terminal, silence elsewhere."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield TransferProgress(progress, what)


class TransferProgress(Callback):  # type: ignore[misc]
    """An fsspec callback, and a ``progress(done, total)`` function, that drives a bar."""

    def __init__(self, progress: Progress, what: str):
        super().__init__()
        self._progress = progress
        self._task = progress.add_task(what, total=None)

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=self.value, total=self.size)
