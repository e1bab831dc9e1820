"""Where the C library lies that the installed package carries, and the command that tells.

`ringhold-config` prints what compilers and build systems ask for. A source tree that was not
installed carries no C library; then it says so, and how to get one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import ringhold


def _directory(relative: str) -> str:
    # An editable installation is in two places: sources, and what was compiled from them.
    for place in ringhold.__path__:
        if (found := Path(place, relative)).is_dir():
            return str(found.resolve())
    raise FileNotFoundError(
        f"there is no {relative} in {list(ringhold.__path__)}: the C library comes with an "
        "installed package (pip install ringhold), or without Python by cmake --install"
    )


def get_include() -> str:
    """The directory to compile with, for ``#include <ringhold/ringhold.h>``.

    FileNotFoundError where ringhold was not installed.
    """
    return _directory("include")


def get_cmake_dir() -> str:
    """The directory of the CMake package, for ``-Dringhold_DIR=``.

    FileNotFoundError where ringhold was not installed.
    """
    return _directory("lib/cmake/ringhold")


def get_pkgconfig_dir() -> str:
    """The directory of ``ringhold.pc``, for ``PKG_CONFIG_PATH``.

    FileNotFoundError where ringhold was not installed.
    """
    return _directory("lib/pkgconfig")


def _includes() -> str:
    return shlex.quote(f"-I{get_include()}")


def _libs() -> str:
    return f"{shlex.quote('-L' + _directory('lib'))} -lringhold -pthread"


_ANSWERS = {
    "--includes": (_includes, "flags to find the headers with"),
    "--cflags": (_includes, "flags to compile with"),
    "--libs": (_libs, "flags to link with"),
    "--cmakedir": (get_cmake_dir, "the directory of the CMake package"),
    "--pkgconfigdir": (get_pkgconfig_dir, "the directory of ringhold.pc"),
    "--version": (lambda: importlib.metadata.version("ringhold"), "the version of the package"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints an answer a line, in the order asked for; 2 when nothing was asked."""
    parser = argparse.ArgumentParser(
        prog="ringhold-config", description="How to compile and link with ringhold's C library."
    )
    for flag, (_, told) in _ANSWERS.items():
        parser.add_argument(flag, dest="asked", action="append_const", const=flag, help=told)
    asked = parser.parse_args(arguments).asked
    if not asked:
        parser.print_usage(sys.stderr)
        return 2
    try:
        for flag in asked:
            print(_ANSWERS[flag][0]())
    except FileNotFoundError as error:
        print(f"ringhold-config: {error}", file=sys.stderr)
        return 1
    return 0
