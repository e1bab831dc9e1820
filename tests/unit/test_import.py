"""Goal: importing Ringhold costs next to nothing, and every public name is there.

Method: a fresh interpreter imports the package and tells what it loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import ringhold
from ringhold import errors

HEAVY = ["asyncio", "fsspec", "apsw", "grpc", "typer", "rich", "concurrent.futures"]


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    ["import ringhold", "from ringhold import LockTimeout, NodeSpec", "import ringhold.core"],
)
def test_loads_nothing_heavy(statement: str) -> None:
    # The finding itself is proved first: what is imported on purpose is seen.
    assert "asyncio" in loaded_after("import asyncio")
    assert loaded_after(statement).isdisjoint(HEAVY)


def test_placement_and_checksums_load_nothing_heavy_either() -> None:
    statement = "import ringhold; ringhold.Ring(['a'])['k']; ringhold.checksum(b'x')"
    assert loaded_after(statement).isdisjoint(HEAVY)


def test_every_public_name_is_there() -> None:
    for name in ringhold.__all__:
        assert getattr(ringhold, name) is not None
    assert sorted(ringhold.__all__) == sorted(set(ringhold.__all__))
    assert set(ringhold.__all__) <= set(dir(ringhold))


def test_all_errors_are_public() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RingholdError)
    }
    assert tree <= set(ringhold.__all__)
    assert all(getattr(ringhold, name) is getattr(errors, name) for name in tree)


def test_a_star_import_leaves_the_builtin_open_alone() -> None:
    assert not {"open", "create"} & set(ringhold.__all__)
    assert callable(ringhold.open)
    assert callable(ringhold.create)
    assert {"open", "create"} <= set(dir(ringhold))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        ringhold.no_such_name  # noqa: B018
