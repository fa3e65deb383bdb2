"""Private operators of torch are used where they are right; elsewhere logits are the same."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rrt_core.transformer.fused_operators import (
    FusedLinear,
    attend,
    attention_with_log_sum_works,
    fused_linear_works,
)
from tests.rrt_core.transformer.test_scorer import make_model, plain_logit, random_pairs

ROOT = Path(__file__).resolve().parents[3]
PRECISIONS = [torch.float32, torch.bfloat16]

# One bit of the mantissa on numbers up to 8, which these products stay below.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1 / 32}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.skipif(
    not torch.backends.mkldnn.enabled, reason="oneDNN is off: its products are not to be used"
)
def test_the_product_is_found_to_work_where_it_does(dtype: torch.dtype) -> None:
    x, weight = random(40, 128, seed=1, dtype=dtype), random(384, 128, seed=2, dtype=dtype) / 16
    bias = random(384, seed=3, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 384)
        product = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "").float()
        expected = F.linear(x.float(), weight.float(), bias.float())
        works = bool((product - expected).abs().max() <= ROUNDING[dtype])
    except (AttributeError, RuntimeError):
        works = False
    assert fused_linear_works(dtype) == works


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_attention_is_found_to_work_where_it_does(dtype: torch.dtype) -> None:
    query, key, value = (random(1, 4, n, 32, seed=n, dtype=dtype) for n in (50, 70, 70))
    try:
        mixed, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        works = bool((mixed.float() - expected).abs().max() <= ROUNDING[dtype])
    except (AttributeError, RuntimeError):
        works = False
    assert attention_with_log_sum_works(dtype) == works


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_products_are_those_of_float32_rounded(dtype: torch.dtype) -> None:
    x, weight = random(40, 128, seed=1), random(384, 128, seed=2) / 16
    bias, residual = random(384, seed=3), random(40, 384, seed=4)
    layer = FusedLinear(weight, bias, dtype, rows=40)
    expected = F.linear(x.to(dtype).float(), weight.to(dtype).float(), bias.to(dtype).float())
    for result, wanted in [(layer.plain(x), expected), (layer.relu(x), expected.relu())]:
        assert result.dtype == dtype
        assert (result.float() - wanted).abs().max() <= ROUNDING[dtype]
    total = layer.add(x, residual)
    assert total.dtype == torch.float32
    assert (total - (expected + residual)).abs().max() <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_log_sum_is_that_of_the_scores(dtype: torch.dtype) -> None:
    query, key, value = (random(1, 4, n, 32, seed=n, dtype=dtype) for n in (50, 70, 70))
    mixed, log_sum = attend(query, key, value)
    scores = query.float() @ key.float().transpose(-1, -2) / 32**0.5
    assert mixed.dtype == dtype and log_sum.dtype == torch.float32
    assert (log_sum - scores.logsumexp(-1)).abs().max() <= 1e-4
    assert (mixed.float() - scores.softmax(-1) @ value.float()).abs().max() <= ROUNDING[dtype]


def test_finding_out_takes_no_random_number() -> None:
    torch.manual_seed(5)
    fused_linear_works.cache_clear()
    attention_with_log_sum_works.cache_clear()
    fused_linear_works(torch.float32)
    attention_with_log_sum_works(torch.float32)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def score_elsewhere(out: Path, *replaced: str, **variables: str) -> dict[str, Any]:
    """What other_torch finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.other_torch", str(out), *replaced],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        return dict(arrays)


def check_logits(result: dict[str, Any]) -> None:
    """The tolerances are those of test_scorer."""
    expected = np.asarray([plain_logit(make_model(), *pair) for pair in random_pairs(2, 8)])
    for precision, within in (("float32", 1e-5), ("bfloat16", 0.03)):
        assert np.abs(result[precision] - expected).max() <= within
        assert np.abs(result[f"{precision} in batches"] - expected).max() <= within
        assert result[precision].tobytes() == result[f"{precision} backwards"].tobytes()
    assert np.abs(result["float32"] - result["bfloat16"]).max() > 0


@pytest.mark.parametrize(
    "replaced",
    [
        ["linear-raises"],
        ["attention-raises"],
        ["linear-differs"],
        ["attention-differs", "linear-raises"],
    ],
    ids=" ".join,
)
def test_logits_without_an_operator(tmp_path: Path, replaced: list[str]) -> None:
    result = score_elsewhere(tmp_path / "found.npz", *replaced)
    for what in replaced:
        operator = what.split("-")[0]
        assert not result[f"float32 {operator}"] and not result[f"bfloat16 {operator}"]
    check_logits(result)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="oneDNN is limited by a variable on x86-64 alone",
)
def test_logits_without_avx512(tmp_path: Path) -> None:
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    result = score_elsewhere(tmp_path / "found.npz", **limits)
    assert not result["bfloat16 linear"]
    assert result["float32 linear"]
    check_logits(result)
