"""The installed C library is found wherever the package lies, and its absence is told.

Method: the package's search path is pointed at directories made for the test.
"""

import pytest

import ringhold
from ringhold.config import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    directory = tmp_path / "a place" / "ringhold"
    for part in ("include/ringhold", "lib/cmake/ringhold", "lib/pkgconfig"):
        (directory / part).mkdir(parents=True)
    monkeypatch.setattr(ringhold, "__path__", [str(tmp_path / "sources"), str(directory)])
    return directory


def test_the_directories_are_those_of_the_installed_part(place):
    assert ringhold.get_include() == str(place / "include")
    assert ringhold.get_cmake_dir() == str(place / "lib/cmake/ringhold")
    assert ringhold.get_pkgconfig_dir() == str(place / "lib/pkgconfig")


@pytest.fixture(autouse=True)
def version(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2.3 of {name}")


def test_the_command_answers_in_the_order_asked(place, capsys):
    assert main(["--pkgconfigdir", "--libs", "--cmakedir", "--version"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(place / "lib/pkgconfig"),
        f"'-L{place}/lib' -lringhold -pthread",
        str(place / "lib/cmake/ringhold"),
        "1.2.3 of ringhold",
    ]
    assert main(["--includes"]) == main(["--cflags"]) == 0
    assert capsys.readouterr().out == f"'-I{place}/include'\n" * 2


def test_the_command_wants_a_question(capsys):
    assert main([]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["--nonsense"])
    assert stopped.value.code == 2
    assert "--cmakedir" in capsys.readouterr().err


def test_a_tree_that_was_not_installed_says_how_to_get_the_library(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ringhold, "__path__", [str(tmp_path)])
    for function in (ringhold.get_include, ringhold.get_cmake_dir, ringhold.get_pkgconfig_dir):
        with pytest.raises(FileNotFoundError, match="pip install ringhold"):
            function()
    assert main(["--version", "--libs"]) == 1
    printed = capsys.readouterr()
    assert "pip install ringhold" in printed.err
    assert printed.out == "1.2.3 of ringhold\n"
