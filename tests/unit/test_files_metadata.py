"""Goal: the tree of names keeps POSIX's rules and refuses bad paths by name.
Method: operations of `FileCore` on a memory store, each outcome compared with what `os` does, and
`fsck` after every test.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from files_fixture import Fixture, file_system

from ringhold.errors import InvalidInput
from ringhold.files.paths import join_path, split_path

pytestmark = pytest.mark.usefixtures("on_every_engine")


@contextlib.asynccontextmanager
async def checked() -> AsyncIterator[Fixture]:
    async with file_system() as fixture:
        yield fixture
        report = await fixture.core.fsck()
        assert report.ok, report.problems


def with_files(test: Callable[[Fixture], Awaitable[None]]) -> None:
    async def run() -> None:
        async with checked() as fixture:
            await test(fixture)

    asyncio.run(run())


async def names(fixture: Fixture) -> list[str]:
    return [join_path(status.parts) for status in await fixture.core.find(())][1:]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("", ()),
        ("/", ()),
        ("///", ()),
        ("a", (b"a",)),
        ("/a//b/", (b"a", b"b")),
        ("/\udcff", (b"\xff",)),
        (b"/\xff/x", (b"\xff", b"x")),
        ("/ü/...", ("ü".encode(), b"...")),
        ("/" + "x" * 255, (b"x" * 255,)),
        ("/a b\n\t*?", (b"a b\n\t*?",)),
    ],
)
def test_a_path_is_its_names(path: str | bytes, parts: tuple[bytes, ...]) -> None:
    assert split_path(path) == parts
    assert split_path(join_path(parts)) == parts


@pytest.mark.parametrize("path", ["/a/./b", ".", "..", "/a/../b", "/a\0b", b"\0", "/\ud800"])
def test_a_path_that_could_mean_two_things_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="path"):
        split_path(path)


@pytest.mark.parametrize("path", ["/" + "x" * 256, "/" + "ü" * 128, "/x" * 2049])
def test_a_path_that_is_too_long_is_refused(path: str) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        split_path(path)
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("path", [None, 1, 1.5, ["a"]])
def test_what_is_no_path_is_a_type_error(path: object) -> None:
    with pytest.raises(TypeError):
        split_path(path)  # type: ignore[arg-type]


def test_a_file_makes_its_parents_in_the_same_commit_or_is_refused() -> None:
    async def test(f: Fixture) -> None:
        before = await (await f.store.snapshot()).fix()
        await f.core.write(split_path("/seen"), b"")
        leased = await (await f.store.snapshot()).fix()
        await f.core.write(split_path("/a/b/c"), b"x")
        assert await (await f.store.snapshot()).fix() == leased + 1 > before
        assert await names(f) == ["/a", "/a/b", "/a/b/c", "/seen"]
        with pytest.raises(FileNotFoundError) as caught:
            await f.core.write(split_path("/x/y"), b"x", make_parents=False)
        assert caught.value.filename == "/x/y"
        with pytest.raises(NotADirectoryError):
            await f.core.write(split_path("/seen/y"), b"x")
        with pytest.raises(IsADirectoryError):
            await f.core.write(split_path("/a/b"), b"x")
        with pytest.raises(IsADirectoryError):
            await f.core.write((), b"x")
        with pytest.raises(FileExistsError):
            await f.core.write(split_path("/seen"), b"x", exclusive=True)

    with_files(test)


def test_directories_are_made_and_removed_as_posix_does() -> None:
    async def test(f: Fixture) -> None:
        core, path = f.core, split_path
        await core.make_directory(path("/a/b"))
        with pytest.raises(FileExistsError):
            await core.make_directory(path("/a"))
        await core.make_directory(path("/a"), exist_ok=True)
        with pytest.raises(FileNotFoundError):
            await core.make_directory(path("/x/y"), make_parents=False)
        await core.write(path("/f"), b"")
        with pytest.raises(FileExistsError):
            await core.make_directory(path("/f"), exist_ok=True)
        with pytest.raises(OSError, match="not empty"):
            await core.remove_directory(path("/a"))
        with pytest.raises(NotADirectoryError):
            await core.remove_directory(path("/f"))
        with pytest.raises(IsADirectoryError):
            await core.unlink([path("/a")])
        with pytest.raises(OSError, match="busy"):
            await core.remove_directory(())
        await core.remove_directory(path("/a/b"))
        await core.remove_directory(path("/a"))
        with pytest.raises(FileNotFoundError):
            await core.remove_directory(path("/a"))
        assert await names(f) == ["/f"]

    with_files(test)


def rename_case(source: str, target: str, error: type[OSError] | None, number: int = 0) -> None:
    async def test(f: Fixture) -> None:
        for directory in ("/dir/sub", "/empty", "/other/x"):
            await f.core.make_directory(split_path(directory))
        for file in ("/file", "/file2", "/dir/inner"):
            await f.core.write(split_path(file), file.encode())
        before = await names(f)
        renaming = f.core.rename([(split_path(source), split_path(target))], make_parents=False)
        if error is None:
            await renaming
            after = await names(f)
            if source != target:
                assert (source in after, target in after) == (False, True)
            return
        with pytest.raises(error) as caught:
            await renaming
        assert not number or caught.value.errno == number
        assert await names(f) == before

    with_files(test)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("/file", "/new"), ("/file", "/file2"), ("/file", "/file"), ("/dir", "/empty"),
        ("/dir", "/new"), ("/dir", "/other/x"), ("/dir/sub", "/other/sub"), ("/dir", "/dir"),
        ("/dir/inner", "/inner"),
    ],
)  # fmt: skip
def test_a_rename_that_posix_allows(source: str, target: str) -> None:
    rename_case(source, target, None)


@pytest.mark.parametrize(
    ("source", "target", "error", "number"),
    [
        ("/none", "/new", FileNotFoundError, 0),
        ("/file", "/none/new", FileNotFoundError, 0),
        ("/file", "/file2/new", NotADirectoryError, 0),
        ("/file", "/empty", IsADirectoryError, 0),
        ("/dir", "/file", NotADirectoryError, 0),
        ("/empty", "/dir", OSError, errno.ENOTEMPTY),
        ("/dir/sub", "/dir", OSError, errno.ENOTEMPTY),
        ("/dir", "/dir/sub/in", OSError, errno.EINVAL),
        ("/dir", "/dir/sub", OSError, errno.EINVAL),
        ("/", "/new", OSError, errno.EBUSY),
        ("/dir", "/", OSError, errno.EBUSY),
    ],
)
def test_a_rename_that_posix_refuses(
    source: str, target: str, error: type[OSError], number: int
) -> None:
    rename_case(source, target, error, number)


def test_a_removed_tree_is_gone_at_once_and_its_inodes_with_the_next_gc() -> None:
    async def test(f: Fixture) -> None:
        paths = [split_path(f"/t/{d}/{n}") for d in range(3) for n in range(300)]
        await asyncio.gather(*(f.core.write(p, b"x") for p in paths))
        await f.core.write(split_path("/t/large"), b"x" * 300_000)
        await f.core.remove_trees([split_path("/t"), split_path("/t/1")])
        assert await names(f) == []
        assert (await f.core.fsck()).ok
        await f.core.write(split_path("/t/1/again"), b"y")
        report = await f.core.gc(0)
        assert (report.trees, report.files, report.runs) == (4, 1, 1)
        assert len(await f.keys(b"I")) == len(["/", "/t", "/t/1", "/t/1/again"])
        assert await f.keys(b"G") == await f.keys(b"X") == await f.keys(b"C") == []
        assert all(not node.files for node in f.nodes)

    with_files(test)


def test_many_creates_in_one_directory_do_not_meet() -> None:
    async def test(f: Fixture) -> None:
        refused = 0
        commit = f.store.commit

        async def counted(**request: object) -> int:
            nonlocal refused
            try:
                return await commit(**request)  # type: ignore[arg-type]
            except Exception:
                refused += 1
                raise

        await f.core.make_directory(split_path("/d"))
        f.store.commit = counted  # type: ignore[method-assign, assignment]
        await asyncio.gather(*(f.core.write(split_path(f"/d/{n}"), b"x") for n in range(200)))
        assert refused == 0
        assert len(await names(f)) == 201

    with_files(test)


def test_a_create_and_a_removal_of_its_directory_never_both_succeed() -> None:
    async def test(f: Fixture) -> None:
        for number in range(100):
            directory = split_path(f"/d{number}")
            await f.core.make_directory(directory)
            removed, created = await asyncio.gather(
                f.core.remove_directory(directory),
                f.core.write((*directory, b"f"), b"x", make_parents=False),
                return_exceptions=True,
            )
            assert (removed is None) != (created is None)

    with_files(test)


def test_a_thousand_crossing_renames_lose_nothing_and_close_no_cycle() -> None:
    async def test(f: Fixture) -> None:
        for name in "abcd":
            await f.core.write(split_path(f"/{name}/file"), name.encode())

        async def cross(number: int) -> None:
            one, other = "abcd"[number % 4], "abcd"[(number // 4) % 4]
            for source, target in ((f"/{one}", f"/{other}/{one}"), (f"/{other}/{one}", f"/{one}")):
                with contextlib.suppress(OSError):
                    pair = (split_path(source), split_path(target))
                    await f.core.rename([pair], make_parents=False)

        for start in range(0, 500, 20):
            await asyncio.gather(*(cross(number) for number in range(start, start + 20)))
        found = await names(f)
        assert sorted(path[-6:-5] for path in found if path.endswith("/file")) == list("abcd")
        assert len(found) == 8

    with_files(test)
