"""Matrix products and attention on CPUs by torch's private operators where they work, or plainly.

A private operator may be missing from a build of torch, refuse a precision on some processors, or
mean another thing in the next version. So each is run once a process and precision, on a small
input, and its numbers are compared with the plain formula's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# What an operator that is missing, refuses its input or gives something else ends in.
FAILURES = (AttributeError, RuntimeError, TypeError, ValueError)


@cache
def fused_linear_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused matrix products give the right numbers in this precision."""
    return _works(_try_linear, dtype)


@cache
def attention_with_log_sum_works(dtype: torch.dtype) -> bool:
    """Whether torch's fused attention and its log-sum-exp are right in this precision."""
    return _works(_try_attention, dtype)


def _works(attempt: Callable[[torch.dtype], bool], dtype: torch.dtype) -> bool:
    try:
        with torch.inference_mode():
            return attempt(dtype)
    except FAILURES:
        return False


def _try_linear(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.enabled:  # the operators themselves do not look at it
        return False

    # Small whole numbers: every sum is exact in every precision, so that equal means equal bits.
    x = torch.arange(16 * 32).remainder(5).sub(2).view(16, 32).to(dtype)
    weight = torch.arange(48 * 32).remainder(7).sub(3).view(48, 32).to(dtype)
    bias = torch.arange(48).remainder(3).sub(1).to(dtype)

    product = F.linear(x.float(), weight.float(), bias.float()).to(dtype)
    packed = _pack(weight, len(x))
    right = torch.equal(_fused(x, packed, bias, "none"), product)
    right = right and torch.equal(_fused(x, packed, bias, "relu"), product.relu())

    if dtype == torch.float32:
        right = right and torch.equal(_fused_add(x, product, packed, bias), 2 * product)
    return right


def _try_attention(dtype: torch.dtype) -> bool:
    # Laid out as in use: heads beside each other in a row; more keys than queries.
    def made(tokens: int, step: float) -> Tensor:
        waves = torch.arange(tokens * 24).mul(step).sin().to(dtype)
        return waves.view(1, tokens, 3, 8).transpose(1, 2)

    query, key, value = made(5, 0.7), made(9, 1.3), made(9, 2.1)
    mixed, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    expected, expected_log_sum = _plain_attention(query, key, value)

    # Fused kernels approximate the exponential: this is to see another meaning, not a rounding.
    within = max(1e-4, 4 * torch.finfo(dtype).eps)
    return (
        mixed.dtype == dtype
        and log_sum.dtype == torch.float32
        and mixed.shape == expected.shape
        and log_sum.shape == expected_log_sum.shape
        and torch.allclose(mixed.float(), expected.float(), rtol=0, atol=within)
        and torch.allclose(log_sum, expected_log_sum, rtol=0, atol=within)
    )


def _pack(weight: Tensor, rows: int) -> Tensor:
    """[out, in] in oneDNN's own layout for products of about so many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def _fused(x: Tensor, packed: Tensor, bias: Tensor, then: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, then, [], "")


def _fused_add(x: Tensor, residual: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")


class FusedLinear:
    """x W^T + b, with ReLU or a residual, by oneDNN's fused products where they work.

    Where they do not work in bfloat16, its values are multiplied in float32 and the product is
    rounded, as oneDNN itself does it: the same results but for a last bit, at float32's speed.
    (torch's own product of bfloat16 takes 8 to 25 times as long on a processor with AVX2 alone.)
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, rows: int) -> None:
        """Round the weights to the precision and lay them out.

        weight: [out, in]. bias: [out].
        dtype: the precision, float32 or bfloat16.
        rows: how many are multiplied at once in most calls, for which oneDNN lays out the weight.
        """
        self.dtype = dtype
        self.computed_in = dtype if fused_linear_works(dtype) else torch.float32
        self.fused = fused_linear_works(self.computed_in)

        # Rounded to the precision first, whatever the products are computed in.
        self.weight = weight.detach().to(dtype).to(self.computed_in)
        self.bias = bias.detach().to(dtype).to(self.computed_in)
        if self.fused:
            self.weight = _pack(self.weight, rows)

    def plain(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out] in the precision."""
        x = x.to(self.dtype).to(self.computed_in)
        if self.fused:
            return _fused(x, self.weight, self.bias, "none").to(self.dtype)
        return F.linear(x, self.weight, self.bias).to(self.dtype)

    def relu(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out] in the precision, >= 0."""
        x = x.to(self.dtype).to(self.computed_in)
        if self.fused:
            return _fused(x, self.weight, self.bias, "relu").to(self.dtype)
        return F.linear(x, self.weight, self.bias).relu_().to(self.dtype)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """[T, in], float32 [T, out] -> float32 [T, out]."""
        if self.fused and self.dtype == torch.float32:
            return _fused_add(x, residual, self.weight, self.bias)
        # The sum is float32 whatever the precision of the product.
        return residual + self.plain(x)


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, which scaled_dot_product_attention does not hand out.

    Args:
        query: [B, heads, n, d]. key, value: [B, heads, m, d]. float32 or bfloat16.
    Returns:
        [B, heads, n, d] in their precision, and float32 [B, heads, n].
    """
    if not attention_with_log_sum_works(query.dtype):
        return _plain_attention(query, key, value)
    mixed, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return mixed, log_sum


def _plain_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """As attend; holds the float32 matrix [B, heads, n, m]: 4 MB of 502 tokens and 4 heads."""
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    log_sum = scores.logsumexp(-1)
    mixed = scores.sub_(log_sum[..., None]).exp_() @ value.float()
    return mixed.to(query.dtype), log_sum
