"""The C core builds and passes its own tests without Python, plain and under sanitizers.

Method: CMake configures csrc into a fresh directory, once alone and once from the top, and ctest
runs what came out; ctest is asked first how many tests there are, so that none is skipped unseen.
"""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from native import ROOT, build, run, run_tests, start


@pytest.fixture(scope="module")
def xxhash_directory(tmp_path_factory):
    """The header is fetched at most once for all builds of this file."""
    build = tmp_path_factory.mktemp("xxhash")
    run("cmake", "-S", str(ROOT / "csrc"), "-B", str(build))
    cache = (build / "CMakeCache.txt").read_text()
    found = re.search(r"^xxHash_INCLUDE_DIR:PATH=(.+)$", cache, re.MULTILINE)
    assert found is not None
    assert (Path(found[1]) / "xxhash.h").is_file()
    return found[1]


@pytest.mark.parametrize(
    ("source", "sanitizers"),
    [("csrc", ""), (".", ""), ("csrc", "address,undefined"), ("csrc", "thread")],
    ids=["alone", "from-the-top", "sanitized", "threads-sanitized"],
)
def test_the_core_builds_and_passes_its_tests(source, sanitizers, tmp_path, xxhash_directory):
    build(
        ROOT / source,
        tmp_path,
        f"-DRINGHOLD_SANITIZE={sanitizers}",
        f"-DxxHash_INCLUDE_DIR={xxhash_directory}",
    )
    run_tests(tmp_path)


def test_without_the_header_and_fetching_off_one_line_says_what_to_do(tmp_path):
    done = start(
        "cmake",
        "-S", str(ROOT / "csrc"),
        "-B", str(tmp_path),
        "-DRINGHOLD_XXHASH_FETCH=OFF",
        "-DCMAKE_FIND_ROOT_PATH=/nonexistent",
        "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
    )  # fmt: skip
    assert done.returncode != 0
    assert "libxxhash-dev" in re.sub(r"\s+", " ", done.stderr)


def test_the_versions_agree():
    header = (ROOT / "csrc/include/ringhold/ringhold.h").read_text()
    parts = re.findall(r"#define RH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ".".join(parts) == project["version"]


def test_public_headers_do_not_show_xxhash(tmp_path):
    include = ROOT / "csrc/include"
    program = tmp_path / "program.c"
    program.write_text("#include <ringhold/ringhold.h>\nint main(void) { return 0; }\n")
    compiler = shutil.which("cc") or "gcc"
    seen = run(compiler, "-std=c11", "-E", f"-I{include}", str(program))
    assert "rh_ring_new" in seen
    assert "xxh" not in seen.lower()
