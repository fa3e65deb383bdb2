"""What is written is what is read: parts of descriptors, names, manifests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas import failures, global_descriptors, local_descriptors
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.image_list import (
    ImageReference,
    decode_name,
    encode_name,
    image_table,
    make_record_id,
    references_of,
    relative_name,
    split_record_id,
)
from schemas.local_descriptors import LocalRow
from schemas.manifest import (
    Counts,
    FileEntry,
    Manifest,
    Marker,
    content_hash,
    entries_of,
    parts_table,
)

AWKWARD = [
    b"plain.jpg",
    b"with space.jpg",
    b"percent%20.jpg",
    b"hash#1,2,3,4.jpg",
    b"line\nbreak.jpg",
    b"tab\t.jpg",
    b"quote'\".jpg",
    "größe/日本.jpg".encode(),
    b"latin1-\xe9.jpg",
    b"\xff\xfe.jpg",
    "\x85control.jpg".encode(),
]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_file_name_has_one_id_that_gives_it_back(name: bytes) -> None:
    text = encode_name(name)
    text.encode("utf-8")
    assert text.isprintable()
    assert decode_name(text) == name


def test_encoded_names_are_distinct() -> None:
    assert len({encode_name(name) for name in AWKWARD}) == len(AWKWARD)


@pytest.mark.parametrize("box", [None, (1.0, 2.5, 300.0, 4.25), (0.1, 1e-7, 1234567.125, 3.0)])
def test_record_ids_split_again(box: tuple[float, float, float, float] | None) -> None:
    record = make_record_id("db", b"a#b/c%.jpg", box)
    assert split_record_id(record) == ("db", encode_name(b"a#b/c%.jpg"), box)


@pytest.mark.parametrize("last", ["e", "-", ".", "4e", "+", "1-1", "4.", "4\n", "4,5"])
def test_what_is_no_box_belongs_to_the_name(last: str) -> None:
    assert split_record_id(f"a/b#1,2,3,{last}") == ("a", f"b#1,2,3,{last}", None)


def test_names_relative_to_a_folder() -> None:
    names = ("./a", "a//./b", "..a/b..", "a/..", "/a", "", "./.")
    assert [relative_name(name) for name in names] == [
        "a",
        "a/b",
        "..a/b..",
        None,
        None,
        None,
        None,
    ]


def test_image_list_round_trip() -> None:
    references = [
        ImageReference("s/a", "s", b"/x/\xff.jpg", None),
        ImageReference("s/b#1,2,3,4", "s", b"s3://bucket/b", (1.0, 2.0, 3.0, 4.0)),
    ]
    assert list(references_of(image_table(references))) == references


def row(name: str, descriptor: np.ndarray | None) -> GlobalRow:
    return GlobalRow(name, "s", 640, 480, (1.0, 2.0, 3.0, 4.0), 0.5, 1234, "ab" * 32, descriptor)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_globals_round_trip(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    described = rng.standard_normal((5, 33)).astype(np.float32)
    rows = [row(f"s/{i}", None if i == 2 else described[i]) for i in range(5)]
    path = str(tmp_path / "part.parquet")
    global_descriptors.write_part(path, rows, 33, dtype)
    part = global_descriptors.part_of(pq.read_table(path), 33)
    assert part.record_ids == [f"s/{i}" for i in range(5)]
    assert part.ok.tolist() == [True, True, False, True, True]
    assert part.descriptors.dtype == np.dtype(dtype)
    expected = described.copy()
    expected[2] = 0  # zeros, never null
    np.testing.assert_array_equal(part.descriptors, expected.astype(dtype))
    assert pq.ParquetFile(path).num_row_groups == 1
    assert all(
        pq.read_table(path).column(name).null_count == 0
        for name in pq.read_table(path).column_names
    )


def test_globals_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    rows = [row("s/a", np.ones(8, np.float32))]
    digests = set()
    for number in range(2):
        path = tmp_path / f"{number}.parquet"
        global_descriptors.write_part(str(path), rows, 8, "float32")
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def local_row(index: int, count: int) -> LocalRow:
    rng = np.random.default_rng(index)
    return LocalRow(
        index,
        rng.standard_normal((count, 16)).astype(np.float32),
        rng.uniform(0, 500, (count, 2)).astype(np.float32),
        rng.integers(0, 3, count).astype(np.uint8),
        np.sort(rng.uniform(size=count).astype(np.float32))[::-1],
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_locals_by_byte_ranges_equal_hdf5(tmp_path: Path, dtype: str) -> None:
    rows = [local_row(0, 7), local_row(3, 0), local_row(4, 500)]
    path = tmp_path / "part.h5"
    layout = local_descriptors.write_part(str(path), rows, 16, dtype)
    data = path.read_bytes()
    with h5py.File(path) as file:
        for name in ("row", "offset", "descriptor", "xy", "scale", "strength"):
            stored = file[name][()]
            assert file[name].chunks is None and file[name].compression is None
            begin, end = local_descriptors.byte_range(layout, name, 0, len(stored))
            np.testing.assert_array_equal(
                local_descriptors.from_bytes(layout, name, data[begin:end]), stored
            )
            begin, end = local_descriptors.byte_range(layout, name, 1, 3)
            np.testing.assert_array_equal(
                local_descriptors.from_bytes(layout, name, data[begin:end]), stored[1:3]
            )
    read = local_descriptors.read_part(str(path))
    assert read["row"].tolist() == [0, 3, 4]
    assert read["offset"].tolist() == [0, 7, 7, 507]
    assert read["descriptor"].dtype == np.dtype(dtype)
    expected = rows[2].descriptors.astype(dtype)
    if dtype == "int8":
        largest = np.abs(rows[2].descriptors).max(axis=1, keepdims=True)
        expected = np.round(rows[2].descriptors.astype(np.float64) / largest * 127).astype(dtype)
    np.testing.assert_array_equal(read["descriptor"][7:], expected)
    written = sum(
        np.prod(layout[name]["shape"]) * np.dtype(layout[name]["dtype"]).itemsize
        for name in LOCAL_COLUMNS
    )
    assert written == 507 * local_descriptors.bytes_a_local(16, dtype)


LOCAL_COLUMNS = ("descriptor", "xy", "scale", "strength")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_part_without_any_local_is_readable(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "part.h5"
    layout = local_descriptors.write_part(str(path), [], 16, dtype)
    assert layout["descriptor"]["shape"] == [0, 16]
    assert local_descriptors.read_part(str(path))["descriptor"].shape == (0, 16)
    nothing = local_descriptors.decoded(local_descriptors.from_bytes(layout, "descriptor", b""))
    assert nothing.shape == (0, 16) and nothing.dtype == np.float32


@pytest.mark.parametrize("dimension", [32, 128, 1024])
def test_int8_turns_a_descriptor_by_no_more_than_it_says(dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    given = rng.standard_normal((400, dimension)).astype(np.float32)
    given[:200] **= 3  # few large values
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    stored = local_descriptors.encoded(given, "int8")
    assert stored.dtype == np.int8 and (np.abs(stored).max(axis=1) == 127).all()
    np.testing.assert_array_equal(local_descriptors.encoded(stored, "int8"), stored)
    back = local_descriptors.decoded(stored)
    assert back.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(back.astype(np.float64), axis=1), 1, atol=1e-6)
    similarity = np.clip((given.astype(np.float64) * back).sum(1), -1, 1)
    bound = np.abs(given).max(axis=1) * np.sqrt(dimension) / 254
    assert (np.arcsin(np.minimum(1, bound)) + 1e-3 >= np.arccos(similarity)).all()
    # A descriptor that is not of length 1 keeps its direction.
    np.testing.assert_array_equal(local_descriptors.encoded(4 * given, "int8"), stored)


def test_int8_of_zeros_stays_zeros() -> None:
    zeros = np.zeros((2, 16), np.float32)
    np.testing.assert_array_equal(
        local_descriptors.decoded(local_descriptors.encoded(zeros, "int8")), zeros
    )


def test_a_file_says_which_software_reads_it(tmp_path: Path) -> None:
    for dtype, version in (
        ("float32", "rrt-local/1"),
        ("float16", "rrt-local/1"),
        ("int8", "rrt-local/2"),
    ):
        path = tmp_path / f"{dtype}.h5"
        local_descriptors.write_part(str(path), [local_row(0, 3)], 16, dtype)
        with h5py.File(path) as file:
            assert file.attrs["schema"] == version
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = "rrt-local/9"
    with pytest.raises(
        ValueError, match="'rrt-local/9', this software reads rrt-local/1, rrt-local/2, rrt-local/3"
    ):
        local_descriptors.read_part(str(path))


def test_locals_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        path = tmp_path / f"{number}.h5"
        local_descriptors.write_part(str(path), [local_row(0, 9)], 16, "float16")
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_failures_round_trip(tmp_path: Path) -> None:
    rows = [FailureRow("s/a", "extract", "the file is empty", "empty")]
    path = str(tmp_path / "f.parquet")
    failures.write_part(path, rows)
    assert failures.rows_of(pq.read_table(path)) == rows
    failures.write_part(path, [])
    assert failures.rows_of(pq.read_table(path)) == []


def test_counts_must_add_up() -> None:
    with pytest.raises(ValueError, match="3 inputs"):
        Counts(3, 1, 1)


def test_markers_and_manifests_round_trip() -> None:
    entry = FileEntry(
        "a/b.abc.h5", 3, 100, "00" * 32, {"row": {"offset": 1, "dtype": "<i4", "shape": [3]}}
    )
    marker = Marker(
        "part-00000", "r", "s", (entry,), Counts(3, 2, 1), {"pairs": 4}, 1.5, "host", {"numpy": "2"}
    )
    assert Marker.from_bytes(marker.to_bytes()) == marker
    assert entries_of(parts_table([marker])) == [entry]
    manifest = Manifest(
        "extract", {"a": 1}, "h", "c", {}, Counts(3, 2, 1), {}, {}, {}, "now", 1.0, 2.0
    )
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[]", b"null", b"\xff", b'{"schema": "rrt-marker/0"}']
)
def test_an_unreadable_marker_counts_as_absent(damage: bytes) -> None:
    assert Marker.from_bytes(damage) is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"schema": "rrt-manifest/0"}'])
def test_a_damaged_manifest_is_told(damage: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.from_bytes(damage)


def test_content_ignores_order_and_times() -> None:
    a, b = FileEntry("a", 1, 1, "1"), FileEntry("b", 9, 9, "2")
    assert content_hash([a, b]) == content_hash([b, a])
    assert content_hash([a, b]) != content_hash([a, FileEntry("b", 9, 9, "3")])
