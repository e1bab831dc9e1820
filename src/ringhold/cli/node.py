"""``ringhold node``: serves a directory as a storage node."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

import ringhold
from ringhold.cli.output import reported_errors
from ringhold.env import real_env
from ringhold.errors import InvalidInput
from ringhold.nodes.server import loop_factory, ready_line, serve


def parse_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"address {text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


async def _serve(data: str, host: str, port: int, replace: str | None, cluster: str | None) -> None:
    """Serves until told to end; with `replace`, takes that node's place before saying ready."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.ensure_future(serve(data, host, port, real_env(), ready=listening.set_result))
    try:
        waited: list[asyncio.Future[Any]] = [server, listening]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            address = listening.result()
            if replace is not None and cluster is not None:
                async with ringhold.aio.open(cluster, create=False) as opened:
                    await opened.replace_node(replace, address=address)
            print(ready_line(address, replace), flush=True)
        await server
    finally:
        server.cancel()
        await asyncio.wait([server])


def node(
    data: Annotated[str, typer.Option(help="The node's directory.")],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT on loopback; port 0 picks one.")
    ] = "127.0.0.1:0",
    replace: Annotated[
        str | None, typer.Option(help="Take the place of this node of --cluster.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", envvar="RINGHOLD_CLUSTER", help="Needed by --replace."),
    ] = None,
) -> None:
    """Serve a directory as a storage node; prints one JSON line when ready, ends on SIGTERM."""
    with reported_errors():
        if replace is not None and cluster is None:
            raise InvalidInput("--replace needs --cluster or $RINGHOLD_CLUSTER")
        host, port = parse_address(listen)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(data, host, port, replace, cluster))
