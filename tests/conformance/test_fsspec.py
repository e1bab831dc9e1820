"""Goal: ``cluster.fs`` is what programs written for fsspec expect.
Method: fsspec's own abstract suite (copy, get, put, open, pipe), on a cluster in memory and on
one of directories with three copies, then the calls that its consumers are known to make.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import fsspec.tests.abstract as abstract
import pytest
from etcd_engines import ETCD_ABOVE, ETCD_LONG, cluster_at

import ringhold

CHUNK = 64 << 10
DELETED_CHUNKS_MAX = 50
"""Of files that earlier tests deleted: the copies of all of them are read after each test."""


@pytest.fixture(scope="module", params=["memory", "sqlite", *ETCD_ABOVE])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("clusters")
    url, options = cluster_at(request.param, f"fsspec-{directory.name}", directory, nodes=3)
    with ringhold.create(url, **options, replicas=3, chunk_size=CHUNK) as cluster:
        yield cluster


class _Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, cluster: Any) -> Any:
        return cluster.fs

    @pytest.fixture
    def fs_path(self) -> str:
        return "/top"


# Dozens of patterns, which fsspec resolves by the same few calls each time.
globs = pytest.mark.parametrize("cluster", ["memory", "sqlite", *ETCD_LONG], indirect=True)


class TestCopy(abstract.AbstractCopyTests, _Fixtures):
    test_copy_glob_edge_cases = globs(abstract.AbstractCopyTests.test_copy_glob_edge_cases)


class TestGet(abstract.AbstractGetTests, _Fixtures):
    test_get_glob_edge_cases = globs(abstract.AbstractGetTests.test_get_glob_edge_cases)


class TestPut(abstract.AbstractPutTests, _Fixtures):
    test_put_glob_edge_cases = globs(abstract.AbstractPutTests.test_put_glob_edge_cases)


class TestOpen(abstract.AbstractOpenTests, _Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, _Fixtures):
    pass


@pytest.fixture
def fs(cluster: Any) -> Iterator[Any]:
    yield cluster.fs
    cluster.fs.rm("/", recursive=True)
    report = cluster.fs.fsck(copies=True)
    assert report.ok, report.problems
    if report.chunks > DELETED_CHUNKS_MAX:
        cluster.fs.gc(grace_s=0)


def test_info_has_the_keys_that_consumers_read(fs: Any) -> None:
    before = datetime.now(UTC).timestamp()
    fs.pipe_file("/d/f", b"12345")
    file, directory = fs.info("/d/f"), fs.info("ringhold://d/")
    assert file["name"] == "/d/f"
    assert (file["type"], file["size"]) == ("file", 5)
    assert (directory["type"], directory["name"]) == ("directory", "/d")
    assert before - 1 < file["mtime"] <= datetime.now(UTC).timestamp()
    assert {"created", "mode", "uid", "gid", "nlink", "ino"} <= file.keys()
    assert fs.modified("/d/f") == datetime.fromtimestamp(file["mtime"], UTC)
    assert fs.created("/d/f").tzinfo is not None


def test_ranges_may_be_negative_and_beyond_the_end(fs: Any) -> None:
    data = os.urandom(3 * CHUNK + 17)
    fs.pipe({"/small": b"0123456789", "/large": data})
    for path, whole in (("/small", b"0123456789"), ("/large", data)):
        size = len(whole)
        for start, end in [
            (None, None), (2, 5), (-3, None), (None, -3), (-5, -2), (0, 10**9), (size, None),
            (5, 2), (CHUNK - 1, CHUNK + 1), (-(10**9), 4),
        ]:  # fmt: skip
            first = max(0, size + start) if start is not None and start < 0 else start
            assert fs.cat_file(path, start, end) == whole[first:end]
    ranges = fs.cat_ranges(["/small", "/large", "/none"], [0, -4, 0], [2, None, 1])
    assert ranges[:2] == [b"01", data[-4:]]
    assert isinstance(ranges[2], FileNotFoundError)


def test_listing_calls_agree(fs: Any) -> None:
    fs.pipe({"/a/1": b"", "/a/b/2": b"22", "/a/b/c/3": b"333", "/z": b""})
    assert fs.ls("/a", detail=False) == ["/a/1", "/a/b"]
    assert fs.ls("/a/1", detail=False) == ["/a/1"]
    assert fs.find("/") == ["/a/1", "/a/b/2", "/a/b/c/3", "/z"]
    assert fs.find("/a", maxdepth=1) == ["/a/1"]
    assert fs.find("/a/b", withdirs=True) == ["/a/b", "/a/b/2", "/a/b/c", "/a/b/c/3"]
    assert fs.glob("/a/**/3") == ["/a/b/c/3"]
    assert fs.glob("/a/*") == ["/a/1", "/a/b"]
    assert list(fs.walk("/a")) == [
        ("/a", ["b"], ["1"]),
        ("/a/b", ["c"], ["2"]),
        ("/a/b/c", [], ["3"]),
    ]
    assert fs.du("/a") == 5
    with pytest.raises(FileNotFoundError):
        fs.ls("/none")
    assert not fs.exists("/z/below/a/file")


def test_open_files_behave_like_files(fs: Any) -> None:
    lines = [b"line %d\n" % number for number in range(30_000)]
    with fs.open("/lines", "wb") as file:
        file.writelines(lines)
        assert not fs.exists("/lines")
        assert file.tell() == sum(map(len, lines))
    whole = b"".join(lines)
    with fs.open("/lines", "rb") as file:
        assert file.size == len(whole) > 4 * CHUNK
        assert list(file) == lines
        assert file.seek(-7, 2) == len(whole) - 7
        assert file.read() == whole[-7:]
        file.seek(CHUNK - 3)
        assert file.read(6) == whole[CHUNK - 3 : CHUNK + 3]
        target = bytearray(2 * CHUNK)
        file.seek(1)
        assert file.readinto(target) == len(target)
        assert target == whole[1 : 1 + len(target)]
        assert pickle.loads(pickle.dumps(file)).read(3) == file.read(3)
    with fs.open("/lines", "r") as file:
        assert file.read().encode() == whole
    assert fs.read_block("/lines", 10, 100, b"\n").endswith(b"\n")


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, CHUNK, CHUNK + 1, 3 * CHUNK, 70 * CHUNK + 5])
def test_every_size_round_trips_by_every_way_in_and_out(fs: Any, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    local = tmp_path / "in"
    local.write_bytes(data)
    fs.pipe_file("/piped", data)
    fs.put_file(str(local), "/put")
    with fs.open("/written", "wb") as file:
        view = memoryview(data)
        while view:
            file.write(view[:50_000])
            view = view[50_000:]
    fs.cp_file("/piped", "/copied")
    for path in ("/piped", "/put", "/written", "/copied"):
        assert fs.cat_file(path) == data
        assert fs.size(path) == size
        fs.get_file(path, str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == data
        with fs.open(path) as file:
            assert file.read() == data


def test_compression_and_text_publish_on_close_and_discard_on_error(fs: Any) -> None:
    with fs.open("/t.gz", "wt", compression="gzip") as file:
        file.write("grüße\n")
    assert gzip.decompress(fs.cat_file("/t.gz")).decode() == "grüße\n"
    with fs.open("/t.gz", "rt", compression="infer") as file:
        assert file.read() == "grüße\n"
    for mode, compression in (("wb", None), ("w", None), ("wb", "gzip"), ("w", "gzip")):
        with contextlib.suppress(KeyError), fs.open("/no", mode, compression=compression) as file:
            file.write(b"half" if "b" in mode else "half")
            raise KeyError
        assert not fs.exists("/no")


HANDLES = """
class Handles:
    def __init__(self, handle):
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.close()

    def write(self, data):
        self.handle.write(data)

    def close(self):
        self.handle.flush()
        self.handle.close()
