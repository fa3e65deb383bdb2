"""The pairs of a training step, read from the stores in bounded memory and ahead of need."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from pipelines.stores.locals import LocalsReader
from pipelines.train.records import Records
from rrt_core.training.loop import PairBatch, Side
from rrt_core.training.mining import TripletSampler
from rrt_core.training.processes import Processes
from rrt_core.transformer.model import bin_scales
from rrt_core.transformer.scorer import TokenSet
from schemas.errors import UserError

AHEAD = 2  # batches read before they are needed

Budget = tuple[int, int]  # fewest and most local descriptors of an image


def read_budget(text: str, option: str) -> Budget:
    """ "500" or a range "50-500". Raises UserError."""
    low, dash, high = text.partition("-")
    try:
        budget = int(low), int(high if dash else low)
    except ValueError:
        budget = 0, 0
    if not 1 <= budget[0] <= budget[1]:
        raise UserError(
            f"train: {option} is {text!r}; give a number of at least 1, or a range such as 50-500"
        )
    return budget


class TokenCache:
    """Images as the model takes them, the last used ones kept in memory. Safe among threads."""

    def __init__(
        self, records: Records, descriptors: np.ndarray, tokens: int, binning: str, most_bytes: int
    ) -> None:
        """Args:
        descriptors: the records' globals [n, D], in memory or mapped.
        tokens: locals that are read of an image, the first.
        binning: a key of transformer.SCALE_TABLES.
        most_bytes: of descriptors kept.
        """
        self.records, self.descriptors, self.tokens, self.most_bytes = (
            records,
            descriptors,
            tokens,
            most_bytes,
        )
        self._scales = bin_scales(records.stores[0].scales, binning).astype(np.uint8)
        self._reader = LocalsReader(records.gallery)
        self._kept: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, rows: Sequence[int], most: int) -> list[TokenSet]:
        """The first `most` locals (at most `tokens`) of some records."""
        with self._lock:
            found = self._find(sorted({int(row) for row in rows}))
        tokens = []
        for row in rows:
            local, scale_rows = found[int(row)]
            tokens.append(
                TokenSet(
                    np.array(self.descriptors[row], np.float32),  # a copy: the map is read-only
                    np.asarray(local[:most], np.float32),
                    scale_rows[:most].astype(np.int64),
                )
            )
        return tokens

    def _find(self, rows: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for row in rows:
            if row in self._kept:
                self._kept.move_to_end(row)
                found[row] = self._kept[row]
        missing = [row for row in rows if row not in found]
        if missing:
            ids = self.records.row_ids[missing]
            globals_unread = np.zeros((len(missing), 0), np.float32)
            for row, image in zip(
                missing, self._reader.read(ids, globals_unread, self.tokens), strict=True
            ):
                half = image.descriptors.astype(np.float16)
                exact = np.array_equal(
                    half, image.descriptors
                )  # of stored halves: the same in less memory
                found[row] = (
                    half if exact else image.descriptors.copy(),
                    self._scales[image.scale],
                )
                self._keep(row, found[row])
        return found

    def _keep(self, row: int, image: tuple[np.ndarray, np.ndarray]) -> None:
        self._kept[row] = image
        self._bytes += sum(array.nbytes for array in image)
        while self._bytes > self.most_bytes and self._kept:
            _, old = self._kept.popitem(last=False)
            self._bytes -= sum(array.nbytes for array in old)


class PairBatches:
    """This process's share of a step's pairs: a function of the seed and the step's number
    alone.
    """

    def __init__(
        self,
        cache: TokenCache,
        sampler: TripletSampler,
        triplets: int,
        budgets: tuple[Budget, Budget],
        swap: bool,
        processes: Processes,
    ) -> None:
        """Args:
        triplets: of a step over all processes; each is a positive and a negative pair.
        budgets: of query and gallery; of a range, each step has one number.
        swap: whether each pair serves in either order, by chance (the model is not symmetric).
        """
        self.cache, self.sampler, self.triplets = cache, sampler, triplets
        self.budgets, self.swap, self.processes = budgets, swap, processes

    def __call__(self, step: int) -> PairBatch:
        """The pairs of a step, in pinned memory where they go to a GPU."""
        anchor, positive, negative = self.sampler.triplets(step, self.triplets)
        rng = np.random.default_rng((self.sampler.seed, 2, step))
        tokens = [int(rng.integers(low, high + 1)) for low, high in self.budgets]
        query, gallery = np.repeat(anchor, 2), np.stack([positive, negative], axis=1).reshape(-1)
        if self.swap:
            turned = rng.random(len(query)) < 0.5
            query, gallery = np.where(turned, gallery, query), np.where(turned, query, gallery)
        share = self.processes.share(self.triplets)
        mine = slice(2 * share.start, 2 * share.stop)
        label = torch.tensor([1.0, 0.0]).repeat(share.stop - share.start)
        batch = PairBatch(
            self._side(query[mine], tokens[0]), self._side(gallery[mine], tokens[1]), label
        )
        return batch.pinned() if self.processes.device.type == "cuda" else batch

    def _side(self, rows: np.ndarray, tokens: int) -> Side:
        images = self.cache.read(rows.tolist(), tokens)
        count = np.array([len(image.local) for image in images])
        width = images[0].local.shape[1]
        local = np.zeros((len(images), int(count.max()), width), np.float32)
        scale_rows = np.zeros(local.shape[:2], np.int64)
        for number, image in enumerate(images):
            local[number, : count[number]] = image.local
            scale_rows[number, : count[number]] = image.scale_rows
        mask = np.arange(local.shape[1])[None] >= count[:, None]
        return Side(
            torch.from_numpy(np.stack([image.global_descriptor for image in images])),
            torch.from_numpy(local),
            torch.from_numpy(scale_rows),
            torch.from_numpy(mask) if mask.any() else None,
        )


class Prefetched:
    """A function of the step whose next results are made in a thread while one is used."""

    def __init__(self, batch_of: Callable[[int], PairBatch], steps: int) -> None:
        self._batch_of, self._steps = batch_of, steps
        self._thread = ThreadPoolExecutor(1, "batches")
        self._made: dict[int, Future[PairBatch]] = {}

    def __call__(self, step: int) -> PairBatch:
        """The result of a step; steps are asked for one after the other. Raises what the function
        raises.
        """
        for number in range(step, min(step + 1 + AHEAD, self._steps)):
            if number not in self._made:
                self._made[number] = self._thread.submit(self._batch_of, number)
        return self._made.pop(step).result()

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)
