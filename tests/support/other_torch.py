"""Scores pairs in a process whose torch lacks a private operator, or has another under its name.

    python -m tests.support.other_torch OUT [REPLACED ...]

REPLACED: linear-raises, linear-differs, attention-raises or attention-differs. Operators are
replaced in torch's own dispatcher, as a build for another processor registers other kernels. OUT
(npz) gets, by precision: the logits of test_scorer's pairs one by one, the same backwards, and in
batches; and which operators are in use.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrt_core.transformer.fused_operators import attention_with_log_sum_works, fused_linear_works
from rrt_core.transformer.scorer import PairScorer
from tests.rrt_core.transformer.test_scorer import make_model, random_pairs

LINEAR = torch.library.Library("mkldnn", "IMPL")
ATTENTION = torch.library.Library("aten", "IMPL")


def raises(*args: Any, **options: Any) -> Any:
    raise RuntimeError("not on this processor")


def weight_itself(weight: Tensor, rows: int | None = None) -> Tensor:
    return weight.clone()


def linear_without_bias(x: Tensor, weight: Tensor, *ignored: Any) -> Tensor:
    return x @ weight.T


def attention_with_log2_sum(
    query: Tensor, key: Tensor, value: Tensor, *ignored: Any
) -> tuple[Tensor, Tensor]:
    scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    mixed = scores.softmax(-1) @ value.float()
    return mixed.to(query.dtype), scores.logsumexp(-1) * np.log2(np.e)


def replace(what: str) -> None:
    operator, how = what.split("-")
    differs = how == "differs"
    if operator == "linear":
        for key in ("CPU", "MkldnnCPU"):
            LINEAR.impl("_linear_pointwise", linear_without_bias if differs else raises, key)
        LINEAR.impl("_reorder_linear_weight", weight_itself if differs else raises, "CPU")
        return
    ATTENTION.impl(
        "_scaled_dot_product_flash_attention_for_cpu",
        attention_with_log2_sum if differs else raises,
        "CPU",
    )
    # Or the public attention would call the replaced kernel, which a torch that lacks it does not.
    torch.backends.cuda.enable_flash_sdp(False)


def main(out: str, *replaced: str) -> None:
    for what in replaced:
        replace(what)
    model, pairs = make_model(), random_pairs(2, 8)
    found: dict[str, Any] = {}
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        scorer = PairScorer(model, "cpu", precision=precision, workers=1)
        found[precision] = scorer.score(pairs)
        found[f"{precision} backwards"] = scorer.score(pairs[::-1])[::-1]
        found[f"{precision} in batches"] = PairScorer(model, "cpu", 1000, precision).score(pairs)
        found[f"{precision} linear"] = fused_linear_works(dtype)
        found[f"{precision} attention"] = attention_with_log_sum_works(dtype)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
