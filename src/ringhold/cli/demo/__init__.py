"""``ringhold demo``: the main job on real files, with real processes killed."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ringhold.assembly.location import parse_url
from ringhold.cli.command import SIGNALLED
from ringhold.cli.demo.etcd import HOST, EtcdServer, find_etcd
from ringhold.cli.demo.steps import STEPS, Demo, StepFailed, Stopwatch, standard_library
from ringhold.cli.exits import ExitCode
from ringhold.cli.output import JsonOption, print_json, reported_errors
from ringhold.cli.terminal import console, errors, print_table, progress_bar
from ringhold.errors import RingholdError
from ringhold.store.etcd.address import PORT

EMBEDDED, ETCD = "embedded", "etcd"
NAME = "demo"
SCHEMES = ("etcd://", "etcds://")
RAISED_AGAIN_S = 0.01


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
    store: Annotated[
        str,
        typer.Option(
            help="embedded; etcd, which starts one on loopback; or the etcd:// URL of a cluster "
            "to be made in an etcd that runs."
        ),
    ] = EMBEDDED,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on real files: lose a node, a lock holder and some bits, and nothing else.

    Every step is checked; exit 1 when one claim is not true.
    """
    if store not in (EMBEDDED, ETCD):
        if not store.startswith(SCHEMES):
            raise typer.BadParameter("embedded, etcd or an etcd:// URL", param_hint="--store")
        with reported_errors():
            parse_url(store)
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="ringhold-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise typer.BadParameter(f"{directory} is not empty", param_hint="--directory")
    if source is not None and directory.is_relative_to(source):
        raise typer.BadParameter(f"{directory} lies within SOURCE", param_hint="--directory")
    _log_to(directory / "demo.log")
    rows: list[tuple[str, str]] = []
    watch = Stopwatch()
    _end_at_signals()
    with reported_errors(), _stored(store, directory, rows) as url:
        state = Demo(str(source or standard_library()), str(directory), url, rows)
        failure = _run(state, quiet=as_json)
    state.note("Time", f"{watch.seconds:.1f} s in all")
    stored = _ended_etcd(directory) if store == ETCD else parse_url(url).url
    state.note("Cluster", f"{stored}, nodes in {directory / 'nodes'}")
    if as_json:
        print_json({"passed": failure is None, "failure": failure, "table": dict(state.rows)})
    else:
        console.rule("What was done, survived and measured")
        print_table(("", ""), state.rows)
    if failure is not None:
        errors.print(f"ringhold demo: not true: {failure}", style="red", markup=False)
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _stored(store: str, directory: Path, rows: list[tuple[str, str]]) -> Iterator[str]:
    """The URL of the cluster to be made; its store is there inside the block."""
    if store == EMBEDDED:
        yield str(directory / "cluster")
    elif store == ETCD:
        server = EtcdServer(_etcd_data(directory))
        try:
            server.start()
            rows.append(("Store", f"etcd {server.version}, one member, at {server.endpoint}"))
            yield f"etcd://{server.endpoint}/{NAME}"
        finally:
            server.stop()
    else:
        yield store


def _etcd_data(directory: Path) -> str:
    return str(directory / "etcd")


def _ended_etcd(directory: Path) -> str:
    """How to see again what the etcd of the demonstration held, which has ended with it."""
    again = shlex.join([find_etcd(), "--data-dir", _etcd_data(directory)])
    return f"its etcd has ended; `{again}` serves it as etcd://{HOST}:{PORT}/{NAME}"


def _end_at_signals() -> None:
    """What was started must not outlive us because somebody ended us or closed the terminal.

    Python ignores what is raised in a finalizer or in the callback of a weak reference: an end
    that came there is raised again a moment later.
    """
    number = 0

    def end(arrived: int, frame: FrameType | None) -> None:
        nonlocal number
        signal.setitimer(signal.ITIMER_REAL, 0)
        if arrived != signal.SIGALRM:
            number = arrived
        raise SystemExit(SIGNALLED + number)

    def ignored(what: sys.UnraisableHookArgs) -> None:
        if number and isinstance(what.exc_value, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, RAISED_AGAIN_S)
        else:
            sys.__unraisablehook__(what)

    sys.unraisablehook = ignored
    signal.signal(signal.SIGALRM, end)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, end)


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
