"""Generated archives: whole ones come back whole, others end in the sentence, none in silence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.archives import ArchiveDamaged, entries, find_archives
from schemas.errors import UserError
from tests.support.hostile import accepted, inputs
from tests.support.made_archives import info, packed

BLOCK = 512
SIZES = st.sampled_from([0, 1, 511, 512, 513, 5_000])
MEMBERS = st.lists(SIZES, min_size=1, max_size=6)
PACK = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def members_of(sizes: list[int], first: int = 0) -> dict[str, bytes]:
    """Files without a zero byte, so that no block of them is taken for an end."""
    return {
        f"{first + n:03}.jpg": random.Random(n).randbytes(size).replace(b"\0", b"x")
        for n, size in enumerate(sizes)
    }


def read(folder: Path, data: bytes, suffix: str) -> tuple[list[tuple[bytes, bytes | None]], str]:
    """What is read of an archive, and the sentence of its damage, or ""."""
    path = folder / f"a.{suffix}"
    path.write_bytes(data)
    found: list[tuple[bytes, bytes | None]] = []
    try:
        found.extend((entry.name, entry.data) for entry in entries(str(path)))
    except ArchiveDamaged as error:
        assert "\n" not in str(error)
        return found, str(error)
    return found, ""


def whole(files: dict[str, bytes]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), data) for name, data in files.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@inputs(50)
@given(MEMBERS, MEMBERS, st.integers(0, 40), st.sampled_from(sorted(PACK)), st.booleans())
def test_tars_one_behind_the_other(
    folder: Path, one: list[int], two: list[int], zeros: int, suffix: str, apart: bool
) -> None:
    first, second = members_of(one), members_of(two, 100)
    parts = [packed(first, "tar") + bytes(BLOCK * zeros), packed(second, "tar")]
    pack = PACK[suffix]
    data = b"".join(map(pack, parts)) if apart else pack(b"".join(parts))
    assert read(folder, data, suffix) == (whole(first | second), "")


@inputs(60)
@given(MEMBERS, st.data(), st.sampled_from(["hole", "cut", "unclosed", "tail"]))
def test_nothing_of_a_tar_is_lost_in_silence(
    folder: Path, sizes: list[int], data: st.DataObject, damage: str
) -> None:
    """A header of zeros, an end that is cut off, no end, an end that was made larger."""
    files = members_of([size or 1 for size in sizes])
    made = bytearray(packed(files, "tar"))
    end = len(made.rstrip(b"\0"))
    end += -end % BLOCK
    if damage == "hole":
        member = data.draw(st.sampled_from(sorted(files)))
        at = made.index(member.encode())
        made[at : at + BLOCK] = bytes(BLOCK)
    elif damage == "cut":
        del made[data.draw(st.integers(0, end)) :]
    elif damage == "unclosed":
        del made[end:]
    else:
        made += bytes(data.draw(st.integers(0, 3_000_000)))

    found, said = read(folder, bytes(made), "tar")
    assert found == whole(files)[: len(found)]
    if damage == "tail":
        assert not said and len(found) == len(files)
    else:
        assert "at byte" in said


@inputs(60)
@given(
    st.sampled_from(["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]),
    MEMBERS,
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=600)), max_size=4),
    st.floats(0, 1),
)
def test_archives_with_other_bytes_in_them(
    folder: Path, suffix: str, sizes: list[int], spoilt: list[tuple[float, bytes]], cut: float
) -> None:
    made = bytearray(packed(members_of(sizes), suffix))
    for share, data in spoilt:
        at = int(share * len(made))
        made[at : at + len(data)] = data
    kept = bytes(made) if cut > 0.5 else bytes(made[: int(2 * cut * len(made))])
    found, _ = read(folder, kept, suffix)
    assert all(data is None or len(data) < 10_000_000 for _, data in found)


@pytest.mark.parametrize("suffix", sorted(PACK))
def test_a_member_that_is_larger_than_the_archive_allocates_nothing(
    folder: Path, suffix: str
) -> None:
    """990 MB by its header, and nothing behind it."""
    for size in (390_000_000, 990_000_000, 1 << 60):
        data = PACK[suffix](info("a.jpg", size).tobuf(format=1) + b"x" * 1000)
        tracemalloc.start()
        found, said = read(folder, data, suffix)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
        tracemalloc.stop()
        assert said or found[0][1] is None


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_members_that_unpack_to_more_than_they_say(folder: Path, kind: int) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", kind) as archive:
        archive.writestr("a.jpg", bytes(300_000_000))
        archive.writestr("b.jpg", b"good")
    data = bytearray(made.getvalue())
    at = data.index(b"PK\1\2") + 24
    for declared in (10, 50_000_000, 399_000_000):
        data[at : at + 4] = declared.to_bytes(4, "little")
        tracemalloc.start()
        found, said = read(folder, bytes(data), "zip")
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
        tracemalloc.stop()
        assert [data for _, data in found] == [None, b"good"] and not said


@inputs(20)
@given(
    st.text(max_size=20).map(lambda text: f"{text}.tar") | st.text("{}.,0129*[]ab:/~", max_size=30)
)
def test_names_of_archives(text: str) -> None:
    accepted(lambda: find_archives(text))


@pytest.mark.parametrize("place", ["/dev/zero.tar", "no\0.zip", "x" * 5000 + ".tar", ".zip"])
def test_archives_that_are_none(place: str) -> None:
    with pytest.raises(UserError):
        list(entries(place))
