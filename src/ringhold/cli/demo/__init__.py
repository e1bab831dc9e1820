"""``ringhold demo``: the main job on real files, with real processes killed."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ringhold.cli.demo.steps import STEPS, Demo, StepFailed, Stopwatch, standard_library
from ringhold.cli.exits import ExitCode
from ringhold.cli.output import JsonOption, print_json
from ringhold.cli.terminal import console, errors, print_table, progress_bar
from ringhold.errors import RingholdError


def demo(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="The files to work on; the standard library of Python by default.",
            exists=True,
            file_okay=False,
            resolve_path=True,
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Where to work; a new temporary directory by default.", resolve_path=True
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on real files: lose a node, a lock holder and some bits, and nothing else.

    Every step is checked; exit 1 when one claim is not true.
    """
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="ringhold-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise typer.BadParameter(f"{directory} is not empty", param_hint="--directory")
    if source is not None and directory.is_relative_to(source):
        raise typer.BadParameter(f"{directory} lies within SOURCE", param_hint="--directory")
    _log_to(directory / "demo.log")
    state = Demo(str(source or standard_library()), str(directory))
    watch = Stopwatch()
    failure = _run(state, quiet=as_json)
    state.note("Time", f"{watch.seconds:.1f} s in all")
    state.note("Cluster", f"{state.url}, nodes in {directory / 'nodes'}")
    if as_json:
        print_json({"passed": failure is None, "failure": failure, "table": dict(state.rows)})
    else:
        console.rule("What was done, survived and measured")
        print_table(("", ""), state.rows)
    if failure is not None:
        errors.print(f"ringhold demo: not true: {failure}", style="red", markup=False)
        raise typer.Exit(ExitCode.FAILED)


def _log_to(path: Path) -> None:
    """Loss and repair are told in a file: here they are part of the show, and thousands."""
    logger = logging.getLogger("ringhold")
    logger.addHandler(logging.FileHandler(path))
    logger.propagate = False


def _run(state: Demo, *, quiet: bool) -> str | None:
    """Runs all steps; returns what was not true, or None."""
    try:
        for step in STEPS:
            title = (step.__doc__ or "").strip()
            before = len(state.rows)
            watch = Stopwatch()
            with progress_bar(title) as progress:
                step(state, progress)
            if not quiet:
                console.print(f"[green]✓[/green] {title} [dim]({watch.seconds:.1f} s)[/dim]")
                for what, figure in state.rows[before:]:
                    console.print(f"    {what}: {figure}", markup=False, soft_wrap=True)
    except (StepFailed, RingholdError, OSError, RuntimeError) as error:
        return f"{(step.__doc__ or '').strip()}: {error or type(error).__name__}"
    finally:
        state.close()
    return None
