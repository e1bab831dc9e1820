"""Goal: the namespace is a tree of directories and files, whatever is done to it in whatever order.
Method: hypothesis runs random operations on a cluster in memory and on plain dictionaries that mean
the same, and compares outcome and whole tree; then the same operations run several at a time,
when any outcome must be one of some order, so `fsck` and a count of what may be lost decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringhold import aio

numbers = itertools.count()
names = st.sampled_from(["a", "b", "c", "ü", "\udcff"])
paths = st.lists(names, min_size=0, max_size=4).map(tuple)
operations = st.one_of(
    st.tuples(st.just("write"), paths, st.binary(max_size=3)),
    st.tuples(st.just("create"), paths, st.binary(max_size=3)),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("makedirs"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rm"), paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("copy"), paths, paths),
)
Path = tuple[str, ...]


class Model:
    """Directories are dictionaries, files are bytes; every refusal is an OSError by name."""

    def __init__(self) -> None:
        self.root: dict[str, Any] = {}

    def at(self, path: Path) -> Any:
        node: Any = self.root
        for name in path:
            if not isinstance(node, dict):
                raise NotADirectoryError
            if name not in node:
                raise FileNotFoundError
            node = node[name]
        return node

    def get(self, path: Path) -> Any:
        try:
            return self.at(path)
        except FileNotFoundError:
            return None

    def parent(self, path: Path, *, make: bool) -> dict[str, Any]:
        node: Any = self.root
        for name in path[:-1]:
            node = node.setdefault(name, {}) if make else node[name]
        assert isinstance(node, dict)
        return node

    def write(self, path: Path, data: bytes, *, exclusive: bool = False) -> None:
        old = self.get(path)
        if isinstance(old, dict):
            raise IsADirectoryError
        if old is not None and exclusive:
            raise FileExistsError
        self.parent(path, make=True)[path[-1]] = data

    def create(self, path: Path, data: bytes) -> None:
        self.write(path, data, exclusive=True)

    def mkdir(self, path: Path) -> None:
        if self.get(path) is not None:
            raise FileExistsError
        if not isinstance(self.at(path[:-1]), dict):
            raise NotADirectoryError
        self.parent(path, make=False)[path[-1]] = {}

    def makedirs(self, path: Path) -> None:
        if isinstance(self.get(path), bytes):
            raise FileExistsError
        if path:
            self.parent(path, make=True).setdefault(path[-1], {})

    def rmdir(self, path: Path) -> None:
        node = self.at(path)
        if not isinstance(node, dict):
            raise NotADirectoryError
        if node or not path:
            raise OSError
        del self.parent(path, make=False)[path[-1]]

    def unlink(self, path: Path) -> None:
        if isinstance(self.at(path), dict):
            raise IsADirectoryError
        del self.parent(path, make=False)[path[-1]]

    def rm(self, path: Path) -> None:
        self.at(path)
        if path:
            del self.parent(path, make=False)[path[-1]]
        else:
            self.root.clear()

    def rename(self, source: Path, target: Path) -> None:
        node = self.at(source)
        if source == target:
            return
        if not source or not target:
            raise OSError
        if isinstance(node, dict) and target[: len(source)] == source:
            raise OSError
        old = self.get(target)
        if isinstance(node, bytes) and isinstance(old, dict):
            raise IsADirectoryError
        if isinstance(node, dict) and isinstance(old, bytes):
            raise NotADirectoryError
        if isinstance(node, dict) and old:
            raise OSError
        del self.parent(source, make=False)[source[-1]]
        self.parent(target, make=True)[target[-1]] = node

    def copy(self, source: Path, target: Path) -> None:
        node = self.at(source)
        if isinstance(node, dict):
            raise IsADirectoryError
        if source != target:
            self.write(target, node)

    def tree(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {"/": None}

        def add(path: str, node: dict[str, Any]) -> None:
            for name, child in node.items():
                found[f"{path}/{name}"] = child if isinstance(child, bytes) else None
                if isinstance(child, dict):
                    add(f"{path}/{name}", child)

        add("", self.root)
        return found


def raw_path(path: Path) -> tuple[bytes, ...]:
    return tuple(part.encode("utf-8", "surrogateescape") for part in path)


async def apply(core: Any, operation: tuple[Any, ...], view: Any = None) -> None:
    name, *rest = operation
    if name == "rename each":
        return await core.rename([(raw_path(a), raw_path(b)) for a, b in rest[0]], view=view)
    if name == "unlink each":
        return await core.unlink([raw_path(path) for path in rest[0]], view)
    raw = raw_path(rest[0])
    if name in ("rename", "copy"):
        target = raw_path(rest[1])
        await (
            core.rename([(raw, target)], view=view)
            if name == "rename"
            else core.copy(raw, target, view)
        )
    elif name in ("write", "create"):
        await core.write(raw, rest[1], view, exclusive=name == "create")
    elif name in ("mkdir", "makedirs"):
        many = name == "makedirs"
        await core.make_directory(raw, make_parents=many, exist_ok=many, view=view)
    elif name == "unlink":
        await core.unlink([raw], view)
    else:
        await (
            core.remove_directory(raw, view) if name == "rmdir" else core.remove_trees([raw], view)
        )


async def tree(fs: Any) -> dict[str, bytes | None]:
    found = await fs._find("/", withdirs=True, detail=True)
    return {
        path: None if info["type"] == "directory" else await fs._cat_file(path)
        for path, info in found.items()
    }


async def outcome(work: Any) -> str:
    try:
        await work
    except OSError as error:
        return type(error).__name__
    return ""


def run(test: Any) -> None:
    async def body() -> None:
        async with await aio.create(f"memory://namespace-{next(numbers)}") as cluster:
            await test(cluster.fs)
            await cluster.fs._gc(0)
            report = await cluster.fs._fsck(copies=True)
            assert report.ok, report.problems

    asyncio.run(body())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, min_size=1, max_size=40))
def test_one_after_the_other_they_do_what_dictionaries_do(todo: list[tuple[Any, ...]]) -> None:
    async def test(fs: Any) -> None:
        model = Model()
        for operation in todo:
            name, *rest = operation
            expected = ""
            try:
                getattr(model, name)(*rest)
            except OSError as error:
                expected = type(error).__name__
            assert await outcome(apply(fs.core, operation)) == expected, operation
        assert await tree(fs) == model.tree()

    run(test)


pairs_moved = st.lists(st.tuples(paths, paths), min_size=1, max_size=4)
inside = st.one_of(
    operations,
    st.tuples(st.just("rename each"), pairs_moved),
    st.tuples(st.just("unlink each"), st.lists(paths, min_size=1, max_size=4)),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, max_size=12), st.lists(inside, min_size=1, max_size=20))
def test_an_operation_that_fails_inside_a_transaction_leaves_nothing_of_itself(
    before: list[tuple[Any, ...]], todo: list[tuple[Any, ...]]
) -> None:
    """Several steps of one operation are all done or none: the model's copy is thrown away."""

    async def test(fs: Any) -> None:
        model = Model()
        for operation in before:
            with contextlib.suppress(OSError):
                await apply(fs.core, operation)
                getattr(model, operation[0])(*operation[1:])
        async with fs.transaction:
            view = fs._view()
            for name, *rest in todo:
                copied, expected = copy.deepcopy(model), ""
                each = [step if name == "rename each" else (step,) for step in rest[0]]
                try:
                    if name.endswith(" each"):
                        for step in each:
                            getattr(copied, name.removesuffix(" each"))(*step)
                    else:
                        getattr(copied, name)(*rest)
                    model = copied
                except OSError as error:
                    expected = type(error).__name__
                assert await outcome(apply(fs.core, (name, *rest), view)) == expected
        assert await tree(fs) == model.tree()
        report = await fs._fsck(copies=True)
        assert report.ok, report.problems

    run(test)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(operations, min_size=1, max_size=12), min_size=2, max_size=5))
