"""Damaged archives: what comes before the damage is read, then one sentence names it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines.sources.archives import ArchiveDamaged, Entry, entries
from tests.support.made_archives import CHANCE, FILES, SUFFIXES, damaged, packed


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_what_comes_before_the_damage_is_read(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere: a beginning of the entries, each whole, and then a sentence."""
    path, whole = tmp_path / f"a.{suffix}", packed(FILES, suffix)
    if suffix == "tar":
        whole = whole.rstrip(b"\0")  # the end mark and what fills the last record
    most = 0
    for cut in range(1, len(whole) - 20, len(whole) // 40):
        path.write_bytes(whole[:cut])
        found, told = damaged(path)
        assert [(entry.name.decode(), entry.data) for entry in found] == list(FILES.items())[
            : len(found)
        ]
        assert str(path) in told and f"{len(found):,} images" in told and "fetch it again" in told
        most = max(most, len(found))
    assert most >= (0 if suffix == "tar.bz2" else 30), "bzip2 has blocks of 900 KB"


def test_a_truncated_or_overwritten_zip(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.zip", packed(FILES, "zip")
    path.write_bytes(whole[: len(whole) // 2])
    assert damaged(path)[0] == []
    path.write_bytes(b"PK")
    assert damaged(path)[0] == []
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        one = next(found for found in archive.infolist() if found.file_size == 40_000)
    middle = one.header_offset + 20_000
    path.write_bytes(
        whole[:middle]
        + bytes(byte ^ 255 for byte in whole[middle : middle + 9])
        + whole[middle + 9 :]
    )
    found = list(entries(str(path)))
    assert [entry.name.decode() for entry in found if entry.error_class == "unreadable"] == [
        one.filename
    ]
    assert sum(entry.data is not None for entry in found) == len(FILES) - 1


def test_a_wrong_checksum_is_damage_even_after_the_last_entry(tmp_path: Path) -> None:
    path, whole = (
        tmp_path / "a.tar.gz",
        packed({f"{n}.jpg": CHANCE.randbytes(20_000) for n in range(100)}, "tar.gz"),
    )
    path.write_bytes(whole[:-6] + b"\0\1" + whole[-4:])
    found, told = damaged(path)
    assert len(found) > 80 and "incorrect data check" in told, (
        "what was unpacked together with the checksum is lost"
    )


def test_damaged_headers_are_no_end(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.tar", bytearray(packed(FILES, "tar"))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        tenth = archive.getmembers()[10].offset
    whole[tenth + 5] ^= 1
    path.write_bytes(whole)
    assert len(damaged(path)[0]) == 10


def test_members_without_an_end_mark(tmp_path: Path) -> None:
    plain = packed(FILES, "tar").rstrip(b"\0")
    plain += bytes(-len(plain) % 512)
    path = tmp_path / "a.tar"
    path.write_bytes(plain)
    assert len(damaged(path)[0]) == len(FILES), "it may have been cut just there"
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(plain))
    assert len(list(entries(str(path)))) == len(FILES), "gzip's own end says that it is whole"


@pytest.mark.parametrize("suffix", SUFFIXES[:5])
def test_garbage_behind_the_end_and_several_streams(tmp_path: Path, suffix: str) -> None:
    def read(content: bytes, suffix: str) -> list[Entry]:
        path = tmp_path / f"archive.{suffix}"
        path.write_bytes(content)
        return list(entries(str(path)))

    whole = packed(FILES, suffix)
    behind = tmp_path / f"behind.{suffix}"
    behind.write_bytes(whole + b"garbage" * 1000)
    if suffix == "tar":
        found, told = damaged(behind)
        assert len(found) == len(FILES) and "a header cannot be read" in told, (
            "zeros may be a hole in it, and what is behind its rest"
        )
    else:
        assert len(list(entries(str(behind)))) == len(FILES), "the compression says where it ends"
    if suffix != "tar":
        plain = packed(FILES, "tar")
        kind = {"tar.bz2": bz2.compress, "tar.xz": lzma.compress}.get(suffix, gzip.compress)
        pieces = [kind(plain[start : start + 30_000]) for start in range(0, len(plain), 30_000)]
        between = b"\0" * 8 if suffix == "tar.xz" else b""
        assert len(read(between.join(pieces), suffix)) == len(FILES), (
            "as pigz, pbzip2 and pxz write them"
        )
        assert len(read(whole, "tar")) == len(FILES), (
            "the first bytes tell the compression, not the name"
        )


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"<html>not found</html>" * 100, b"\x1f\x8b", b"BZh9garbage"]
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    assert damaged(path)[0] == []


def test_flipped_bits_never_give_anything_but_entries_or_the_sentence(tmp_path: Path) -> None:
    chance = random.Random(1)
    files = dict(list(FILES.items())[:8])
    for suffix in SUFFIXES:
        whole = packed(files, suffix)
        for number in range(60):
            spoilt = bytearray(whole)
            for _ in range(chance.choice((1, 3, 30))):
                low = max(0, len(whole) - 900) if suffix == "zip" and number % 2 else 0
                spoilt[chance.randrange(low, len(whole))] = chance.randrange(256)
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(spoilt)
            try:
                for entry in entries(str(path), most_bytes=1_000_000):
                    assert entry.data is None or len(entry.data) <= 1_000_000
            except ArchiveDamaged:
                pass
