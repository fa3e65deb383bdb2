"""What `train` learns from: described records of stores with their labels, and which labels are
held out.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery
from pipelines.stores.store import Store
from rrt_core.training.state import write_whole
from schemas.errors import UserError
from schemas.ground_truth.labels import Labels, folder_labels, match_labels, read_labels
from schemas.layout import ROWS_A_PART
from schemas.manifest import canonical_json, sha256_text

FOLDER = "folder"  # in place of a file of labels: the parent folder's name


@dataclass(frozen=True)
class Records:
    """n described records with labels, in the order of their row ids.

    row_ids: int64 [n], rising. labels: int64 [n], places in `names`. held_out: bool [n].
    dropped: what was left out, in words. sha256: of the sorted (record id, label) list.
    """

    stores: list[Store]
    row_ids: np.ndarray
    record_ids: list[str]
    labels: np.ndarray
    names: list[str]
    held_out: np.ndarray
    dropped: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def gallery(self) -> Gallery:
        """The stores, for reading."""
        return Gallery(self.stores)


def open_stores_of(urls: Sequence[str]) -> list[Store]:
    """Stores with bases one after the other, as `index` gives them.

    Raises UserError where they do not fit together.
    """
    stores: list[Store] = []
    base = 0
    for url in urls:
        store = Store(url, base)
        if stores and store.described_by != stores[0].described_by:
            raise UserError(
                f"{store.place.url} was described by {store.extractor['name']} with other "
                f"settings or weights than "
                f"{stores[0].place.url}; describe both alike"
            )
        stores.append(store)
        base += store.span
    return stores


def read_records(stores: list[Store], labels: str, held_out: float, seed: int) -> Records:
    """The described records of stores that have a label.

    Args:
        labels: a file (schemas/labels.py), or "folder".
        held_out: share of the labels held out, chosen by the hash of seed and label: a label stays
            on its side when others come or go.
    Raises:
        UserError: labels that cannot be read, fit two records or none; fewer than two labels.
    """
    row_ids, record_ids, failed = _described(stores)
    found = _labels(labels, record_ids)
    dropped = []
    missing = len(record_ids) - len(found.of_record)
    if missing:
        dropped.append(f"{missing:,} described records without a label are left out")
    if found.unknown:
        first = found.unknown[0]
        because = f" ({failed:,} images of the stores could not be described)" if failed else ""
        dropped.append(
            f"{len(found.unknown):,} rows of {labels} name no described record, the first is row "
            f"{first.row}, "
            f"{first.name!r}{because}"
        )
    if not found.of_record:
        raise UserError(
            f"{labels} names no described record of the stores: {dropped[-1]}; a record id is "
            f"such as "
            f"{record_ids[0]}"
        )
    kept = np.array([record_id in found.of_record for record_id in record_ids], bool)
    ids = [record_id for record_id in record_ids if record_id in found.of_record]
    texts = [found.of_record[record_id] for record_id in ids]
    names = sorted(set(texts))
    if len(names) < 2:
        raise UserError(
            f"{labels}: all records have the label {names[0]!r}; training needs at least two labels"
        )
    place = {name: number for number, name in enumerate(names)}
    codes = np.array([place[text] for text in texts], np.int64)
    aside = np.array([_share(seed, name) < held_out for name in names], bool)
    pairs = sorted(found.of_record.items())
    return Records(
        stores,
        row_ids[kept],
        ids,
        codes,
        names,
        aside[codes],
        tuple(dropped),
        sha256_text(canonical_json(pairs)),
    )


def _described(stores: Sequence[Store]) -> tuple[np.ndarray, list[str], int]:
    """Row ids (rising) and record ids of all described records, and how many failed."""
    rows, names, failed = [], [], 0
    for store in stores:
        for part in store.parts:
            read = store.read_global(part)
            ok = np.flatnonzero(read.ok)
            rows.append(store.row_ids(part, ok))
            names += [read.record_ids[row] for row in ok]
            failed += len(read.ok) - len(ok)
    if not names:
        raise UserError(f"{stores[0].place.url}: no image was described")
    return np.concatenate(rows), names, failed


def _labels(labels: str, record_ids: Sequence[str]) -> Labels:
    if labels == FOLDER:
        return folder_labels(record_ids)
    try:
        data = open_place(labels).read("")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(
            f"{labels}: there is no such file of labels; give a CSV or Parquet file, or 'folder'"
        ) from None
    return match_labels(read_labels(data, labels), record_ids, labels)


def _share(seed: int, label: str) -> float:
    """A number in [0, 1) of a label."""
    digest = hashlib.blake2b(f"{seed}:{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def hash_order(seed: int, record_ids: Sequence[str]) -> np.ndarray:
    """int64 [n]: the records in an order by hash, which others that come or go do not change."""
    return np.argsort([_share(seed, record_id) for record_id in record_ids], kind="stable")


def copy_globals(records: Records, path: Path) -> None:
    """Copy the records' descriptors to a .npy file [n, D] in the stored dtype, which is then read
    by memory map.

    The stores' Parquet files can only be read part by part, and a step needs rows of everywhere.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    matrix: Any = None
    for number, positions in records.gallery.locate(records.row_ids).items():
        store, part = records.gallery.part(number)
        descriptors = store.read_global(part).descriptors
        if matrix is None:
            shape = (len(records), store.dimension)
            matrix = np.lib.format.open_memmap(
                beside, mode="w+", dtype=descriptors.dtype, shape=shape
            )
        matrix[positions] = descriptors[records.row_ids[positions] % ROWS_A_PART]
    matrix.flush()
    del matrix
    beside.replace(path)


def save_rows(path: Path, rows: np.ndarray) -> None:
    """An array as a .npy file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