"""


def handles_of(module: str) -> Any:
    """A class like pandas' IOHandles, in `module`: leaving it closes, whatever the reason."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(HANDLES, namespace)
    return namespace["Handles"]


@contextlib.contextmanager
def called_back(file: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        yield file


WAYS: dict[str, Callable[[Any, str, str | None], Any]] = {
    "fs.open": lambda fs, mode, how: fs.open("/f", mode, compression=how),
    "fsspec.open": lambda fs, mode, how: fsspec.open(
        "ringhold:///f", mode, compression=how, cluster=fs.cluster
    ),
    "OpenFile": lambda fs, mode, how: fsspec.core.OpenFile(fs, "/f", mode, how),
    "closing": lambda fs, mode, how: contextlib.closing(fs.open("/f", mode, compression=how)),
    "ExitStack": lambda fs, mode, how: called_back(fs.open("/f", mode, compression=how)),
    "pandas": lambda fs, mode, how: handles_of("pandas.io.common")(
        fs.open("/f", mode, compression=how)
    ),
}


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("mode", ["wb", "wt"])
@pytest.mark.parametrize("way", WAYS)
def test_an_exception_that_leaves_a_block_discards_whoever_closes_the_file(
    fs: Any, way: str, mode: str, compression: str | None
) -> None:
    data: Any = b"half" if mode == "wb" else "half"
    fs.pipe_file("/f", b"good old contents")
    with contextlib.suppress(KeyError), WAYS[way](fs, mode, compression) as file:
        file.write(data)
        raise KeyError
    assert fs.cat_file("/f") == b"good old contents"
    with WAYS[way](fs, mode, compression) as file:
        file.write(data)
    written = fs.cat_file("/f")
    assert (gzip.decompress(written) if compression else written) == b"half"


def test_a_close_that_discards_is_logged_with_the_path(
    fs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.suppress(KeyError), contextlib.closing(fs.open("/no", "wb")):
        raise KeyError
    assert not fs.exists("/no")
    logged = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("/no is discarded" in message for message in logged)


@pytest.mark.parametrize("outer", [contextlib.nullcontext, contextlib.ExitStack])
def test_a_user_s_own_exit_that_writes_a_report_publishes_it(fs: Any, outer: Any) -> None:
    class ErrorLog:
        def __enter__(self) -> None:
            self.file = fs.open("/log", "wb")

        def __exit__(self, kind: object, error: BaseException, _: object) -> None:
            self.file.write(f"failed: {error!r}".encode())
            self.file.close()

    with contextlib.suppress(ValueError), outer() as stack:
        if stack is None:
            with ErrorLog():
                raise ValueError("x")
        stack.enter_context(ErrorLog())
        raise ValueError("x")
    assert fs.cat_file("/log") == b"failed: ValueError('x')"
    with contextlib.suppress(KeyError), handles_of("application.io")(fs.open("/own", "wb")) as own:
        own.write(b"kept")
        raise KeyError
    assert fs.cat_file("/own") == b"kept"


def test_closed_by_name_a_file_is_published_in_a_handler_too(fs: Any) -> None:
    file = fs.open("/except", "wb")
    try:
        file.write(b"kept")
        raise KeyError
    except KeyError:
        file.close()
    assert fs.cat_file("/except") == b"kept"
    file = fs.open("/finally", "wb")
    with contextlib.suppress(KeyError):
        try:
            file.write(b"kept")
            raise KeyError
        finally:
            file.close()
    assert fs.cat_file("/finally") == b"kept"


def test_what_is_written_about_an_exception_while_it_leaves_a_block_is_kept(fs: Any) -> None:
    class Reporter:
        def __enter__(self) -> None:
            return None

        def __exit__(self, kind: type[BaseException], error: object, _: object) -> bool:
            by_name = fs.open("/by-name", "w")
            by_name.write(kind.__name__)
            by_name.close()
            with fsspec.open("ringhold:///by-block", "w", cluster=fs.cluster) as file:
                file.write(kind.__name__)
            return True

    with Reporter():
        raise KeyError
    assert fs.cat(["/by-name", "/by-block"]) == {"/by-name": b"KeyError", "/by-block": b"KeyError"}


def test_coroutines_that_only_close_are_told_of_exceptions_alike(fs: Any) -> None:
    async def use(fail: bool) -> None:
        async with contextlib.AsyncExitStack() as stack:
            file = await fs.open_async("/f", "wb")
            stack.push_async_callback(file.close)
            await file.write(b"new")
            if fail:
                raise KeyError

    fs.pipe_file("/f", b"good old contents")
    with contextlib.suppress(KeyError):
        asyncio.run(use(True))
    assert fs.cat_file("/f") == b"good old contents"
    asyncio.run(use(False))
    assert fs.cat_file("/f") == b"new"


def test_a_file_being_written_answers_as_io_does(fs: Any) -> None:
    for compression in (None, "gzip"):
        with fs.open("/f", "wb", compression=compression) as file:
            for reading in (file.read, file.readline, lambda f=file: f.readinto(bytearray(1))):
                with pytest.raises(io.UnsupportedOperation):
                    reading()
            file.flush(force=True)
            file.flush()
            assert file.write(memoryview(b"0123456789")[::2]) == 5
            file.write(memoryview(b"abcdef")[::-1])
        with fs.open("/f", "rb", compression=compression) as file:
            assert file.read() == b"02468fedcba"
    with fs.open("/f", "rb") as file, pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    fs.pipe_file("/f", memoryview(b"0123456789")[::2])
    assert fs.cat_file("/f") == b"02468"


def test_what_has_too_long_a_name_does_not_exist(fs: Any) -> None:
    for path in ("/" + "x" * 256, "/x" * 2100):
        assert not fs.exists(path)
        assert not fs.isfile(path)
        assert not fs.isdir(path)
        with pytest.raises(OSError, match="too long"):
            fs.info(path)


def test_a_get_that_fails_leaves_the_local_file_as_it_was(fs: Any, tmp_path: Path) -> None:
    fs.pipe_file("/large", os.urandom(20 * CHUNK))
    target, linked = tmp_path / "target", tmp_path / "linked"
    target.write_bytes(b"precious")
    target.chmod(0o640)
    linked.symlink_to("target")
    before = set(os.listdir(tmp_path))

    class Failing(fsspec.Callback):  # type: ignore[misc]
        """Fails when the first bytes are there."""

        def relative_update(self, inc: int = 1) -> None:
            raise RuntimeError("enough")

    for path in (target, linked, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="enough"):
            fs.get_file("/large", str(path), callback=Failing())
    assert target.read_bytes() == b"precious"
    assert set(os.listdir(tmp_path)) == before
    fs.get_file("/large", str(linked))
    assert linked.is_symlink()
    assert target.read_bytes() == fs.cat_file("/large")
    assert target.stat().st_mode & 0o777 == 0o640
    assert set(os.listdir(tmp_path)) == before


def test_a_get_that_is_cancelled_leaves_nothing_behind(fs: Any, tmp_path: Path) -> None:
    fs.pipe_file("/large", os.urandom(20 * CHUNK))
    target = tmp_path / "target"
    target.write_bytes(b"precious")

    async def cancelled() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        class Telling(fsspec.Callback):  # type: ignore[misc]
            def relative_update(self, inc: int = 1) -> None:
                loop.call_soon_threadsafe(begun.set)
                resume.wait(30)

        resume = threading.Event()
        getting = asyncio.ensure_future(fs._get_file("/large", str(target), callback=Telling()))
        await begun.wait()
        getting.cancel()
        loop.call_later(0, resume.set)
        with pytest.raises(asyncio.CancelledError):
            await getting

    asyncio.run(cancelled())
    assert target.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["target"]


def test_get_writes_into_what_is_no_regular_file(fs: Any, tmp_path: Path) -> None:
    data = os.urandom(5 * CHUNK)
    fs.pipe_file("/large", data)
    fs.get_file("/large", os.devnull)
    assert not os.path.isfile(os.devnull)
    with open(tmp_path / "object", "w+b") as target:
        fs.get_file("/large", target)
        target.seek(0)
        assert target.read() == data
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(fifo.read_bytes)
        fs.get_file("/large", str(fifo))
        assert reading.result(30) == data
    assert fifo.is_fifo()


def test_an_unclosed_writer_is_discarded_with_a_warning(fs: Any) -> None:
    for mode in ("wb", "w"):
        file = fs.open("/lost", mode)
        file.write(b"x" if mode == "wb" else "x")
        with pytest.warns(ResourceWarning, match="/lost was opened for writing and never closed"):
            del file
        assert not fs.exists("/lost")


def test_modes_that_are_not_offered_say_so(fs: Any) -> None:
    with pytest.raises(NotImplementedError, match="append"):
        fs.open("/x", "ab")
    with pytest.raises(ringhold.InvalidInput, match="r\\+b"):
        fs.open("/x", "r+b")


def test_mv_is_a_rename(fs: Any) -> None:
    fs.pipe({"/a/f": b"1", "/b/f": b"2", "/d/g": b"3"})
    ino = fs.info("/a/f")["ino"]
    fs.mv("/a/f", "/b/f")
    assert (fs.cat_file("/b/f"), fs.info("/b/f")["ino"]) == (b"1", ino)
    fs.mv("/b/f", "/d/")
    fs.mv("/d", "/e/deeper")
    assert fs.find("/") == ["/e/deeper/f", "/e/deeper/g"]
    with pytest.raises(OSError, match="Invalid argument"):
        fs.mv("/e", "/e/deeper/e")


def test_rm_takes_lists_globs_and_trees(fs: Any) -> None:
    fs.pipe({f"/t/{name}/{number}": b"x" for name in "ab" for number in range(3)})
    fs.rm(["/t/a/0", "/t/a/1"])
    fs.rm("/t/b/*")
    assert fs.find("/t", withdirs=True) == ["/t", "/t/a", "/t/a/2", "/t/b"]
    with pytest.raises(IsADirectoryError):
        fs.rm("/t/a")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("/t/a")
    fs.rmdir("/t/b")
    fs.rm("/t", recursive=True)
    assert fs.ls("/") == []


def test_touch_ukey_and_checksum_follow_the_contents(fs: Any) -> None:
    fs.touch("/f")
    keys = [fs.ukey("/f")]
    fs.pipe_file("/f", b"one")
    keys.append(fs.ukey("/f"))
    fs.pipe_file("/f", b"two")
    keys.append(fs.ukey("/f"))
    assert fs.ukey("/f") == keys[-1]
    fs.touch("/f", truncate=False)
    assert fs.cat_file("/f") == b"two"
    keys.append(fs.ukey("/f"))
    fs.touch("/f")
    assert fs.size("/f") == 0
    assert len(set(keys)) == len(keys)
    assert isinstance(fs.checksum("/f"), int)


def test_instances_by_url_are_one_cluster_and_survive_pickling(cluster: Any, fs: Any) -> None:
    fs.pipe_file("/shared", b"x")
    other = fsspec.filesystem("ringhold", cluster=cluster.url)
    assert other is fsspec.filesystem("ringhold", cluster=cluster.url)
    assert other.cat_file("/shared") == b"x"
    assert pickle.loads(pickle.dumps(other)) is other
    assert pickle.loads(pickle.dumps(fs)).cat_file("/shared") == b"x"
    with fsspec.open("ringhold:///shared", "rb", cluster=cluster.url) as file:
        assert file.read() == b"x"


def test_the_cluster_comes_from_the_environment_or_is_asked_for(
    cluster: Any, fs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RINGHOLD_CLUSTER", raising=False)
    with pytest.raises(ringhold.InvalidInput, match="RINGHOLD_CLUSTER"):
        fsspec.filesystem("ringhold")
    monkeypatch.setenv("RINGHOLD_CLUSTER", cluster.url)
    fs.pipe_file("/env", b"x")
    with fsspec.open("ringhold:///env") as file:
        assert file.read() == b"x"
    fsspec.get_filesystem_class("ringhold").clear_instance_cache()


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two directories, each with a cluster ``data`` that knows which one it is."""
    monkeypatch.delenv("RINGHOLD_CLUSTER", raising=False)
    places = [tmp_path / "p", tmp_path / "q"]
    for place in places:
        place.mkdir()
        with ringhold.create(place / "data") as cluster:
            cluster.fs.pipe_file("/who", place.name.encode())
    yield places
    fsspec.get_filesystem_class("ringhold").clear_instance_cache()


def test_the_environment_is_read_when_the_instance_is_made(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, pickled = [], []
    for place in two:
        monkeypatch.setenv("RINGHOLD_CLUSTER", str(place / "data"))
        made.append(fsspec.filesystem("ringhold"))
        pickled.append(pickle.dumps(made[-1]))
    assert [fs.cat_file("/who") for fs in made] == [b"p", b"q"]
    assert made[0] != made[1]
    for forget in (lambda: None, type(made[0]).clear_instance_cache):
        forget()
        assert [pickle.loads(p).cat_file("/who") for p in pickled] == [b"p", b"q"]
    again = fsspec.AbstractFileSystem.from_json(made[0].to_json())
    assert again.cat_file("/who") == b"p"


def test_a_relative_url_means_the_directory_of_then(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two[0])
    first = fsspec.filesystem("ringhold", cluster="data")
    pickled = pickle.dumps(first)
    assert first is fsspec.filesystem("ringhold", cluster=f"file://{two[0]}/data")
    assert first is type(first)(two[0] / "data")
    assert first.storage_options == {"cluster": str(two[0] / "data")}
    monkeypatch.chdir(two[1])
    second = fsspec.filesystem("ringhold", cluster="data")
    assert (first.cat_file("/who"), second.cat_file("/who")) == (b"p", b"q")
    told = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; "
         "print(pickle.load(sys.stdin.buffer).cat_file('/who').decode())"],
        input=pickled, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == b"p\n"


def test_file_systems_of_one_cluster_are_equal_however_they_were_made(
    cluster: Any, fs: Any
) -> None:
    other = fsspec.filesystem("ringhold", cluster=cluster.url)
    assert fs == other == pickle.loads(pickle.dumps(fs))
    assert hash(fs) == hash(other)
    assert fs._fs_token == other._fs_token
    assert fs != fsspec.filesystem("ringhold", cluster=cluster.url, auto_mkdir=False)
    with cluster.transaction() as tx:
        assert tx.fs != fs


def test_opening_by_url_never_creates(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("ringhold", cluster=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_coroutines_may_be_awaited_on_any_loop(fs: Any) -> None:
    async def use() -> None:
        await asyncio.gather(*(fs._pipe_file(f"/c/{n}", b"%d" % n) for n in range(10)))
        assert await fs._cat(["/c/1", "/c/2"]) == {"/c/1": b"1", "/c/2": b"2"}
        file = await fs.open_async("/c/w", "wb")
        async with file:
            await file.write(b"async")
        async with await fs.open_async("/c/w") as file:
            assert await file.read() == b"async"
        assert len(await fs._find("/c")) == 11

    asyncio.run(use())


def test_a_blocking_call_on_ringholds_own_loop_is_refused(fs: Any) -> None:
    async def blocked() -> None:
        fs.ls("/")

    future = asyncio.run_coroutine_threadsafe(blocked(), fs.loop)
    with pytest.raises(RuntimeError, match="event loop"):
        future.result(10)


def test_auto_mkdir_false_refuses_missing_parents(cluster: Any, fs: Any) -> None:
    strict = fsspec.filesystem("ringhold", cluster=cluster.url, auto_mkdir=False)
    for write in (
        lambda: strict.pipe_file("/no/f", b"x"),
        lambda: strict.open("/no/f", "wb"),
        lambda: strict.touch("/no/f"),
        lambda: strict.mkdir("/no/d", create_parents=False),
    ):
        with pytest.raises(FileNotFoundError):
            write()
    assert fs.ls("/") == []


def test_a_generator_that_closes_in_its_own_handler_publishes(fs: Any) -> None:
    @contextlib.contextmanager
    def report() -> Iterator[Any]:
        file = fs.open("/report", "wb")
        try:
            yield file
        except KeyError:
            file.write(b"failed")
            file.close()

    with report():
        raise KeyError
    assert fs.cat_file("/report") == b"failed"
