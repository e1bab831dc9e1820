"""Paths: text outside, tuples of byte names inside.

"" and "/" are the root. Repeated slashes count once and a trailing one is dropped. There are no
relative steps: "." and ".." are refused rather than resolved, since what they mean depends on
who asks and when.
"""

from __future__ import annotations

import errno
import os

from ringhold.errors import InvalidInput
from ringhold.types import decode_name

COMPONENT_BYTES_MAX = 255
PATH_BYTES_MAX = 4096

Parts = tuple[bytes, ...]


def split_path(path: str | bytes | os.PathLike[str]) -> Parts:
    """The names along `path`, root first; () is the root.

    Raises TypeError for what is no path, InvalidInput for ".", "..", NUL and text that is not
    UTF-8 with surrogateescape, OSError (ENAMETOOLONG) for a name over 255 or a path over 4096
    bytes.
    """
    raw: object = os.fspath(path)
    if isinstance(raw, str):
        try:
            encoded = raw.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidInput(f"path {raw!r} cannot be encoded as UTF-8: {error}") from None
    elif isinstance(raw, bytes):
        encoded = raw
    else:
        raise TypeError(f"a path must be str or bytes, not {type(raw).__name__}")
    if len(encoded) > PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), decode_name(encoded))
    parts = tuple(name for name in encoded.split(b"/") if name)
    for name in parts:
        if name in (b".", b".."):
            raise InvalidInput(
                f"path {decode_name(encoded)!r} contains {decode_name(name)!r}: "
                "write the path it stands for"
            )
        if b"\0" in name:
            raise InvalidInput(f"path {decode_name(encoded)!r} contains a NUL byte")
        if len(name) > COMPONENT_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), decode_name(encoded))
    return parts


def join_path(parts: Parts) -> str:
    """The one text of a path: "/" or "/a/b"."""
    return "/" + decode_name(b"/".join(parts))


def file_error(number: int, parts: Parts, other: Parts | None = None) -> OSError:
    """The builtin file error for `number` (ENOENT gives FileNotFoundError, and so on)."""
    if other is None:
        return OSError(number, os.strerror(number), join_path(parts))
    return OSError(number, os.strerror(number), join_path(parts), None, join_path(other))
