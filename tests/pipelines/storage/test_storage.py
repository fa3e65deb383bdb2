"""A folder anywhere: the same behaviour on a local disk, in fsspec's memory and on S3."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.storage import retries
from pipelines.storage.byte_sources import read_columns
from pipelines.storage.local import LocalPlace, full_disk, is_temporary
from pipelines.storage.place import open_place, read_url
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table, table_bytes
from schemas.errors import Damaged, UserError
from tests.support.s3_server import BUCKET


@pytest.fixture(params=["local", "memory", "odd", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return open_place(f"s3://{BUCKET}/{secrets.token_hex(4)}/a b'c")
    if request.param == "memory":
        return open_place(f"memory://bucket-{secrets.token_hex(4)}/folder")
    name = "folder" if request.param == "local" else "a b'c\"::d#e%20f?g*h\n\u00e9"
    return open_place(str(tmp_path / name))


def test_write_read_names_remove(place: Place) -> None:
    assert place.names("done") == [] and place.size("done/a") is None and not place.exists()
    place.write("done/a", b"one")
    place.write("done/a", b"second")
    place.write("done/deep/b", b"")
    assert place.read("done/a") == b"second" and place.size("done/a") == 6
    assert place.names("done") == ["a"], "folders are not named"
    assert place.sizes(["done/a", "done/deep/b", "done/none", "nowhere/c"]) == [6, 0, None, None]
    place.remove("done/a")
    place.remove("done/a")
    assert place.names("done") == []
    with pytest.raises(FileNotFoundError):
        place.read("done/a")


def test_create_is_exclusive(place: Place) -> None:
    assert place.create("done/a", b"first")
    assert not place.create("done/a", b"second")
    assert place.read("done/a") == b"first" and place.names("done") == ["a"]


def test_put_takes_the_file_away(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "made"
    file.write_bytes(b"made")
    place.put(str(file), "data/part-0.bin")
    assert place.read("data/part-0.bin") == b"made" and not file.exists()


def test_move_takes_the_place_of_what_stands_there(place: Place) -> None:
    place.write("next/data/a", b"new")
    place.write("data/a", b"old one")
    place.move("next/data/a", "data/a")
    place.move("next/data/a", "data/a")
    place.move("next/data/none", "deep/data/none")
    assert place.read("data/a") == b"new" and not place.exists("next/data/a")
    assert place.names("deep/data") == []
    place.remove_empty_folder("data")
    place.remove_empty_folder("next/data")
    assert place.names("data") == ["a"] and place.folders("next") == []


def test_ranges(place: Place) -> None:
    place.write("a", bytes(range(100)))
    place.write("b", bytes(100))
    assert place.read_ranges(["a", "b", "a"], [3, 0, 90], [6, 2, 100]) == [
        b"\3\4\5",
        b"\0\0",
        bytes(range(90, 100)),
    ]


def test_emptying_and_removing(place: Place) -> None:
    place.write("data/a", b"a")
    place.write("scratch/x/y", b"a")
    assert place.has_files(besides=["plan"]) and place.has_files(besides=["data"])
    place.remove_folder("scratch")
    place.remove_folder("scratch")
    assert place.has_files(besides=["plan"]) and not place.has_files(besides=["data"])
    assert place.names("scratch/x") == [] and place.names("data") == ["a"]
    place.empty()
    place.empty()
    assert place.names("data") == [] and not place.has_files(besides=["plan"])


def test_emptying_ends_with_the_plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is killed, what is left has no manifest, and is known to be an output of ours."""
    for name in ("plan/plan.json", "a/x", "z/x", "parts.parquet", "manifest.json", ".hidden", "zz"):
        place.write(name, b"x")
    gone: list[str] = []

    def noting(remove: Any) -> Any:
        def noted(path: str, *args: Any) -> None:
            gone.append(str(path).rpartition("/")[2])
            remove(path, *args)

        return noted

    if place.local:
        monkeypatch.setattr("shutil.rmtree", noting(shutil.rmtree))
        monkeypatch.setattr("os.remove", noting(os.remove))
    else:
        monkeypatch.setattr(place, "remove_all", noting(place.remove_all))
    place.empty()
    assert gone[0] == "manifest.json" and gone.index("plan") == 6 and place.names("") == []


