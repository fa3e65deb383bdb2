"""Options of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="evaluate"):
    """Options of `evaluate`."""

    out: str = option(
        "run folder that holds shortlist and rankings; the evaluation is made below it"
    )
    ground_truth: str = option(
        "ground-truth file (.json, revisitop's .pkl or .mat, or a form of an installed package)"
    )
    ensemble: tuple[str, ...] = option(
        "rows for lambda * global + (1 - lambda) * sigmoid(gamma * logit) over the first k, "
        "replayed from the scores: "
        "lambda,gamma or lambda,gamma,k, or the file that tune wrote",
        (),
    )
