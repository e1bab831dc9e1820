"""Exit codes of the commands."""

from __future__ import annotations

import enum

from ringhold.errors import Corrupt, InvalidInput, Unavailable


class ExitCode(enum.IntEnum):
    """Of every command; `ringhold lock` passes its command's own code on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    CORRUPT = 4


def exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, Corrupt):
        return ExitCode.CORRUPT
    if isinstance(error, Unavailable):
        return ExitCode.UNAVAILABLE
    if isinstance(error, InvalidInput):
        return ExitCode.USAGE
    return ExitCode.FAILED