def test_moving_within_a_place(place: Place) -> None:
    place.write("new/a", b"a")
    place.write("b", b"b")
    place.move("new/a", "b")
    place.move("new/a", "b")
    assert place.read("b") == b"a" and place.names("new") == []
    place.remove_empty_folder("new")
    place.remove_empty_folder("new")
    assert place.folders("") == [] and place.names("") == ["b"]


def test_globs_and_entries(place: Place) -> None:
    for name in ("x1.jpg", "deep/x2.jpg", "deep/y.jpg"):
        place.write(name, b"x")
    assert place.glob("x*.jpg") == ["x1.jpg"] and place.glob("*/x*") == ["deep/x2.jpg"]
    assert sorted(place.entries("")) == [("deep", "directory"), ("x1.jpg", "file")]
    assert place.entries("nowhere") == [] and place.is_folder() and place.exists("x1.jpg")


def test_names_of_temporary_files(tmp_path: Path) -> None:
    place, seen = LocalPlace(str(tmp_path)), []
    with place.temporary("done/part-00001.json") as path:
        seen.append(path)
    assert is_temporary(seen[0]) and is_temporary("a\nb.0123456789ab.tmp")
    assert not any(
        map(is_temporary, ("x.tmp", "draft.aa.tmp", ".0123456789ab.tmp", "x.0123456789ab.tmp.txt"))
    )


def test_the_url_leads_back(place: Place) -> None:
    place.write("data/a", b"a")
    assert open_place(place.url).read("data/a") == b"a"
    assert open_place(place.url).below("data").read("a") == b"a"


def test_one_process_holds_a_local_folder(tmp_path: Path) -> None:
    place = open_place(str(tmp_path / "out"))
    with place.alone(), pytest.raises(UserError, match="by another command"), place.alone():
        pass
    with place.alone():
        pass


def test_a_local_path_is_a_path_whatever_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a::b", "zip::c", "x y/z://w", "#", "%41"):
        place = open_place(f"./{name}" if "://" in name or name.startswith("zip") else name)
        place.write("f", b"f")
        assert (tmp_path / name / "f").exists(), name


def test_what_cannot_be_opened_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        open_place("nosuch://bucket/x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        open_place(str(tmp_path / "file")).write("a", b"")
    with pytest.raises(UserError, match="cannot be written"):
        open_place(str(tmp_path / "file/below")).create("a", b"")
    with pytest.raises(UserError, match="the name is too long"):
        open_place(str(tmp_path)).write("a" * 300, b"")
    error = full_disk(OSError(28, "No space"), "here")
    assert error is not None and "no space left" in str(error)
    assert full_disk(OSError(2, "No such file"), "here") is None


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_file_that_the_system_refuses_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pipelines.storage.place import open_place\n"
        "from schemas.errors import Damaged, UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: open_place(sys.argv[1]).write('a', bytes(2000))\n"
        "except UserError as error: print(error)"
    )
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert "cannot be written: the file would be larger" in run.stdout
    assert os.listdir(tmp_path) == []


class Flaky(MemoryFileSystem):
    """Memory whose operations fail, give too little, or lose their answer, as `trouble` says for
    the next calls.
    """

    protocol = "flaky"
    trouble: ClassVar[list[Exception | int]] = []  # an int: so many bytes too few
    calls = 0

    def _next(self) -> int:
        Flaky.calls += 1
        one = Flaky.trouble.pop(0) if Flaky.trouble else 0
        if isinstance(one, Exception):
            raise one
        return one

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **more: Any
    ) -> bytes:
        less = self._next()
        data: bytes = super().cat_file(path, start, end, **more)
        return data[: len(data) - less]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        super().pipe_file(path, value, mode=mode, **more)
        self._next()

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        data = Path(lpath).read_bytes()
        less = self._next()
        super().pipe_file(rpath, data[: len(data) - less], mode="overwrite")


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Place:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    Flaky.trouble, Flaky.calls = [], 0
    return open_place(f"flaky://bucket-{secrets.token_hex(4)}")


RESET = ConnectionResetError(104, "reset")


def test_short_answers_are_read_again(flaky: Place, tmp_path: Path) -> None:
    flaky.write("a", bytes(range(100)))
    Flaky.trouble = [1, RESET, 100]
    assert flaky.read("a") == bytes(range(100))
    Flaky.calls, Flaky.trouble = 0, [0, 2, RESET, 0, 1]
    pieces = flaky.read_ranges(["a"] * 3, [0, 5, 90], [5, 9, 100])
    assert pieces == [bytes(range(5)), bytes(range(5, 9)), bytes(range(90, 100))]
    assert Flaky.calls == 6, "what came whole is not read again"
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    Flaky.trouble = [3, RESET, 0]
    flaky.put(str(file), "b")
    assert flaky.read("b") == b"0123456789" and not file.exists()
    with pytest.raises(UserError, match="a cannot be read: it failed 8 times"):
        flaky.read_ranges(["a"], [90], [101])


