"""A start for the products variant from which little data suffices: it already compares alike cells.

Not in the paper, which learns it from 59,551 photographs. The idea is that of `initialise_matching` for landmarks,
with two differences: a cell's descriptor is made by the 1x1 convolution, so that we choose where it lies, and
cells carry a position embedding, out of whose way it must be put.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rrt_core.products_transformer import (
    SEGMENT_CLS,
    SEGMENT_G,
    SEGMENT_Q,
    SEGMENT_SEP,
    ProductsTransformer,
    sine_positions,
)
from schemas.errors import UserError

_NEGLIGIBLE = 1e-3  # of the largest singular value of the positions
_DEGREES = (0.2, 0.35, 0.5, 0.65)  # of likeness, a unit of the feed-forward each


def principal_components(cells: Tensor, count: int, power: float) -> tuple[Tensor, Tensor]:
    """Whitening of cells float32 [n, C]: weight [count, C] and bias [count] of a linear map to components.

    power: 1 = all components of one variance, 0 = as they come. Scaled so that the mean squared length is 1.
    Raises UserError where there are fewer than `count` channels.
    """
    if cells.shape[1] < count:
        raise UserError(f"A map of {cells.shape[1]} channels has no {count} principal components: use --start random.")
    mean = cells.mean(0)
    covariance = torch.cov((cells - mean).T.double())
    variance, vectors = torch.linalg.eigh(covariance)
    # The least are noise, or nothing where there are few cells, and must not be blown up.
    variance, vectors = variance.flip(0)[:count], vectors.flip(1)[:, :count]
    variance = variance.clamp(min=1e-4 * float(variance[0]))
    # The sign of an eigenvector is the library's whim: its largest entry is made positive.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    weight = (vectors * largest.sign() * variance ** (-power / 2)).T
    weight = weight / ((weight @ covariance) * weight).sum().sqrt()
    return weight.float(), (-(weight @ mean.double())).float()


def initialise_matching(
    model: ProductsTransformer,
    cells: Tensor,
    sides: tuple[int, int],
    power: float = 1.0,
    metric: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Make the matcher, before any training, score how well each cell of the query is found in the gallery image.

    Args:
        cells: float32 [n, map_channels], cells of training images' maps, n some thousands.
        sides: rows and columns of the maps.
        power: of the whitening, see `principal_components`.
        metric: weight [k, map_channels] and bias [k] of a linear map of cells, in whose space they are compared:
            that of the trained global descriptor. None: the maps as they are.

    The width is parted into orthogonal subspaces: what the position embeddings span (with the vector of ones, which
    layer norm takes away), a direction each for `ruler`, `side`, `reader` and four degrees of likeness, and the
    rest for the descriptors: principal components of the cells.

    - First layer, attention: half of the heads compare the first components, half the next; an opposite `side` counts
      for, so that a cell attends to its likeness in the other image and not to itself. Values and output: the
      projection to the descriptors. A cell and its match add up to a vector that is the longer the more alike they
      are, and the layer norm makes the share of `ruler` the smaller.
    - First layer, feed-forward: a unit for each degree of likeness writes to a direction of its own.
    - Second layer: CLS, known by `reader`, attends to the query's cells, known by `side`, and takes their degrees of
      likeness over. The classifier adds them up.
    - What else the layers would add is made small.
    """
    config = model.config
    width, head, heads = config.d_model, config.d_model // config.heads, config.heads
    if config.layers < 2:
        raise UserError("The matching start needs a model of at least two layers.")
    with torch.no_grad():
        free = _free_directions(width, sides)
        ruler, side, reader, degrees = free[0], free[1], free[2], free[3 : 3 + len(_DEGREES)]
        basis = free[3 + len(_DEGREES) :]
        basis = basis[: heads * (len(basis) // heads)]
        length = 1.5 * math.sqrt(float(sine_positions(*sides, width).square().sum(1).mean()))

        compared_cells = cells if metric is None else cells @ metric[0].T + metric[1]
        count = min(len(basis), heads * (compared_cells.shape[1] // heads))
        basis = basis[:count]
        weight, bias = principal_components(compared_cells, count, power)
        compared = min(head - 1, count // 2)
        share = _share(weight, compared_cells, compared)
        if metric is not None:
            weight, bias = weight @ metric[0], weight @ metric[1] + bias
        model.remap_local.weight.copy_((length * basis.T @ weight)[:, :, None, None])
        assert model.remap_local.bias is not None
        model.remap_local.bias.copy_(length * basis.T @ bias)

        matcher = model.matcher
        segments = matcher.seg_encoder.weight
        segments.mul_(0.1)
        segments[[SEGMENT_Q, SEGMENT_G]] += length * ruler
        segments[SEGMENT_Q] += length * side
        segments[SEGMENT_G] -= length * side
        segments[SEGMENT_CLS] += length * reader
        # So much of it that no degree of likeness is seen in these two.
        segments[[SEGMENT_CLS, SEGMENT_SEP]] += 2 * length * ruler
        for layer in matcher.layers:
            layer.linear2.weight.mul_(0.1)
            layer.self_attn.out_proj.weight.mul_(0.1)

        first, second = matcher.layers[0], matcher.layers[1]
        query, key, value = first.self_attn.in_proj_weight.chunk(3)
        first.self_attn.in_proj_weight.zero_()
        first.self_attn.out_proj.weight.zero_()
        per_head = count // heads
        # Scaled dot products of a like pair are to stand some 12 above those of others.
        sharpness = math.sqrt(12 * math.sqrt(head) / share) / length
        for number in range(heads):
            at = number * head
            start = 0 if number < heads // 2 else compared
            query[at : at + compared] = sharpness * basis[start : start + compared]
            key[at : at + compared] = query[at : at + compared]
            # A cell is more like itself than like any other; the two sides' difference outweighs that.
            query[at + head - 1] = 4.5 * head**0.25 / length * side
            key[at + head - 1] = -query[at + head - 1]
            carried = basis[number * per_head : (number + 1) * per_head]
            value[at : at + per_head] = carried
            first.self_attn.out_proj.weight[:, at : at + per_head] = carried.T
        steepness, strength = 15.0, 4.0
        for unit, (likeness, output) in enumerate(zip(_DEGREES, degrees, strict=True)):
            # Squared length: 2 + 2 * likeness of cell and match, 1 each of ruler and side, and the positions'.
            squared = 2 + 2 * likeness + 2 + 1 / 1.5**2
            first.linear1.weight[unit] = -steepness * ruler
            first.linear1.bias[unit] = steepness * math.sqrt(width / squared)
            first.linear2.weight[:, unit] = strength * output

        # By now the share of `reader` in CLS, and of `side` in a cell, is some sqrt(width) / 2: weights of e^1.6 and
        # e^-1.6. Sharper ones would prefer cells without a match, whose share of `side` is larger.
        query, key, value = second.self_attn.in_proj_weight.chunk(3)
        second.self_attn.in_proj_weight[: 2 * width].zero_()
        for number in range(heads):
            query[number * head] = head**0.25 * reader / math.sqrt(width) * 2.8
            key[number * head] = head**0.25 * side / math.sqrt(width) * 2.8
        value[: len(_DEGREES)] = degrees
        second.self_attn.out_proj.weight[:, : len(_DEGREES)] = degrees.T
        matcher.classifier.weight.copy_(degrees.sum(0, keepdim=True))


def _free_directions(width: int, sides: tuple[int, int]) -> Tensor:
    """Orthonormal rows, float32 [k, width], orthogonal to all positions and to the vector of ones."""
    taken = torch.cat([sine_positions(*sides, width), torch.ones(1, width)]).double()
    _, singular, rows = torch.linalg.svd(taken, full_matrices=True)
    rank = int((singular > _NEGLIGIBLE * singular[0]).sum())
    return rows[rank:].float()


def _share(weight: Tensor, cells: Tensor, compared: int) -> float:
    """Mean squared length of the first `compared` components, of 1 in all."""
    found = (cells - cells.mean(0)) @ weight[:compared].T
    return float(found.square().sum(1).mean())
