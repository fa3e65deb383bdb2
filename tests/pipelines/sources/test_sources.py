"""What lists, ground truths and globs name, and the sentences for those that cannot be read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.exchange.import_inputs import describe_inputs
from pipelines.exchange.import_options import Options
from pipelines.sources.item import read_location
from pipelines.sources.listing import list_images, listed_names
from pipelines.sources.spec import SourceSpec, check_sources, read_sources
from pipelines.storage import retries as retrying
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import (
    GroundTruth,
    QueryTruth,
    load_ground_truth,
    save_ground_truth,
)


@pytest.mark.parametrize("head", ["", "path,label\n", "\ufeff", "\ufeffpath,label\n"])
def test_a_file_has_one_name_in_a_list(tmp_path: Path, head: str) -> None:
    (tmp_path / "list.csv").write_text(
        f"{head}./0.png,1\n0.png\n.//a/./b//c.png,2\n", encoding="utf-8"
    )
    (tmp_path / "0.png").write_bytes(b"")
    spec = SourceSpec(str(tmp_path), list=str(tmp_path / "list.csv"), source="s")
    references = list_images(spec)
    assert [reference.record_id for reference in references] == [
        "s/0.png",
        "s/0.png",
        "s/a/b/c.png",
    ]
    assert references[0].location == references[1].location == os.fsencode(tmp_path / "0.png")


@pytest.mark.parametrize("name", ["../a.jpg", "a/../b.jpg", "/a.jpg", ".", "", "./", None, 7])
def test_a_list_names_files_below_the_folder(tmp_path: Path, name: Any) -> None:
    pq.write_table(pa.table({"path": ["a..b.jpg", "c/..d.jpg"]}), tmp_path / "good.parquet")
    pq.write_table(pa.table({"path": [name]}), tmp_path / "list.parquet")
    spec = SourceSpec(str(tmp_path), list=str(tmp_path / "good.parquet"))
    assert list(listed_names(spec)) == ["a..b.jpg", "c/..d.jpg"]
    with pytest.raises(
        UserError, match=r"list.parquet: row 1: .* must be a name relative to the folder"
    ):
        list(listed_names(SourceSpec(str(tmp_path), list=str(tmp_path / "list.parquet"))))


def test_lists_and_sources_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1junkPAR1")
    for url, sentence in (
        (str(tmp_path), "it is a folder; give the"),
        (f"{tmp_path}/", "it is a folder; give the"),
        (str(tmp_path / "file" / "x"), "can be read there: Not a directory"),
        (str(tmp_path / "absent"), "there is no such"),
        ("no\0file", "no null character|without NUL bytes"),
    ):
        with pytest.raises(UserError, match=sentence):
            list(listed_names(SourceSpec(str(tmp_path), list=url)))
        with pytest.raises(UserError, match=sentence):
            read_sources(url)
        with pytest.raises(UserError, match=sentence):
            describe_inputs(
                Options("npy", str(tmp_path / "v.npy"), str(tmp_path / "out"), record_ids=url)
            )
    with pytest.raises(UserError, match="junk.parquet cannot be read as a Parquet table"):
        list(listed_names(SourceSpec(str(tmp_path), list=str(tmp_path / "junk.parquet"))))


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../b.jpg", "/etc/x.jpg"])
def test_a_ground_truth_names_images_of_the_folder(tmp_path: Path, name: str) -> None:
    url = str(tmp_path / "truth.json")
    save_ground_truth(
        GroundTruth("t", ("a/b..c.jpg", name), (QueryTruth(name, None, (0,), (), ()),)), url
    )
    (tmp_path / "v.npy").write_bytes(b"")
    for take, what in (("gallery", "gallery image 1"), ("queries", "query 0")):
        with pytest.raises(
            UserError, match=rf"truth.json: {what}: '{name}' must be a name relative to the folder"
        ):
            list_images(SourceSpec(str(tmp_path), ground_truth=url, take=take))
        with pytest.raises(UserError, match=what):
            describe_inputs(
                Options("npy", str(tmp_path / "v.npy"), "out", ground_truth=url, take=take)
            )
    assert load_ground_truth(url).gallery[1] == name, (
        "to evaluate a store that has such ids, it is read as ever"
    )


def test_the_name_of_a_source_is_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with pytest.raises(UserError, match="is no UTF-8; give it another with --source"):
        check_sources([SourceSpec(os.fsdecode(folder))])
    check_sources([SourceSpec(os.fsdecode(folder), source="café")])


class Failing(MemoryFileSystem):
    """Memory whose listings fail as `trouble` says for the next calls."""

    protocol = "failing"
    trouble: ClassVar[list[Exception]] = []

    def glob(self, path: str, **more: Any) -> Any:
        return self._next() or super().glob(path, **more)

    def find(self, path: str, **more: Any) -> Any:
        return self._next() or super().find(path, **more)

    def _next(self) -> None:
        if Failing.trouble:
            raise Failing.trouble.pop(0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    Failing.trouble = []
    yield f"failing://bucket-{secrets.token_hex(4)}"
    Failing.trouble = []


def test_remote_listings_are_tried_again_and_told(failing: str) -> None:
    for name in ("a/0.png", "a/1.png", "b/2.png", "d/0.delg_local"):
        fsspec.filesystem("failing").pipe_file(f"{failing}/{name}", b"0123")
    images, delg = (
        SourceSpec(f"{failing}/*/[01].png", source="s"),
        Options("delg", f"{failing}/d", "out", locals=False),
    )
    for listed in (lambda: list_images(images), lambda: describe_inputs(delg)):
        Failing.trouble = [PermissionError(13, "not allowed")]
        with pytest.raises(UserError, match=r"cannot be listed: .*not allowed"):
            listed()
    Failing.trouble = [ConnectionResetError(104, "reset")]
    assert [reference.record_id for reference in list_images(images)] == ["s/a/0.png", "s/a/1.png"]
    Failing.trouble = [ConnectionResetError(104, "reset")]
    with pytest.raises(
        UserError, match="no global descriptors can be read"
    ):  # the folder itself was listed
        describe_inputs(delg)
    assert not Failing.trouble


def test_a_folder_with_brackets_in_its_name_may_hold_a_glob(tmp_path: Path) -> None:
    (tmp_path / "all[1]" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "sub/c.jpg"):
        (tmp_path / "all[1]" / name).write_bytes(b"")
    found = [
        reference.record_id for reference in list_images(SourceSpec(f"{tmp_path}/all[1]/**/*.jpg"))
    ]
    assert found == ["all[1]/a.jpg", "all[1]/sub/c.jpg"]
    (tmp_path / "all[1]" / "more.tar").write_bytes(b"")
    with pytest.raises(
        UserError, match="no images are named here"
    ):  # archives beside a glob of images are not meant
        list_images(SourceSpec(f"{tmp_path}/all[1]/*.gif"))
    with pytest.raises(UserError, match="it is a file; give its folder"):
        list_images(SourceSpec(f"{tmp_path}/all[1]/a.jpg"))


def test_what_is_wrong_in_a_file_of_sources_is_told_with_its_place(tmp_path: Path) -> None:
    for text, told in (
        ("- {name: a, image: x}", "source 1 has an entry 'image'"),
        ("- images: x\n- {name: a/b, images: y}", "source 2: the source's name is 'a/b'"),
        ("- {name: a}", "source 1 must be a mapping with 'images'"),
    ):
        (tmp_path / "sources.yaml").write_text(text)
        with pytest.raises(UserError, match=told):
            read_sources(str(tmp_path / "sources.yaml"))


def test_a_folder_of_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "all" / "sub dir").mkdir(parents=True)
    for name in ("a.jpg", "sub dir/ä b.jpg", "notes.txt"):
        (tmp_path / "all" / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text("sub dir/ä b.jpg\n", encoding="utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/all"
        for spec, names in (
            (SourceSpec(url), ["all/a.jpg", "all/sub dir/ä b.jpg"]),
            (
                SourceSpec(f"{url}/", list=str(tmp_path / "list.csv"), source="all"),
                ["all/sub dir/ä b.jpg"],
            ),
        ):
            found = list_images(spec)
            assert [reference.record_id for reference in found] == names
            assert all(read_location(reference.location) == b"x" for reference in found)
        with pytest.raises(UserError, match="there is no such folder of images"):
            list_images(SourceSpec(f"{url}/nowhere"))
        server.shutdown()
