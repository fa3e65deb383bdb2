"""Figures of held-out pairs and lists, by which a training run is judged."""

from __future__ import annotations

import numpy as np

from rrt_core.metrics.revisited import average_precision


def pair_figures(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve (equal logits count half) and mean binary cross-entropy.

    Args:
        logits: float [n]. labels: float or bool [n], 1 = the same instance; of each kind at least
            one.
    """
    positive = np.asarray(labels) > 0.5
    logits = np.asarray(logits, np.float64)
    # Mann and Whitney: the sum of the positives' ranks, equal values sharing their mean rank.
    _, place, count = np.unique(logits, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positives, negatives = int(positive.sum()), int((~positive).sum())
    area = (ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    loss = np.logaddexp(0, np.where(positive, -logits, logits)).mean()
    return {"val_auc": float(area), "val_loss": float(loss)}


def list_precision(hits: np.ndarray, positives: int, logits: np.ndarray | None = None) -> float:
    """Average precision of a list, in the order given or by logit falling.

    Equal logits keep the order given.

    Args:
        hits: bool [k], whether the record has the query's label.
        positives: of the whole gallery, at least 1; those that the list lacks add nothing.
        logits: float [k].
    """
    order = (
        np.arange(len(hits)) if logits is None else np.argsort(-np.asarray(logits), kind="stable")
    )
    return average_precision(np.flatnonzero(np.asarray(hits)[order]), positives)
