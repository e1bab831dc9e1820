"""How commands speak to programs: JSON, errors in one line; the options they share."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ringhold.cli.exits import exit_code
from ringhold.cli.terminal import errors
from ringhold.errors import RingholdError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster", "-c", envvar="RINGHOLD_CLUSTER", help="URL or directory of the cluster."
    ),
]


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


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, one: str, several: str) -> str:
    """ "1 copy", "2 copies"."""
    return f"{count} {one if count == 1 else several}"
