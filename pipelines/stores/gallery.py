"""The stores of an index under one numbering of rows: which row id lies where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipelines.jobs.facts import StoreHint
from pipelines.jobs.inputs import find_inputs
from pipelines.stores.store import PartFiles, Store
from schemas.errors import Damaged, UserError
from schemas.layout import ROWS_A_PART

ROWS_A_RUN = 65_536  # of parts that a unit reads in turn


def open_gallery(urls: Sequence[str]) -> list[Store]:
    """The stores with their bases, one after the other.

    Raises UserError where they do not fit together.
    """
    if not urls:
        raise UserError("index: --stores is empty")

    stores: list[Store] = []
    for url in urls:
        store = Store(url, stores[-1].base + stores[-1].span if stores else 0)
        if stores and store.described_by != stores[0].described_by:
            raise UserError(
                f"{store.place.url} was described by {store.extractor['name']} with other "
                f"settings or weights than {stores[0].place.url}; describe both alike"
            )
        stores.append(store)
    return stores


def find_stores(
    hints: Sequence[StoreHint], home: str, given: Sequence[str] = ()
) -> list[StoreHint]:
    """The stores of an index, or of what was searched in it, with the places where they lie now.

    home: the output that names them. given: places that stand for recorded ones. Raises UserError
    where one is not to be found, or was made again since.
    """
    named = [(hint.url, hint.content) for hint in hints]
    places = find_inputs(named, home, given, "--stores", "store")
    return [
        StoreHint(url, hint.content, hint.base) for url, hint in zip(places, hints, strict=True)
    ]


def open_stores(hints: Sequence[StoreHint], home: str) -> list[Store]:
    """The stores of an index, with their bases. Raises UserError as find_stores."""
    return [Store(hint.url, hint.base) for hint in find_stores(hints, home)]


def entries_of(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """The stores as a job's settings and facts name them (`open_stores` opens them again)."""
    return [{**store.as_input, "base": store.base} for store in stores]


def store_inputs(stores: Sequence[Store]) -> dict[str, dict[str, str]]:
    """The stores as inputs of a job."""
    return {f"store-{number}": store.as_input for number, store in enumerate(stores)}


Run = tuple[tuple[int, int], ...]  # parts: (number of the store, number of the part)


def runs_of(gallery: Sequence[Store]) -> list[tuple[Run, int]]:
    """Runs of parts of about ROWS_A_RUN rows, with their rows."""
    runs: list[tuple[Run, int]] = []
    for number, store in enumerate(gallery):
        for part in store.parts:
            if not runs or runs[-1][1] + part.globals.rows > ROWS_A_RUN:
                runs.append(((), 0))
            parts, rows = runs[-1]
            runs[-1] = ((*parts, (number, part.number)), rows + part.globals.rows)
    return runs


def parts_of(stores: Sequence[Store], run: Run) -> Iterator[tuple[Store, PartFiles]]:
    """The parts of a run, each with its store."""
    for number, part in run:
        yield stores[number], stores[number].part(part)


class Gallery:
    """Stores side by side in one space of row ids."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self._by_part = {
            store.base + part.number: (store, part) for store in stores for part in store.parts
        }

    def locate(self, row_ids: np.ndarray) -> dict[int, np.ndarray]:
        """Global part number -> which positions of `row_ids` lie in it, parts ascending."""
        parts = np.asarray(row_ids) // ROWS_A_PART
        return {int(part): np.flatnonzero(parts == part) for part in np.unique(parts)}

    def part(self, number: int) -> tuple[Store, PartFiles]:
        """The store and files of a global part number. Raises Damaged where there is none."""
        if number not in self._by_part:
            raise Damaged(
                f"{self.stores[0].place.url}: a row of part {number} is named, and it has no such "
                f"part; make the index, or the shortlist, again with --overwrite"
            )
        return self._by_part[number]

    def read_ids(self, row_ids: np.ndarray) -> list[str]:
        """Record ids of rows; the descriptors are not read."""
        names = [""] * len(row_ids)
        for store, part, positions, rows in self._located(row_ids):
            _put(names, positions, store.read_ids(part).record_ids, rows)
        return names

    def read_globals(self, row_ids: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Record ids and descriptors float32 [n, D] of rows: of byte ranges, or a part once."""
        names = [""] * len(row_ids)
        descriptors = np.zeros((len(row_ids), self.stores[0].dimension), np.float32)
        for store, part, positions, rows in self._located(row_ids):
            if store.reads_whole(part, rows):
                read = store.read_global(part)
                ids, descriptors[positions] = read.record_ids, read.descriptors[rows]
            else:
                ids = store.read_ids(part).record_ids
                descriptors[positions] = store.read_rows(part, rows)
            _put(names, positions, ids, rows)
        return names, descriptors

    def read_descriptors(self, row_ids: np.ndarray) -> np.ndarray:
        """As `read_globals`, the descriptors alone."""
        descriptors = np.zeros((len(row_ids), self.stores[0].dimension), np.float32)
        for store, part, positions, rows in self._located(row_ids):
            descriptors[positions] = store.read_rows(part, rows)
        return descriptors

    def _located(
        self, row_ids: np.ndarray
    ) -> Iterator[tuple[Store, PartFiles, np.ndarray, np.ndarray]]:
        """Each part with the positions of its row ids, and their rows.

        Raises Damaged where a part has no such row.
        """
        for number, positions in self.locate(row_ids).items():
            store, part = self.part(number)
            rows = np.asarray(row_ids)[positions] % ROWS_A_PART
            if rows.max(initial=0) >= part.globals.rows:
                raise Damaged(
                    f"{store.place.url}: row {rows.max()} of part {part.number} is named, and it "
                    f"has no such row; make the index, or the shortlist, again with --overwrite"
                )
            yield store, part, positions, rows


def _put(
    names: list[str], positions: np.ndarray, record_ids: Sequence[str], rows: np.ndarray
) -> None:
    for position, row in zip(positions, rows, strict=True):
        names[position] = record_ids[row]
