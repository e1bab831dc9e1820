"""The source release and the wheel hold what they should and nothing else.

Method: both are built once and listed; expected is what the source tree has. What compiled code
shows to others is read with the compiler's own nm and readelf.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from native import ROOT, run

PACKAGE = ROOT / "src/ringhold"
HEADERS = sorted(path.name for path in (ROOT / "csrc/include/ringhold").iterdir())

# The first test of a run waits for the wheel.
pytestmark = pytest.mark.timeout(900)


def relative(directory: Path, *patterns: str) -> set[str]:
    found = (path for pattern in patterns for path in directory.rglob(pattern))
    return {str(path.relative_to(directory)) for path in found}


def test_the_source_release_has_every_source_and_no_product(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for directory in ("csrc", "src"):
        wanted = relative(ROOT / directory, "*.[ch]", "*.cpp", "*.py", "*.pyi", "*.pyx", "*.pxd")
        wanted |= relative(ROOT / directory, "CMakeLists.txt", "*.cmake", "*.in", "py.typed")
        assert {f"{directory}/{name}" for name in wanted} <= names
    assert {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"} <= names
    unwanted = re.compile(r"\.(so|o|a|pyc)$|__pycache__|^(benchmarks|build|dist|\.ci|\.github)/")
    assert not [name for name in names if unwanted.search(name)]


def test_the_wheel_has_the_package_and_the_c_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (information,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    modules = {name for name in names if name.endswith(".so")}
    assert {name.partition(".")[0] for name in modules} == {
        f"ringhold/{name.removesuffix('.pyx')}" for name in relative(PACKAGE, "*.pyx")
    }
    python = relative(PACKAGE, "*.py", "*.pyi", "*.pxd", "py.typed")
    library = {f"include/ringhold/{name}" for name in HEADERS} | {
        "lib/libringhold.a",
        "lib/cmake/ringhold/ringhold-config-version.cmake",
        "lib/cmake/ringhold/ringhold-config.cmake",
        "lib/cmake/ringhold/ringhold-targets-release.cmake",
        "lib/cmake/ringhold/ringhold-targets.cmake",
        "lib/pkgconfig/ringhold.pc",
    }
    described = {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}
    described |= {"licenses/LICENSE", "licenses/LICENSE-xxHash"}
    expected = modules | {f"ringhold/{name}" for name in python | library}
    assert names == expected | {f"{information}/{name}" for name in described}


def test_the_licence_of_what_is_compiled_in_goes_along(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("LICENSE-xxHash"))
        text = archive.read(name).decode()
    for said in ("Yann Collet", "BSD 2-Clause License", "Redistributions in binary form", "DAMAGE"):
        assert said in text
    assert "*/" not in text


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory / "ringhold"


def test_the_archive_is_plain_position_independent_code(unpacked: Path) -> None:
    archive = str(unpacked / "lib/libringhold.a")
    assert ".gnu.lto_" not in run("readelf", "--sections", "--wide", archive)
    relocations = run("readelf", "--relocs", "--wide", archive)
    assert "R_X86_64_32 " not in relocations
    assert "R_X86_64_32S " not in relocations


def test_what_links_the_archive_does_not_export_it(unpacked: Path) -> None:
    symbols = run("readelf", "--symbols", "--wide", str(unpacked / "lib/libringhold.a"))
    lines = [line.split() for line in symbols.splitlines()]
    defined = [
        line for line in lines if len(line) == 8 and line[4] == "GLOBAL" and line[6] != "UND"
    ]
    assert {"rh_ring_new", "rh_checksum"} <= {line[7] for line in defined}
    assert {line[5] for line in defined} == {"HIDDEN"}
    # Visibility is no matter within one static link: a name of the program's own would clash.
    assert [line[7] for line in defined if not line[7].startswith("rh_")] == []


def test_a_module_exports_its_beginning_alone(unpacked: Path) -> None:
    modules = sorted((unpacked / "core").glob("*.so"))
    for module in modules:
        shown = run("nm", "--dynamic", "--defined-only", str(module)).split()[2::3]
        assert shown == [f"PyInit_{module.name.partition('.')[0]}"]
    assert modules
