"""Messages of protocol buffers, to and from bytes.

Guarantees: fields with their default value are not sent, as in proto3; fields that are unknown, or
not of the type known, are skipped, as later servers may send them; bytes that are no message raise
WireError and nothing else. Not covered, since etcd sends neither: packed numbers, groups, and one
message in several pieces (the last one counts).

A hand-written codec: two packages with generated code for the same messages cannot be imported
into one process, and generated code is tied to versions of the protobuf runtime.

Source: "Encoding" in the documentation of protocol buffers.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import astuple

VARINT = 0
FIXED64 = 1
LENGTH = 2
FIXED32 = 5
VARINT_BYTES_MAX = 10
MASK = (1 << 64) - 1
SIGN = 1 << 63

AnyMessage = TypeVar("AnyMessage", bound="Message")


class WireError(ValueError):
    """Bytes that are not the message they should be."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """Each field is Annotated with its number; it is repeated when its type is a tuple."""

    def encode(self) -> bytes:
        out: list[bytes] = []
        fields = _layout(type(self)).fields
        for value, (key, kind, repeated) in zip(astuple(self), fields, strict=True):
            # A message counts as true, an empty one as well.
            if not value:
                continue
            if kind is int:
                out += (key, _SHORT[value] if 0 <= value < 0x80 else encode_varint(value))
            elif repeated:
                for each in value:
                    body = each if kind is bytes else each.encode()
                    out += (key, encode_varint(len(body)), body)
            else:
                body = value if kind is bytes else value.encode()
                out += (key, encode_varint(len(body)), body)
        return b"".join(out)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """WireError."""
        try:
            return _decoded(cls, data, 0, len(data))
        except IndexError:
            raise WireError("a number is cut off") from None


@lru_cache(4096)
def encode_varint(value: int) -> bytes:
    """Of 64 bits; negative numbers in two's complement, as protocol buffers have them.

    Kept, since lengths and leases are the same again and again.
    """
    value &= MASK
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SHORT = [encode_varint(number) for number in range(0x80)]


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """A signed number, and where it ends. WireError; IndexError when the data ends before."""
    value = byte = data[at]
    shift = 0
    while byte >= 0x80:
        at += 1
        shift += 7
        if shift > 63:
            raise WireError("a number does not end")
        byte = data[at]
        # One less takes the mark off the byte before, which stands at this very place.
        value += byte - 1 << shift
    if shift == 63:
        value = ((value & MASK) ^ SIGN) - SIGN
    return value, at + 1


def _decoded(message: type[AnyMessage], data: bytes, at: int, end: int) -> AnyMessage:
    """The message that is data[at:end]. IndexError when a number reaches beyond `data`.

    Numbers of one byte, which most are, are read without a call.
    """
    _, known, defaults, repeated = _layout(message)
    values: list[Any] = [*defaults]
    while at < end:
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = decode_varint(data, at - 1)
        field = known.get(key)
        if field is None:
            at = _after_unknown(key, data, at)
            continue
        place, kind, is_repeated = field
        value: Any = data[at]
        at += 1
        if value >= 0x80:
            value, at = decode_varint(data, at - 1)
        if key & 7 == LENGTH:
            start = at
            at += value
            if not start <= at <= end:
                raise WireError(f"a field of {message.__name__} is cut off")
            if kind is bytes:
                value = data[start:at]
            elif kind is str:
                value = _text(data[start:at])
            else:
                value = _decoded(kind, data, start, at)
        elif kind is bool:
            value = value != 0
        if is_repeated:
            values[place] = values[place] or []
            values[place].append(value)
        else:
            values[place] = value
    if at > end:
        raise WireError(f"a field of {message.__name__} is cut off")
    for place in repeated:
        values[place] = tuple(values[place])
    return message(*values)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WireError("a field is no text") from error


def _after_unknown(key: int, data: bytes, at: int) -> int:
    """Where the field ends. WireError, IndexError."""
    kind = key & 7
    if kind == VARINT:
        last = at
        while data[last] >= 0x80:
            last += 1
        if last < at + VARINT_BYTES_MAX:
            return last + 1
    if kind == FIXED64:
        return at + 8
    if kind == FIXED32:
        return at + 4
    if kind == LENGTH:
        length, at = decode_varint(data, at)
        if length >= 0:
            return at + length
    raise WireError(f"what follows the key {key} is no field")


class _Layout(NamedTuple):
    """What is worked out once of a kind of message.

    fields: in the order of the values, what stands before each, its type (int for all numbers),
        and whether it is repeated
    known: by what stands before it, as a number, a field's place, type, and whether it is repeated
    repeated: the places of the fields that are repeated
    """

    fields: tuple[tuple[bytes, Any, bool], ...]
    known: dict[int, tuple[int, Any, bool]]
    defaults: tuple[Any, ...]
    repeated: tuple[int, ...]


@cache
def _layout(message: type[Message]) -> _Layout:
    hints = get_type_hints(message, include_extras=True)
    fields: list[tuple[bytes, Any, bool]] = []
    known: dict[int, tuple[int, Any, bool]] = {}
    for place, name in enumerate(message.__struct_fields__):
        hint, number = get_args(hints[name])
        repeated = get_origin(hint) is tuple
        # Of `tuple[X, ...]` and of `X | None`, X.
        within = [each for each in get_args(hint) if each not in (type(None), Ellipsis)]
        kind = within[0] if within else hint
        is_number = issubclass(kind, int)
        key = number << 3 | (VARINT if is_number else LENGTH)
        fields.append((encode_varint(key), int if is_number else kind, repeated))
        known[key] = (place, kind, repeated)
    places = tuple(place for place, (_, _, repeated) in enumerate(fields) if repeated)
    return _Layout(tuple(fields), known, message.__struct_defaults__, places)