def test_a_create_whose_answer_is_lost_is_judged_by_its_bytes(flaky: Place) -> None:
    Flaky.trouble = [RESET]
    assert flaky.create("a", b"ours")
    Flaky.trouble = [TimeoutError()]
    assert not flaky.create("a", b"another's") and flaky.read("a") == b"ours"


def test_refusals_are_not_tried_again(flaky: Place) -> None:
    flaky.write("a", b"a")
    for error in (
        PermissionError(13, "not allowed"),
        OSError(22, "no such range"),
        ValueError("bad"),
    ):
        Flaky.calls, Flaky.trouble = 0, [error]
        with pytest.raises(UserError, match="a cannot be read: "):
            flaky.read("a")
        assert Flaky.calls == 1
    Flaky.trouble = [PermissionError(13, "not allowed")]
    with pytest.raises(PermissionError):
        read_url(f"{flaky.url}/a")  # it may be this image alone


def test_which_errors_pass() -> None:
    """Exceptions as the file systems' packages raise them."""
    exceptions = pytest.importorskip("botocore.exceptions")
    errors = pytest.importorskip("s3fs.errors")
    aiohttp = pytest.importorskip("aiohttp")

    def answered(status: int, code: str) -> Exception:
        answer = {
            "ResponseMetadata": {"HTTPStatusCode": status},
            "Error": {"Code": code, "Message": "m"},
        }
        translated: Exception = errors.translate_boto_error(
            exceptions.ClientError(answer, "PutObject")
        )
        return translated

    passing = [
        answered(500, "InternalError"),
        answered(503, "SlowDown"),
        answered(503, "503"),
        answered(429, "Throttling"),
        answered(409, "ConditionalRequestConflict"),
        answered(400, "RequestTimeout"),
        answered(200, "InternalError"),
        answered(502, "502"),
        exceptions.EndpointConnectionError(endpoint_url="u"),
        ConnectionResetError(),
        exceptions.ReadTimeoutError(endpoint_url="u"),
        exceptions.ConnectionClosedError(endpoint_url="u"),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        aiohttp.ClientPayloadError(),
        aiohttp.ServerDisconnectedError(),
        TimeoutError(),
        OSError(errno.ETIMEDOUT, "t"),
        retries.ShortRead("s"),
    ]
    final = [
        answered(404, "NoSuchKey"),
        answered(403, "AccessDenied"),
        answered(412, "PreconditionFailed"),
        answered(416, "InvalidRange"),
        answered(400, "InvalidBucketName"),
        answered(501, "NotImplemented"),
        exceptions.NoCredentialsError(),
        FileExistsError(),
        ValueError("v"),
        OSError(errno.EACCES, "a"),
    ]
    assert [error for error in passing if not retries.passes(error)] == []
    assert [error for error in final if retries.passes(error)] == []
    assert retries.condition_failed(final[2]) and not retries.condition_failed(final[1])


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    table = pa.table({"name": ["a", "b"], "row": [1, 2]})
    place, whole = open_place(str(tmp_path)), table_bytes(table)
    place.write("whole.parquet", whole)
    place.write("cut.parquet", whole[:-9])
    assert read_table(place, "whole.parquet") == table
    assert read_table(place, "whole.parquet", ["row"]) == table.select(["row"])
    assert read_columns(place, "whole.parquet", ["name"]) == table.select(["name"])

    for read in (read_table, read_columns):
        with pytest.raises(Damaged, match=r"cut\.parquet: it is damaged: .*'repair .*' makes it"):
            read(place, "cut.parquet", ["name"])
        with pytest.raises(UserError, match=r"whole\.parquet: .*: it has no column 'none'"):
            read(place, "whole.parquet", ["none"])
    with pytest.raises(Damaged, match=r"absent\.parquet: it is missing"):
        read_table(place, "absent.parquet")
    with pytest.raises(UserError, match=r"absent\.parquet"):
        read_columns(place, "absent.parquet", ["name"])
