"""``ringhold fs``: the files of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

import ringhold
from ringhold.cli.exits import ExitCode
from ringhold.cli.output import (
    ClusterOption,
    JsonOption,
    human_bytes,
    print_json,
    reported_errors,
)
from ringhold.cli.terminal import console, print_table, progress_bar

app = typer.Typer(no_args_is_help=True, help="Work with the files of a cluster.")

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Whole directories.")]
PathArgument = Annotated[str, typer.Argument(help="A path in the cluster.")]

CAT_BYTES = 4 << 20


@contextmanager
def file_system(url: str) -> Iterator[Any]:
    with reported_errors(), ringhold.open(url, create=False) as cluster:
        yield cluster.fs


def _row(info: dict[str, Any]) -> tuple[str, str, str]:
    kind = "d" if info["type"] == "directory" else "-"
    changed = datetime.fromtimestamp(info["mtime"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    return kind, human_bytes(info["size"]) if kind == "-" else "", changed


@app.command("ls")
def list_directory(
    cluster: ClusterOption,
    path: PathArgument = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="Type, size and time.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List a directory."""
    with file_system(cluster) as fs:
        infos = fs.ls(path, detail=True)
    if as_json:
        print_json(infos)
    elif long:
        rows = [(*_row(info), os.path.basename(info["name"])) for info in infos]
        print_table(("", "size", "modified", "name"), rows)
    else:
        for info in infos:
            slash = "/" if info["type"] == "directory" else ""
            console.print(os.path.basename(info["name"]) + slash, markup=False, soft_wrap=True)


@app.command()
def tree(cluster: ClusterOption, path: PathArgument = "/", as_json: JsonOption = False) -> None:
    """Show a directory and all below it."""
    with file_system(cluster) as fs:
        top = fs.info(path)["name"].rstrip("/")
        found = sorted(fs.find(path, withdirs=True, detail=True).items())
    infos = [info for name, info in found if name.rstrip("/") != top]
    if as_json:
        print_json(infos)
        return
    console.print(top or "/", markup=False)
    for info in infos:
        name = info["name"][len(top) :].strip("/")
        depth = name.count("/") + 1
        size = "/" if info["type"] == "directory" else f"  {human_bytes(info['size'])}"
        text = "  " * depth + os.path.basename(name) + size
        console.print(text, markup=False, soft_wrap=True)


@app.command()
def cat(cluster: ClusterOption, paths: Annotated[list[str], typer.Argument()]) -> None:
    """Write files to standard output."""
    with file_system(cluster) as fs:
        for path in paths:
            with fs.open(path, "rb") as source:
                while data := source.read(CAT_BYTES):
                    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@app.command()
def put(
    cluster: ClusterOption,
    source: Annotated[str, typer.Argument(help="A file or directory of this machine.")],
    target: PathArgument,
    recursive: Recursive = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a file or a tree into the cluster."""
    with file_system(cluster) as fs, progress_bar("put") as progress:
        fs.put(source, target, recursive=recursive, callback=progress)
    if as_json:
        print_json({"put": source, "path": target})


@app.command()
def get(
    cluster: ClusterOption,
    source: PathArgument,
    target: Annotated[str, typer.Argument(help="Where on this machine.")],
    recursive: Recursive = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a file or a tree out of the cluster."""
    with file_system(cluster) as fs, progress_bar("get") as progress:
        fs.get(source, target, recursive=recursive, callback=progress)
    if as_json:
        print_json({"got": source, "path": target})


@app.command()
def cp(
    cluster: ClusterOption,
    source: PathArgument,
    target: PathArgument,
    recursive: Recursive = False,
    as_json: JsonOption = False,
) -> None:
    """Copy within the cluster."""
    with file_system(cluster) as fs:
        fs.cp(source, target, recursive=recursive)
    if as_json:
        print_json({"copied": source, "path": target})


@app.command()
def mv(
    cluster: ClusterOption, source: PathArgument, target: PathArgument, as_json: JsonOption = False
) -> None:
    """Rename a file or directory, atomically."""
    with file_system(cluster) as fs:
        fs.mv(source, target)
    if as_json:
        print_json({"moved": source, "path": target})


@app.command()
def rm(
    cluster: ClusterOption,
    paths: Annotated[list[str], typer.Argument()],
    recursive: Recursive = False,
    as_json: JsonOption = False,
) -> None:
    """Remove files and, with -r, directories."""
    with file_system(cluster) as fs:
        for path in paths:
            fs.rm(path, recursive=recursive)
    if as_json:
        print_json({"removed": paths})


@app.command()
def fsck(
    cluster: ClusterOption,
    copies: Annotated[
        bool, typer.Option("--copies", help="Also ask the nodes for every chunk's copies.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the tree's invariants; exit 4 when one is broken."""
    with file_system(cluster) as fs, progress_bar("fsck") as progress:
        report = fs.fsck(copies=copies, progress=progress)
    if as_json:
        print_json(report)
    else:
        for problem in report.problems:
            console.print(str(problem), markup=False, soft_wrap=True)
        console.print(
            f"{report.files} files, {report.directories} directories, {report.chunks} chunks: "
            f"{len(report.problems)} problems"
        )
    if report.problems:
        raise typer.Exit(ExitCode.CORRUPT)
