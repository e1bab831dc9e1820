"""All commands of ``ringhold``, and those that make and show a cluster: init, status."""

from __future__ import annotations

from typing import Annotated

import typer

import ringhold
from ringhold.cli import demo, files, lock, node
from ringhold.cli.output import (
    ClusterOption,
    JsonOption,
    counted,
    human_bytes,
    print_json,
    reported_errors,
)
from ringhold.cli.terminal import console, print_table
from ringhold.errors import InvalidInput
from ringhold.files.records import INLINE_BYTES_MAX
from ringhold.types import NodeSpec

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Placement, locks, transactions and files that survive failing machines.",
)
app.add_typer(files.app, name="fs")
app.command("demo")(demo.demo)
app.command("node")(node.node)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(ringhold.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _node_spec(text: str) -> NodeSpec:
    """NAME, NAME=DIRECTORY or NAME=HOST:PORT, each with an optional @ZONE."""
    text, _, zone = text.partition("@")
    name, _, place = text.partition("=")
    host, _, port = place.rpartition(":")
    if host and port.isdigit():
        return NodeSpec(name, address=place, zone=zone or None)
    return NodeSpec(name, path=place or None, zone=zone or None)


def _nodes(nodes: str | None, specs: list[str] | None) -> int | list[NodeSpec] | None:
    """What --nodes and --node say together. InvalidInput."""
    if nodes is not None and (digits := nodes.removeprefix("-")).isascii() and digits.isdecimal():
        if specs:
            raise InvalidInput(f"--nodes {nodes} is a count, which goes without --node")
        return int(nodes)
    named = [] if nodes is None else nodes.split(",")
    if not all("=" in text for text in named):
        raise InvalidInput(f"--nodes {nodes} is neither a count nor NAME=PLACE,NAME=PLACE,…")
    return [_node_spec(text) for text in [*named, *(specs or ())]] or None


def _copies(count: int) -> str:
    return counted(count, "copy", "copies")


@app.command(
    "lock",
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
)
def lock_command(context: typer.Context) -> None:
    """Run a command while holding a lock, like flock(1)."""
    raise typer.Exit(lock.main(context.args))


@app.command()
def init(
    cluster: Annotated[str, typer.Argument(help="URL or directory of the new cluster.")],
    nodes: Annotated[
        str | None,
        typer.Option(
            help="How many, as directories inside or in --path; or several NAME=PLACE at once, "
            "separated by commas."
        ),
    ] = None,
    node_specs: Annotated[
        list[str] | None,
        typer.Option("--node", help="NAME, NAME=DIRECTORY or NAME=HOST:PORT, with @ZONE; repeat."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Copies of every chunk.")] = 1,
    zone: Annotated[
        list[str] | None, typer.Option(help="Zones dealt out to --nodes in turn; repeat.")
    ] = None,
    chunk_size: Annotated[int, typer.Option(help="Bytes; a power of two.")] = 8 << 20,
    path: Annotated[
        str | None, typer.Option(help="A directory of this host for a count of --nodes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a cluster: in a directory, or at etcd://HOST:2379/NAME with nodes in places of their
    own."""
    with (
        reported_errors(),
        ringhold.create(
            cluster,
            nodes=_nodes(nodes, node_specs),
            replicas=replicas,
            zones=zone,
            chunk_size=chunk_size,
            path=path,
        ) as created,
    ):
        status = created.status()
    if as_json:
        print_json(status)
    else:
        nodes_made = counted(len(status.nodes), "node", "nodes")
        console.print(f"created {status.url}: {nodes_made}, {_copies(replicas)}")


@app.command()
def status(cluster: ClusterOption, as_json: JsonOption = False) -> None:
    """Show a cluster and its nodes."""
    with reported_errors(), ringhold.open(cluster, create=False) as opened:
        found = opened.status()
    if as_json:
        print_json(found)
        return
    chunk = human_bytes(found.chunk_size)
    console.print(f"{found.url}: {_copies(found.replicas)} of every chunk of {chunk}")
    if not found.nodes:
        console.print(f"It has no nodes, and keeps files of up to {INLINE_BYTES_MAX} bytes.")
        return
    rows = [
        (n.name, n.zone or "", n.address or n.path or "", "up" if n.up else "DOWN", n.partitions)
        for n in found.nodes
    ]
    print_table(("node", "zone", "place", "state", "partitions"), rows)
