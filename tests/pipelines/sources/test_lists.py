"""Image lists and folders as people have them: encodings, separators, headers, suffixes, links."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from pipelines.sources.folder import OTHERS, words_for
from pipelines.sources.listing import list_images
from pipelines.sources.spec import SourceSpec
from rrt_core.image_formats import advice
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, save_ground_truth
from tests.support.hostile import accepted
from tests.support.pictures import picture

FILES = ("a b.jpg", "sub/x.JPG", "c,d.jpg", "e;f.jpg", "1", "ü.png", '"q" r.jpg')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files of odd names, that are no images."""
    for name in FILES:
        (tmp_path / "ph" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ph" / name).write_bytes(b"")
    return tmp_path / "ph"


def listed(folder: Path, data: bytes) -> list[str]:
    path = folder.parent / "list.csv"
    path.write_bytes(data)
    found = list_images(SourceSpec(str(folder), list=str(path), source="s"))
    return [one.location.decode().removeprefix(f"{folder}/") for one in found]


TWO = ["a b.jpg", "sub/x.JPG"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a b.jpg\nsub/x.JPG\n", TWO),
        ("a b.jpg\r\nsub/x.JPG", TWO),
        ("a b.jpg\rsub/x.JPG\r", TWO),
        ("path;label\na b.jpg;1\nsub/x.JPG;2\n", TWO),
        ("label,path\n7,a b.jpg\n8,sub/x.JPG\n", TWO),
        ("image_path,label\na b.jpg,1\nsub/x.JPG,1\n", TWO),
        ("Image_Name\tlabel\na b.jpg\t1\nsub/x.JPG\t2\n", TWO),
        ("7\ta b.jpg\n8\tsub/x.JPG\n", TWO),
        ("7;8;a b.jpg\n8;8;sub/x.JPG\n", TWO),
        ("was immer;anderes\n7;a b.jpg\n8;sub/x.JPG\n", TWO),
        ("whatever\na b.jpg\nsub/x.JPG\n", TWO),
        ("a b.jpg,640,480\nsub/x.JPG,1,1\n", TWO),
        ('path,label\n"a b.jpg",1\n"c,d.jpg",2\n', ["a b.jpg", "c,d.jpg"]),
        ("c,d.jpg\na b.jpg\n", ["c,d.jpg", "a b.jpg"]),
        ("e;f.jpg\na b.jpg\n", ["e;f.jpg", "a b.jpg"]),
        ('"q" r.jpg\na b.jpg\n', ['"q" r.jpg', "a b.jpg"]),
        ("path\nabsent.jpg\na b.jpg\n", ["absent.jpg", "a b.jpg"]),
        ("path,name\nx,a b.jpg\ny,sub/x.JPG\n", TWO),
        ("\n\na b.jpg\n\n", ["a b.jpg"]),
        ("1\n", ["1"]),
        ("ü.png", ["ü.png"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_names_are_read(folder: Path, text: str, names: list[str], encoding: str) -> None:
    bom = b"\xfe\xff" if encoding == "utf-16-be" else b""
    assert listed(folder, bom + text.encode(encoding)) == names


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("a b.jpg".encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfea", "no UTF-16"),
        (b"other.jpg\nmore.jpg\n", "none of its 2 names is a file below"),
        (b"path,label\nother.jpg,1\n", "none of its 1 names is a file below"),
        (b'"a b.jpg\nsub/x.JPG\n', "cannot be read as an image list: line 2"),
        (b"x" * 200_000 + b",", "cannot be read as an image list|none of its 1 names"),
        (b"", "no images are named here"),
        (b"path,label\n", "no images are named here|none of its 1 names"),
        (b"7;a b.jpg\n8;sub/x.JPG\n9;\n", "row 3 has no name in column 2"),
        (b"PAR1 not", "cannot be read as a Parquet table"),
    ],
)
def test_what_cannot_be_understood_is_said_before_any_work(
    folder: Path, data: bytes, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        listed(folder, data)
    assert not accepted(lambda: listed(folder, data))


def jpeg(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path, "JPEG")


def names(folder: Path, **more: str) -> tuple[list[str], Counter[str]]:
    passed = Counter[str]()
    found = list_images(SourceSpec(str(folder), source="s", **more), passed)
    return [one.record_id.removeprefix("s/") for one in found], passed


def test_content_decides_where_there_is_no_suffix_of_an_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "nosuffix", "photo.jpg_large", "photo.jpg?w=200"):
        jpeg(tmp_path / name)
    for number in range(3):
        picture(number).save(tmp_path / f"IMG_{number}.CR2", "TIFF")
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for name in ("notes.txt", "empty", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")

    found, passed = names(tmp_path)
    images = ["a.jpg", "nosuffix", "photo.jpg?w=200", "photo.jpg_large"]
    heic = {".heic": 3} if advice(".heic") else {}
    assert [name for name in found if not name.endswith("HEIC")] == images
    assert passed == {".cr2": 3, OTHERS: 3, **heic}
    assert "3 .cr2 (convert the raw photographs to JPEG), " in words_for(passed)
    assert words_for(Counter({".cr2": 1, OTHERS: 1})).endswith(", 1 other")

    for name in found:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"no images are named here; passed over \d files: 3 \.cr2"):
        names(tmp_path)


def test_links_lead_to_each_folder_once(tmp_path: Path) -> None:
    jpeg(tmp_path / "real/deep/a.jpg")
    os.symlink("self", tmp_path / "self")
    os.symlink("self.jpg", tmp_path / "self.jpg")
    os.symlink("..", tmp_path / "real/up")
    os.symlink("real", tmp_path / "a-link")
    jpeg(tmp_path.parent / f"{tmp_path.name}-outside/b.jpg")
    os.symlink(tmp_path.parent / f"{tmp_path.name}-outside", tmp_path / "out")
    found, passed = names(tmp_path)
    assert found == ["out/b.jpg", "real/deep/a.jpg", "self.jpg"] and passed == {OTHERS: 1}

    for number in range(11):  # each links to all others
        (tmp_path / f"web/{number}").mkdir(parents=True)
        for other in range(11):
            os.symlink(f"../{other}", tmp_path / f"web/{number}/to{other}")
    jpeg(tmp_path / "web/10/c.jpg")
    assert names(tmp_path / "web")[0] == ["10/c.jpg"]


@pytest.mark.parametrize("place", ["/proc", "/proc/self", "/dev/zero", "/dev/null", "FIFO"])
def test_what_is_no_folder_list_or_archive(tmp_path: Path, place: str) -> None:
    if place == "FIFO":
        place = str(tmp_path / "pipe")
        os.mkfifo(place)
    for spec in (
        SourceSpec(place, source="s"),
        SourceSpec(str(tmp_path), list=place, source="s"),
    ):
        assert not accepted(partial(list_images, spec))


def test_a_ground_truth_of_bare_names_over_subfolders(tmp_path: Path) -> None:
    for number, name in enumerate(("g/x/one.jpg", "g/y/two.png", "g/q/query.jpg")):
        jpeg(tmp_path / name, number)
    for gallery, query in (
        (["one", "two"], "query"),
        (["one.jpg", "two.png"], "query.jpg"),
        (["x/one", "two"], "query"),
    ):
        truth = GroundTruth(
            "t", tuple(gallery), (QueryTruth(query, (0.0, 0.0, 5.0, 5.0), (0,), (), ()),)
        )
        save_ground_truth(truth, str(tmp_path / "t.json"))
        more = {"ground_truth": str(tmp_path / "t.json"), "source": "s"}
        found = list_images(SourceSpec(str(tmp_path / "g"), take="gallery", **more))
        assert [one.location for one in found] == [
            os.fsencode(tmp_path / "g/x/one.jpg"),
            os.fsencode(tmp_path / "g/y/two.png"),
        ]
        ids = [one.record_id for one in found]
        assert truth.gallery_positions(ids) == {ids[0]: 0, ids[1]: 1}
        (only,) = list_images(SourceSpec(str(tmp_path / "g"), take="queries", **more))
        assert only.location == os.fsencode(tmp_path / "g/q/query.jpg")

    jpeg(tmp_path / "g/z/one.jpg")
    (tmp_path / "t.json").unlink()
    save_ground_truth(
        GroundTruth("t", ("one",), (QueryTruth("query", None, (0,), (), ()),)),
        str(tmp_path / "t.json"),
    )
    with pytest.raises(UserError, match=r"'one' may be x/one\.jpg or z/one\.jpg"):
        list_images(SourceSpec(str(tmp_path / "g"), take="gallery", **more))
