"""How commands speak: tables for people, JSON for programs, exit codes for scripts."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from fsspec.callbacks import Callback  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ringhold.errors import Corrupt, InvalidInput, RingholdError, Unavailable

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster", "-c", envvar="RINGHOLD_CLUSTER", help="URL or directory of the cluster."
    ),
]


class ExitCode(enum.IntEnum):
    """Of every command; `ringhold lock` passes its command's own code on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    CORRUPT = 4


def exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, Corrupt):
        return ExitCode.CORRUPT
    if isinstance(error, Unavailable):
        return ExitCode.UNAVAILABLE
    if isinstance(error, InvalidInput):
        return ExitCode.USAGE
    return ExitCode.FAILED


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns what a user can meet into one line on stderr and the fitting exit code."""
    try:
        yield
    except (RingholdError, OSError) as error:
        text = f"ringhold: {str(error) or type(error).__name__}"
        errors.print(text, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(exit_code(error)) from error


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses become objects, bytes hexadecimal."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(plain(value)) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


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
