"""Which addresses a daemon serves and a client goes to: those of this host only."""

from __future__ import annotations

import ipaddress

from ringhold.errors import InvalidInput


def loopback_address(host: str, what: str) -> str:
    """`host` as a numeric loopback address; InvalidInput for any other, naming it as `what`."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise InvalidInput(f"{what} {host!r} is not a numeric address") from None
    if not address.is_loopback:
        raise InvalidInput(
            f"{what} {host} is not loopback: nodes do not yet know who connects, so they serve "
            "this host only"
        )
    return str(address)


def node_address(address: str, name: str) -> tuple[str, int]:
    """The numeric loopback address and the port in `address`, "host:port", of the node `name`."""
    host, colon, port = address.rpartition(":")
    digits = port.isascii() and port.isdecimal()
    if not host or not colon or not digits or not 0 < int(port) < 65536:
        raise InvalidInput(f"address {address!r} of node {name} is not host:port")
    return loopback_address(host.strip("[]"), f"address of node {name}:"), int(port)
