"""The identity file of a node directory: two lines of text, written once, when it is adopted.

    {"format":1,"cluster":"<hex>","name":"<name>","incarnation":1}
    <XXH3-64 of the first line without its end, 16 hex digits>

Format version 1 stands for the whole directory: identity file, `data/`, `tmp/`, `quarantine/`,
`failed` and the chunk files' format 1. A directory of a newer format is refused, never mended.
"""

from __future__ import annotations

import msgspec

from ringhold.core import checksum
from ringhold.errors import ChecksumMismatch, Corrupt, InvalidInput
from ringhold.nodes.base import Identity

FILE_NAME = "identity"
FORMAT = 1
FILE_BYTES_MAX = 16 << 10


class _Line(msgspec.Struct, frozen=True):
    format: int
    cluster: str
    name: str
    incarnation: int


class _FormatOnly(msgspec.Struct, frozen=True):
    format: int


def _checksum_line(line: bytes) -> bytes:
    return f"{checksum(line):016x}\n".encode()


def encode(identity: Identity) -> bytes:
    """The file's content. InvalidInput for a name that is empty or not valid UTF-8."""
    if not identity.name or identity.incarnation < 1:
        raise InvalidInput(f"a node needs a name and an incarnation from 1 on, not {identity}")
    try:
        line = msgspec.json.encode(
            _Line(FORMAT, identity.cluster.hex(), identity.name, identity.incarnation)
        )
    except UnicodeEncodeError:
        raise InvalidInput(f"node name {identity.name!r} is not valid UTF-8") from None
    if len(line) + 18 > FILE_BYTES_MAX:
        raise InvalidInput(f"node name of {len(identity.name)} characters is too long")
    return line + b"\n" + _checksum_line(line)


def decode(content: bytes, path: str) -> Identity:
    """The identity in `content`, read from `path`; Corrupt when damaged or of a newer format."""
    line, end, rest = content.partition(b"\n")
    if not end or rest != _checksum_line(line):
        raise ChecksumMismatch(
            f"identity file {path} of {len(content)} bytes does not match its checksum", what=path
        )
    try:
        found = msgspec.json.decode(line, type=_FormatOnly).format
        if found != FORMAT:
            raise Corrupt(
                f"node directory of {path} has format {found}, this version reads {FORMAT}",
                what=path,
            )
        fields = msgspec.json.decode(line, type=_Line)
        return Identity(bytes.fromhex(fields.cluster), fields.name, fields.incarnation)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Corrupt(f"identity file {path} is not one of a node: {error}", what=path) from error
