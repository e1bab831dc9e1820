"""Other people's programs find, compile, link and run with an installed ringhold.

Method: the programs of csrc/tests/consumer are built against the wheel, installed in an
environment of its own, and against the library installed to a prefix without Python, which is
moved to another place first. What they print is compared with what Python answers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native import ROOT, run

CONSUMER = ROOT / "csrc/tests/consumer"

# The first test of a run waits for the wheel.
pytestmark = pytest.mark.timeout(900)

EXPECTED = """
import ringhold
print(ringhold.Ring(["a", "b"])["key"], f"{ringhold.checksum('key'.encode()):016x}",
      ringhold.__version__)
"""


@pytest.fixture(scope="module")
def expected(python: Path) -> str:
    return run(str(python), "-I", "-c", EXPECTED)


def ask(python: Path, *flags: str) -> list[str]:
    return run(str(python.with_name("ringhold-config")), *flags).split()


def build_all(cmake_dir: Path | str, build: Path) -> None:
    run("cmake", "-S", str(CONSUMER), "-B", str(build), f"-Dringhold_DIR={cmake_dir}")
    run("cmake", "--build", str(build), "--parallel", "2")


def check_service(program: Path) -> None:
    printed = run(str(program), "128000")
    assert "operations 128000\n" in printed
    assert "nodes used 12 of 12" in printed


def test_c_and_cxx_by_find_package(python: Path, tmp_path: Path, expected: str) -> None:
    (cmake_dir,) = ask(python, "--cmakedir")
    build_all(cmake_dir, tmp_path)
    assert run(str(tmp_path / "program")) == expected
    assert run(str(tmp_path / "program_cxx")) == expected
    check_service(tmp_path / "service")
    assert "rh_" not in run("nm", "--dynamic", "--defined-only", str(tmp_path / "libplugin.so"))


def test_c_by_pkg_config(python: Path, tmp_path: Path, expected: str) -> None:
    (directory,) = ask(python, "--pkgconfigdir")
    asked = [sys.executable, "-m", "pkgconf", f"--with-path={directory}"]
    flags = run(*asked, "--cflags", "--libs", "ringhold").split()
    program = str(tmp_path / "program")
    run("cc", "-std=c11", str(CONSUMER / "program.c"), *flags, "-o", program)
    assert run(program) == expected
    assert run(*asked, "--modversion", "ringhold") == expected.split()[2] + "\n"
    assert run(*asked, "--variable=api_version", "ringhold") == "1.0\n"


def test_c_by_ringhold_config(python: Path, tmp_path: Path, expected: str) -> None:
    flags = ask(python, "--cflags", "--libs")
    program = str(tmp_path / "program")
    run("cc", "-std=c11", str(CONSUMER / "program.c"), *flags, "-o", program)
    assert run(program) == expected
    assert ask(python, "--version") == [expected.split()[2]]
    assert ask(python, "--includes") == ask(python, "--cflags")


USE_CYTHON_CONSUMER = """
import gc
import ringhold
from consumer import placed

keys = [b"key-%d" % i for i in range(1000)]
ring = ringhold.Ring(["a", "b", "c"])
assert placed.owners(ring, keys) == [ring[key] for key in keys]
assert placed.checksum(b"ringhold") == ringhold.checksum(b"ringhold")
assert len(set(placed.versions())) == 1

class Old:
    names = ("a", "b")
    def __init__(self):
        ring = ringhold.Ring(self.names)
        self.capsule = ring.__ringhold_ring__()
    def __ringhold_ring__(self):
        return self.capsule

old, expected = Old(), ringhold.Ring(["a", "b"])
gc.collect()
assert placed.owners(old, keys) == [expected[key] for key in keys], "the ring outlives its object"

changed = ringhold.Ring(["a", "b"])
old.capsule = changed.__ringhold_ring__()
changed.add("c")
assert placed.owners(old, keys) == [expected[key] for key in keys], "a capsule does not change"

class Strange:
    def __ringhold_ring__(self):
        import datetime
        return datetime.datetime_CAPI
try:
    placed.owners(Strange(), keys)
except ValueError:
    print("done")
"""


def test_cython_by_cimport(python: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(CONSUMER / "cython", tmp_path / "sources")
    run(
        str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        str(sources),
    )  # fmt: skip
    assert run(str(python), "-I", "-c", USE_CYTHON_CONSUMER) == "done\n"


@pytest.fixture(scope="module", params=["static", "shared"])
def prefix(
    request: pytest.FixtureRequest,
    sources: Path,
    xxhash_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Where the library was moved to after it was built and installed without Python."""
    directory = tmp_path_factory.mktemp(request.param)
    build, installed, moved = directory / "build", directory / "installed", directory / "moved"
    run(
        "cmake", "-S", str(sources / "csrc"), "-B", str(build),
        f"-DCMAKE_INSTALL_PREFIX={installed}",
        "-DCMAKE_INSTALL_LIBDIR=lib",
        f"-DBUILD_SHARED_LIBS={'ON' if request.param == 'shared' else 'OFF'}",
        f"-DxxHash_INCLUDE_DIR={xxhash_directory}",
    )  # fmt: skip
    run("cmake", "--build", str(build), "--parallel", "2")
    run("cmake", "--install", str(build))
    installed.rename(moved)
    return moved


def test_programs_with_a_library_of_a_prefix(prefix: Path, tmp_path: Path, expected: str) -> None:
    build_all(prefix / "lib/cmake/ringhold", tmp_path)
    assert run(str(tmp_path / "program")) == expected
    check_service(tmp_path / "service")
    asked = [sys.executable, "-m", "pkgconf", f"--with-path={prefix / 'lib/pkgconfig'}"]
    flags = run(*asked, "--cflags", "--libs", "ringhold").split()
    program = str(tmp_path / "by_pkg_config")
    run("cc", "-std=c11", str(CONSUMER / "program.c"), *flags, "-o", program)
    environment = os.environ | {"LD_LIBRARY_PATH": str(prefix / "lib")}
    done = subprocess.run([program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == expected


def test_a_prefix_has_the_headers_the_licences_and_a_versioned_library(prefix: Path) -> None:
    headers = {path.name for path in (ROOT / "csrc/include/ringhold").iterdir()}
    assert {path.name for path in (prefix / "include/ringhold").iterdir()} == headers
    licences = prefix / "share/licenses/ringhold"
    assert {path.name for path in licences.iterdir()} == {"LICENSE", "LICENSE-xxHash"}
    shared = prefix / "lib/libringhold.so"
    if prefix.parent.name.startswith("shared"):
        assert "[libringhold.so.1]" in run("readelf", "--dynamic", "--wide", str(shared))
        exported = run("nm", "--dynamic", "--defined-only", str(shared)).split()[2::3]
        assert "rh_ring_new" in exported
        assert not [name for name in exported if not name.startswith("rh_")]
        assert not [name for name in exported if name.startswith("rh_isa_")]
    else:
        assert (prefix / "lib/libringhold.a").is_file()
        assert not shared.exists()
