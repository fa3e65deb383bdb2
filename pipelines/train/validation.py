"""Figures of a training run on its held-out labels: pairs, and lists reranked by the model as it
stands.
"""

from __future__ import annotations

import copy

import numpy as np

from pipelines.engines.progress import Progress
from pipelines.train.batches import TokenCache
from pipelines.train.records import Records, hash_order
from rrt_core.training.figures import list_precision, pair_figures
from rrt_core.training.mining import NONE, TripletSampler
from rrt_core.training.processes import Processes
from rrt_core.transformer.model import RerankingTransformer
from rrt_core.transformer.scorer import PairScorer

PAIRS_A_CALL = 256  # in memory at once
SELECT = "val_map"


class Validation:
    """Fixed pairs and lists of held-out records; called with a model it gives its figures.

    val_auc, val_loss: of the pairs of triplets mined as for training. val_map: mean average
        precision of the lists
    of some anchors, their nearest held-out records reranked; val_map_global: in the global order.
    Positives that are not in the list count as missed, in both alike.
    """

    def __init__(
        self,
        cache: TokenCache,
        neighbours: np.ndarray,
        anchors: np.ndarray,
        queries: int,
        pairs: int,
        tokens: tuple[int, int],
        seed: int,
        processes: Processes,
    ) -> None:
        """Args:
        neighbours: int32 [n, k], as mining takes them. anchors: int64 [a], held-out rows.
        queries: how many anchors have a list; they are chosen by the hash of seed and record id.
        pairs: half positive, half negative.
        tokens: locals of a query and of a gallery image.
        """
        self.cache, self.tokens, self.processes = cache, tokens, processes
        records = cache.records
        order = hash_order(seed, [records.record_ids[row] for row in anchors])
        self.queries = np.sort(anchors[order[:queries]])
        anchor, positive, negative = TripletSampler(
            neighbours, records.labels, anchors, seed
        ).triplets(0, max(1, pairs // 2))
        self.labels = np.tile([1.0, 0.0], len(anchor))
        lists = [
            (row, neighbours[row][neighbours[row] != NONE].astype(np.int64)) for row in self.queries
        ]
        self.hits = [records.labels[near] == records.labels[row] for row, near in lists]
        self.positives = [_positives(records, row) for row in self.queries]
        self.first = np.concatenate(
            [np.repeat(anchor, 2), *[np.full(len(near), row) for row, near in lists]]
        )
        self.second = np.concatenate(
            [np.stack([positive, negative], axis=1).reshape(-1), *[n for _, n in lists]]
        )
        self.global_map = float(np.mean([list_precision(*item) for item in self._lists()]))

    def __len__(self) -> int:
        """Pairs that an evaluation scores."""
        return len(self.first)

    def __call__(self, model: RerankingTransformer) -> dict[str, float]:
        """The figures; every process calls it and scores its share."""
        logits = self._score(model)
        ends = len(self.labels) + np.cumsum([len(hits) for hits in self.hits])
        lists = np.split(logits, [len(self.labels), *ends[:-1].tolist()])
        precision = [
            list_precision(hits, positives, found)
            for (hits, positives), found in zip(self._lists(), lists[1:], strict=True)
        ]
        figures = pair_figures(lists[0], self.labels)
        return {**figures, SELECT: float(np.mean(precision)), "val_map_global": self.global_map}

    def _lists(self) -> list[tuple[np.ndarray, int]]:
        return list(zip(self.hits, self.positives, strict=True))

    def _score(self, model: RerankingTransformer) -> np.ndarray:
        # A copy: a scorer may change what it is given, and training goes on with the model.
        scorer = PairScorer(copy.deepcopy(model), str(self.processes.device))
        logits = np.zeros(len(self.first))
        share = self.processes.share(len(self.first))
        progress = (
            Progress(f"{'validate':<9}", share.stop - share.start, "pairs")
            if self.processes.first
            else None
        )
        for start in range(share.start, share.stop, PAIRS_A_CALL):
            some = slice(start, min(start + PAIRS_A_CALL, share.stop))
            sides = []
            for rows, tokens in zip(
                (self.first[some], self.second[some]), self.tokens, strict=True
            ):
                different = np.unique(rows)
                images = dict(
                    zip(
                        different.tolist(), self.cache.read(different.tolist(), tokens), strict=True
                    )
                )
                sides.append([images[row] for row in rows.tolist()])
            logits[some] = scorer.score(list(zip(*sides, strict=True)))
            if progress:
                progress.show(some.stop - share.start)
        if progress:
            progress.clear()
        return self.processes.sum(logits)


def _positives(records: Records, row: int) -> int:
    """How many other held-out records have the record's label."""
    return int((records.labels[records.held_out] == records.labels[row]).sum()) - 1