def test_several_at_a_time_leave_a_tree(tasks: list[list[tuple[Any, ...]]]) -> None:
    async def test(fs: Any) -> None:
        async def work(todo: list[tuple[Any, ...]]) -> None:
            for operation in todo:
                await outcome(apply(fs.core, operation))
                await asyncio.sleep(0)

        await asyncio.gather(*(work(todo) for todo in tasks))
        report = await fs._fsck(copies=True)
        assert report.ok, report.problems

    run(test)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(paths.filter(bool), paths.filter(bool)), min_size=4, max_size=40
    )
)  # fmt: skip
def test_renames_at_the_same_time_lose_no_file(pairs: list[tuple[Path, Path]]) -> None:
    """No rename target is ever a file, so every file must be somewhere at the end."""

    async def test(fs: Any) -> None:
        directories = [f"/{one}/{other}" for one in "abc" for other in "abc"]
        for number, directory in enumerate(directories):
            await fs._pipe_file(f"{directory}/file{number}", b"%d" % number)

        async def move(source: Path, target: Path) -> None:
            await outcome(apply(fs.core, ("rename", source, target)))

        await asyncio.gather(*(move(source, target) for source, target in pairs))
        kept = Counter(value for value in (await tree(fs)).values() if value is not None)
        assert kept == Counter(b"%d" % number for number in range(len(directories)))

    run(test)
