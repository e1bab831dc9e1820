"""What the packaging tests share, made once: a source release, the wheel built from it, and an
environment of its own in which that wheel and nothing of this tree is installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
from native import ENVIRONMENT, ROOT, run

BUILD_SDIST = """
import sys
from scikit_build_core.build import build_sdist
print(build_sdist(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-c", BUILD_SDIST, str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = directory.iterdir()
    return archive


@pytest.fixture(scope="session")
def sources(sdist: Path) -> Path:
    """The unpacked source release, so that a file it lacks is missed by every test below."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.with_name(sdist.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", str(directory), str(sources),
    )  # fmt: skip
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and with what builds Cython packages."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False, symlinks=True)
    installed = directory / "bin/python"
    ENVIRONMENT.pop("PYTHONPATH", None)  # which may lead to the tree instead
    run(
        sys.executable, "-m", "pip", "--python", str(installed), "install", "--quiet", str(wheel),
        "scikit-build-core", "cython", "cython-cmake", "pip",
    )  # fmt: skip
    return installed


@pytest.fixture(scope="session")
def xxhash_directory(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the header is, fetched at most once for all builds of the library by itself."""
    build = tmp_path_factory.mktemp("xxhash")
    run("cmake", "-S", str(sources / "csrc"), "-B", str(build))
    cache = (build / "CMakeCache.txt").read_text().splitlines()
    (found,) = (line for line in cache if line.startswith("xxHash_INCLUDE_DIR:PATH="))
    return Path(found.partition("=")[2])
