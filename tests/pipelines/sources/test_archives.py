"""Archives as streams: what tarfile and zipfile extract, hostile members refused, damage named,
memory bounded.
"""

from __future__ import annotations

import bz2
import gzip
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipelines.sources.archives import Entry, archive_size, entries, find_archives, is_archive
from schemas.errors import UserError
from tests.support.made_archives import FILES, SUFFIXES, damaged, info, packed, tar

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Entry]]:
    """`read(content, suffix)` reads an archive of these bytes."""

    def reading(content: bytes, suffix: str = "tar", **settings: int) -> list[Entry]:
        path = tmp_path / f"archive.{suffix}"
        path.write_bytes(content)
        return list(entries(str(path), **settings))

    return reading


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_data_are_what_the_libraries_extract(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(packed(FILES, suffix))
    extracted = tmp_path / "extracted"
    if suffix == "zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(extracted)
    else:
        with tarfile.open(path) as tar_file:
            tar_file.extractall(extracted, filter="data")
    found = list(entries(str(path)))
    assert [entry.name.decode() for entry in found] == list(FILES), "in stream order"
    assert all(entry.data == (extracted / entry.name.decode()).read_bytes() for entry in found)
    assert not any(entry.reason or entry.error_class for entry in found)
    positions = [entry.position for entry in found]
    assert positions == sorted(positions) and positions[0] >= 0 and positions[-1] <= 1
    assert archive_size(str(path)) == path.stat().st_size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unwanted_entries_come_without_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(packed(FILES, suffix))
    asked: list[bytes] = []

    def wanted(name: bytes) -> bool:
        asked.append(name)
        return name.endswith(b"7.jpg")

    found = list(entries(str(path), wanted))
    assert asked == [entry.name for entry in found] == [name.encode() for name in FILES]
    for entry in found:
        assert entry.data == (FILES[entry.name.decode()] if entry.name.endswith(b"7.jpg") else None)
        assert not entry.reason


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names(read: Callable[..., list[Entry]], format: int) -> None:
    names = ["d" * 90 + "/" + "e" * 60 + ".jpg", "./a//b/./c.JPG", "x y\n'\"\\z.Png"]
    if format != tarfile.USTAR_FORMAT:
        names += ["long/" * 60 + "name.jpeg", "ü" * 150 + ".jpg"]
    content = tar(*((info(name, 3), b"abc") for name in names), format=format)
    found = read(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as theirs:
        assert [member.name for member in theirs] == names
    clean = ["a/b/c.JPG" if name.startswith("./") else name for name in names]
    assert [entry.name.decode() for entry in found] == clean
    assert all(entry.data == b"abc" for entry in found)


def test_names_that_are_no_utf8(read: Callable[..., list[Entry]]) -> None:
    name = b"sch\xf6n-\xff.jpg"
    text = name.decode("utf-8", "surrogateescape")
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        settings = {"format": format, "encoding": "utf-8", "errors": "surrogateescape"}
        assert [entry.name for entry in read(tar((info(text), b""), **settings))] == [name]  # type: ignore[arg-type]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("sch_n-_.jpg", b"a")
        archive.writestr("süß.jpg", b"b")
    odd = made.getvalue().replace(b"sch_n-_.jpg", name)
    assert [entry.name for entry in read(odd, "zip")] == [name, "süß.jpg".encode()]


def test_what_a_folder_of_images_leaves_out_too(read: Callable[..., list[Entry]]) -> None:
    others = [
        "a.json",
        "a.txt",
        "a.cls",
        "a",
        ".jpg",
        "._a.jpg",
        ".hidden/a.jpg",
        "__MACOSX/a.jpg",
        "a.jpg.part",
    ]
    files = dict.fromkeys([*others, "a.jpg"], b"12345")
    for suffix in SUFFIXES:
        assert [entry.name for entry in read(packed(files, suffix), suffix)] == [b"a.jpg"]
    folder = info("folder.jpg", type=tarfile.DIRTYPE)
    assert read(tar((folder, b""), (info("a.jpg", 1), b"x")))[0].data == b"x"


def test_hostile_members_are_refused_each_by_itself(read: Callable[..., list[Entry]]) -> None:
    bad = [
        (info("../up.jpg", 1), "unsafe_name"),
        (info("a/../../up.jpg", 1), "unsafe_name"),
        (info("..\\up.jpg", 1), "unsafe_name"),
        (info("/etc/absolute.jpg", 1), "unsafe_name"),
        (info("C:\\windows.jpg", 1), "unsafe_name"),
        (info("n" * 5000 + ".jpg", 1), "unsafe_name"),
        (info("symbolic.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link"),
        (info("hard.jpg", type=tarfile.LNKTYPE, linkname="good.jpg"), "link"),
        (info("fifo.jpg", type=tarfile.FIFOTYPE), "special"),
        (info("device.jpg", type=tarfile.CHRTYPE), "special"),
        (info("block.jpg", type=tarfile.BLKTYPE), "special"),
        (info("large.jpg", 2001), "too_large"),
    ]
    members = [(about, b"x" * about.size) for about, _ in bad]
    good = (info("good.jpg", 2000), b"y" * 2000)
    found = read(tar(good, *members, good), most_bytes=2000)
    assert [entry.error_class for entry in found] == ["", *(kind for _, kind in bad), ""]
    assert all((entry.data is None) == bool(entry.reason) for entry in found)
    assert found[0].data == found[-1].data == good[1], (
        "the same name comes as often as it stands there"
    )
    assert max(len(entry.name) for entry in found) <= 4096


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    made = tmp_path / "sparse.jpg"
    with open(made, "wb") as file:
        for place in range(0, 8 << 20, 1 << 20):  # more pieces than one header holds
            file.seek(place)
            file.write(b"data")
        file.truncate(10_000_000_000)
    (tmp_path / "good.jpg").write_bytes(b"good")
    for format in ("gnu", "pax"):
        for version in ("0.0", "0.1", "1.0") if format == "pax" else ("1.0",):
            path = tmp_path / f"{format}{version}.tar"
            command = [
                "tar",
                f"--format={format}",
                "--sparse",
                f"--sparse-version={version}",
                "-cf",
                str(path),
            ]
            subprocess.run([*command, "sparse.jpg", "good.jpg"], cwd=tmp_path, check=True)
            assert path.stat().st_size < 1_000_000
            first, second = entries(str(path))
            assert (first.name, first.error_class, first.data) == (b"sparse.jpg", "sparse", None)
            assert (second.name, second.data) == (b"good.jpg", b"good")


def test_pax_headers_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    huge = info("b.jpg", 1)
    huge.pax_headers = {"comment": "x" * 1_000_001}
    path.write_bytes(tar((info("a.jpg", 1), b"a"), (huge, b"b"), format=tarfile.PAX_FORMAT))
    found, told = damaged(path)
    assert [entry.name for entry in found] == [b"a.jpg"] and "header" in told
    allowed = info("b.jpg", 1)
    allowed.pax_headers = {"comment": "x" * 900_000}
    path.write_bytes(tar((allowed, b"b"), format=tarfile.PAX_FORMAT))
    assert [entry.data for entry in entries(str(path))] == [b"b"]


@pytest.mark.parametrize(
    "record", [b"9 path=", b"x path=a\n", b"2 2 2 2", b"99999999999999999999 a=b\n", b"\xff" * 9]
)
def test_pax_headers_that_cannot_be_read(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "a.tar"
    header = info("x", len(record), type=tarfile.XHDTYPE)
    path.write_bytes(header.tobuf() + record.ljust(512, b"\0") + tar((info("a.jpg"), b"")))
    assert damaged(path)[0] == []


def test_a_chain_of_headers_is_no_recursion(read: Callable[..., list[Entry]]) -> None:
    record = b"15 path=b.jpg\n\n"
    one = info("x", 14, type=tarfile.XHDTYPE).tobuf() + b"14 path=b.jpg\n".ljust(512, b"\0")
    assert len(record) == 15
    assert [entry.name for entry in read(one * 5000 + tar((info("a.jpg"), b"")))] == [b"b.jpg"]


def zip_of(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """A zip file."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for about, data in members:
            about.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(about, data)
    return made.getvalue()


def test_hostile_members_of_zip_files(read: Callable[..., list[Entry]]) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    secret = zipfile.ZipInfo("secret.jpg")
    content = zip_of(
        (zipfile.ZipInfo("../up.jpg"), b"x"),
        (zipfile.ZipInfo("/absolute.jpg"), b"x"),
        (link, b"/etc/passwd"),
        (zipfile.ZipInfo("bomb.jpg"), bytes(70_000_000)),
        (zipfile.ZipInfo("large.jpg"), b"l" * 2001),
        (zipfile.ZipInfo("good.jpg"), b"good"),
        (secret, b"x"),
    )
    place = content.rindex(b"PK\1\2")
    content = content[: place + 8] + b"\1" + content[place + 9 :]  # says that it is encrypted
    found = {entry.name: entry for entry in read(content, "zip", most_bytes=100_000_000)}
    assert found[b"bomb.jpg"].error_class == "too_large" and "bomb" in found[b"bomb.jpg"].reason
    kinds = {entry.name: entry.error_class for entry in read(content, "zip", most_bytes=2000)}
    assert kinds == {
        b"../up.jpg": "unsafe_name",
        b"/absolute.jpg": "unsafe_name",
        b"link.jpg": "link",
        b"bomb.jpg": "too_large",
        b"large.jpg": "too_large",
        b"good.jpg": "",
        b"secret.jpg": "encrypted",
    }


def test_zip_headers_that_lie_about_sizes(read: Callable[..., list[Entry]]) -> None:
    data = bytes(50_000_000)
    content = bytearray(zip_of((zipfile.ZipInfo("a.jpg"), data)))
    for declared in (1000, 90_000_000):  # of 50 MB
        place = content.rindex(b"PK\1\2") + 24
        content[place : place + 4] = declared.to_bytes(4, "little")
        (entry,) = read(bytes(content), "zip", most_bytes=60_000_000)
        assert entry.data is None and entry.error_class == (
            "unreadable" if declared == 1000 else "too_large"
        )


def test_overlapping_zip_members(read: Callable[..., list[Entry]]) -> None:
    content = zip_of((zipfile.ZipInfo("a.jpg"), b"a" * 100), (zipfile.ZipInfo("b.jpg"), b"b" * 100))
    first, second = (
        place for place in range(len(content)) if content[place : place + 4] == b"PK\1\2"
    )
    spoilt = bytearray(content)
    spoilt[second + 42 : second + 46] = spoilt[first + 42 : first + 46]  # both at the same place
    assert any(entry.error_class == "unreadable" for entry in read(bytes(spoilt), "zip"))


CHILD = """
import collections, resource, sys
from pipelines.sources.archives import entries
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = entries(sys.argv[1], most_bytes=10**8)
print(*collections.Counter(f"{e.name.decode()}:{e.error_class or len(e.data)}" for e in found).items())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""  # noqa: E501


def read_in_a_child(path: Path) -> tuple[str, float]:
    """What was found, and by how many MB the child's memory grew."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found, grown = done.stdout.splitlines()
    return found, int(grown) / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.mark.parametrize(
    ("suffix", "size"),
    [
        ("tar.gz", 300_000_100),
        ("tar.bz2", 300_000_100),
        pytest.param("tar.gz", 10**10, marks=pytest.mark.slow),
    ],
)
def test_gigabytes_of_zeros_are_never_held(tmp_path: Path, suffix: str, size: int) -> None:
    path = tmp_path / f"a.{suffix}"
    pack = gzip.compress if suffix == "tar.gz" else bz2.compress
    head = tar((info("good.jpg", 4), b"good"))[:1024] + info("zeros.jpg", size).tobuf(
        tarfile.GNU_FORMAT
    )
    tail = bytes(size % 10_000_000 + -size % 512) + tar((info("last.jpg", 4), b"last"))
    zeros = pack(bytes(10_000_000))  # a member of the compressed file each
    path.write_bytes(pack(head) + zeros * (size // 10_000_000) + pack(tail))
    found, grown = read_in_a_child(path)
    assert found == "('good.jpg:4', 1) ('zeros.jpg:too_large', 1) ('last.jpg:4', 1)"
    assert grown < 30, "a piece at a time"


def test_memory_does_not_grow_with_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    one = info("folder/name.jpg", 1).tobuf() + b"x".ljust(512, b"\0")
    path.write_bytes(one * 30_000 + bytes(1024))
    found, grown = read_in_a_child(path)
    assert found == "('folder/name.jpg:1', 30000)"
    assert grown < 15, "tarfile's list would take 30"


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    for name in ("none.tar", "folder.tar"):
        with pytest.raises(UserError, match=name):
            list(entries(str(tmp_path / name)))
        with pytest.raises(UserError, match=name):
            archive_size(str(tmp_path / name))
    with pytest.raises(UserError, match="memory://nowhere/a.tar"):
        archive_size("memory://nowhere/a.tar")


def test_an_archive_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed({f"{n}.jpg": bytes(1_000_000) for n in range(5)}, "tar"))
    stream = entries(str(path))
    next(stream)
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="changed"):
        list(stream)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_in_fsspecs_memory(suffix: str) -> None:
    fs = fsspec.filesystem("memory")
    url, content = f"memory://archives/one.{suffix}", packed(FILES, suffix)
    fs.pipe_file("/archives/one." + suffix, content)
    assert [(entry.name.decode(), entry.data) for entry in entries(url)] == list(FILES.items())
    assert archive_size(url) == len(content) and find_archives(url) == [url]


def test_which_names_are_archives() -> None:
    for name in (
        "a.tar",
        "A.TAR.GZ",
        "b.tgz",
        "s3://b/c.tar.bz2",
        "x.tar.xz",
        "z.zip",
        "r.{1..100}.tar.gz",
    ):
        assert is_archive(name), name
    assert is_archive("http://host/a.tar?signature=b.c#d") and not is_archive(
        "http://host/a.jpg?b.tar"
    )
    for name in ("a.gz", "folder", "a.txt", "a.tar/b", "tar", "a.zip.part"):
        assert not is_archive(name), name


def test_finding_archives(tmp_path: Path) -> None:
    for name in (
        "r.1.tar.gz",
        "r.2.tar.gz",
        "r.10.tar.gz",
        "shard-008.tar",
        "shard-009.tar",
        "shard-010.tar",
        "a.txt",
    ):
        (tmp_path / name).write_bytes(b"x")
    here = str(tmp_path)

    def found(pattern: str) -> list[str]:
        return [path[len(here) + 1 :] for path in find_archives(f"{here}/{pattern}")]

    assert found("r.*.tar.gz") == ["r.1.tar.gz", "r.2.tar.gz", "r.10.tar.gz"]
    assert found("r.{1..2}.tar.gz") == ["r.1.tar.gz", "r.2.tar.gz"]
    assert found("shard-{008..010}.tar") == ["shard-008.tar", "shard-009.tar", "shard-010.tar"]
    assert found("shard-0{10..08}.tar") == ["shard-010.tar", "shard-009.tar", "shard-008.tar"]
    assert found("*") == found("r.*") + found("shard*")
    for pattern, said in (
        ("r.{1..3}.tar.gz", "r.3.tar.gz"),
        ("q*.tar", "no archive"),
        ("a.txt", "must end with"),
    ):
        with pytest.raises(UserError, match=said):
            found(pattern)
    with pytest.raises(UserError, match="100,000"):
        found("{1..99999999999}.tar")
    (tmp_path / "odd{1..2}[x].tar").write_bytes(b"x")
    assert found("odd{1..2}[x].tar") == ["odd{1..2}[x].tar"], "a file of exactly this name"
    urls = find_archives("http://host/revisitop1m.{1..100}.tar.gz")
    assert (
        len(urls) == 100 and urls[0].endswith("1m.1.tar.gz") and urls[99].endswith("1m.100.tar.gz")
    )
    fs = fsspec.filesystem("memory")
    for number in (9, 10):
        fs.pipe_file(f"/found/s{number}.tar", b"x")
    assert find_archives("memory://found/s*.tar") == [
        "memory:///found/s9.tar",
        "memory:///found/s10.tar",
    ]
