"""Single rows of globals: by byte ranges, as few as can be, and the same as of whole parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.stores.gallery import Gallery
from pipelines.stores.store import REMOTE_GAP, Store, row_runs
from schemas.errors import Damaged
from tests.support.s3_server import S3Server
from tests.support.stored import imported

ROWS, PARTS, DIMENSION = 1000, 2, 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of 500 rows, and four rows that begin a third."""
    rows = np.random.default_rng(0).standard_normal((ROWS + 4, DIMENSION))
    return imported(tmp_path_factory.mktemp("rows"), "g", rows, "--rows-per-part", "500")


class Counting:
    """Counts the bytes and ranges that are read of a place by ranges, and its whole files."""

    def __init__(self, place: Place, patch: pytest.MonkeyPatch) -> None:
        self.bytes, self.ranges, self.whole = 0, 0, 0
        read_ranges, read = place.read_ranges, place.read

        def ranges(
            names: Sequence[str], starts: Sequence[int], stops: Sequence[int]
        ) -> list[bytes]:
            self.bytes += sum(stops) - sum(starts)
            self.ranges += len(names)
            return read_ranges(names, starts, stops)

        def whole(name: str) -> bytes:
            self.whole += 1
            return read(name)

        patch.setattr(place, "read_ranges", ranges)
        patch.setattr(place, "read", whole)


@pytest.mark.parametrize("wanted", [[7], [3, 4, 5, 499], [499, 0, 7, 7], list(range(0, 500, 3))])
def test_rows_are_those_of_the_part(
    wanted: list[int], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Store(str(store))
    expected = opened.read_global(opened.parts[1]).descriptors[wanted]
    counted = Counting(opened.place, monkeypatch)
    got = opened.read_rows(opened.parts[1], np.array(wanted))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    assert (counted.bytes, counted.whole) == (len(set(wanted)) * DIMENSION * 4, 0)


def test_most_of_a_part_is_read_as_a_whole(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store(str(store))
    counted = Counting(opened.place, monkeypatch)
    some = np.random.default_rng(1).permutation(500)[:300]
    got = opened.read_rows(opened.parts[0], some)
    assert (counted.ranges, counted.whole) == (0, 1)
    np.testing.assert_array_equal(got, opened.read_global(opened.parts[0]).descriptors[some])


def test_rows_of_several_parts(store: Path) -> None:
    gallery = Gallery([Store(str(store))])
    row_ids = np.array([4096 + 3, 2, 8192 + 3, 4096 + 499, 2])
    names, descriptors = gallery.read_globals(row_ids)
    assert names == [f"g/g{row:06}.jpg" for row in (503, 2, 1003, 999, 2)]
    every = np.load(store.parent / "g.npy")
    np.testing.assert_array_equal(descriptors, every[[503, 2, 1003, 999, 2]])
    with pytest.raises(Damaged, match="row 500 of part 1 is named"):
        gallery.read_descriptors(np.array([4096 + 500]))


def test_stores_without_layouts_are_read_by_parts(store: Path) -> None:
    """Those of earlier versions."""
    opened = Store(str(store))
    part = opened.parts[0]
    object.__setattr__(part.globals, "layout", None)
    np.testing.assert_array_equal(
        opened.read_rows(part, np.array([9, 1])), opened.read_global(part).descriptors[[9, 1]]
    )


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"descriptor": {"offset": -1, "dtype": "<f4", "shape": [500, DIMENSION]}},
        {"descriptor": {"offset": 1 << 40, "dtype": "<f4", "shape": [500, DIMENSION]}},
        {"descriptor": {"offset": 4, "dtype": "<f8", "shape": [500, DIMENSION]}},
        {"descriptor": {"offset": 4, "dtype": "no type", "shape": [500, DIMENSION]}},
        {"descriptor": {"offset": 4, "dtype": "<f4", "shape": [1 << 40, DIMENSION]}},
        {"descriptor": {"offset": "4", "dtype": "<f4", "shape": "all"}},
    ],
    ids=lambda layout: json.dumps(layout)[:40],
)
def test_a_layout_that_lies_is_damage(layout: dict[str, object], store: Path) -> None:
    opened = Store(str(store))
    part = opened.parts[0]
    object.__setattr__(part.globals, "layout", layout)
    with pytest.raises(Damaged, match="layout in its marker"):
        opened.read_rows(part, np.array([1]))


def test_gaps_are_joined_on_an_object_store(
    store: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_place("s3://bucket/rows")
    for path in store.rglob("*"):
        if path.is_file():
            place.write(str(path.relative_to(store)), path.read_bytes())
    opened = Store("s3://bucket/rows")
    counted = Counting(opened.place, monkeypatch)
    got = opened.read_rows(opened.parts[0], np.array([400, 10]))
    np.testing.assert_array_equal(got, np.load(store.parent / "g.npy")[[400, 10]])
    assert (counted.ranges, counted.bytes) == (1, 391 * DIMENSION * 4), "a gap of 100 kB"


def test_runs() -> None:
    rows = np.array([0, 1, 2, 5, 7, 100])
    assert row_runs(rows, 0) == [(0, 2), (5, 5), (7, 7), (100, 100)]
    assert row_runs(rows, 1) == [(0, 2), (5, 7), (100, 100)]
    assert row_runs(rows, 200) == [(0, 100)] and REMOTE_GAP == 256_000
