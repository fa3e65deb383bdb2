"""A start for the products variant from which little data suffices.

It already compares alike cells.

Not in the paper, which learns it from 59,551 photographs. The idea is that of `initialise_matching`
for landmarks, with two differences: a cell's descriptor is made by the 1x1 convolution, so that we
choose where it lies, and cells carry a position embedding, out of whose way it must be put.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rrt_core.products.model import (
    SEGMENT_CLS,
    SEGMENT_G,
    SEGMENT_Q,
    SEGMENT_SEP,
    ProductsTransformer,
    sine_positions,
)
from schemas.errors import UserError

_NEGLIGIBLE = 1e-3  # of the largest singular value of the positions
# of the ruler's share in the query's cells, a degree of likeness each
_QUANTILES = (0.5, 0.3, 0.15, 0.05)
_RANGE = 6.0  # what the first degree reaches at the last one's threshold


def principal_components(cells: Tensor, count: int, power: float) -> tuple[Tensor, Tensor]:
    """Whitening of cells float32 [n, C], as a linear map to components.

    Returns weight [count, C] and bias [count].

    power: 1 = all components of one variance, 0 = as they come. Scaled so that the mean squared
        length is 1.
    Raises UserError where there are fewer than `count` channels.
    """
    if cells.shape[1] < count:
        raise UserError(
            f"A map of {cells.shape[1]} channels has no {count} principal components: use --start "
            "random."
        )
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


def start_from_triplets(model: ProductsTransformer, maps: Tensor) -> None:
    """initialise_matching from float32 [3 * t, map_channels, h, w].

    Rows are anchor, positive, negative, anchor, ...
    """
    anchors = torch.arange(0, len(maps), 3)
    query, gallery = torch.cat([anchors, anchors]), torch.cat([anchors + 1, anchors + 2])
    same = torch.cat([torch.ones(len(anchors)), torch.zeros(len(anchors))])
    initialise_matching(model, maps, (query, gallery), same)


def initialise_matching(
    model: ProductsTransformer,
    maps: Tensor,
    pairs: tuple[Tensor, Tensor],
    same: Tensor,
    power: float = 1.0,
) -> None:
    """Make the matcher, before any training, score how well cells match the other image's.

    Args:
        maps: float32 [n, map_channels, h, w] of training images, n a hundred or so.
        pairs: rows of `maps` that the scores are calibrated with, int64 [p] each: query and
            gallery.
        same: float32 [p], 1 where a pair shows the same product; of both kinds there are some.
        power: of the whitening, see `principal_components`.

    Raises UserError for a model of one layer, or of too small a width or map.

    The width is parted into orthogonal subspaces: what the position embeddings span (with the
    vector of ones, which layer norm takes away), a direction each for `ruler`, `side`, `reader` and
    four degrees of likeness, and the rest for the descriptors: principal components of the cells.

    - First layer, attention: half of the heads compare the first components, half the next; an
      opposite `side` counts for, so that a cell attends to its likeness in the other image and not
      to itself. Values and output: the projection to the descriptors. A cell and its match add up
      to a vector that is the longer the more alike they are, and the layer norm makes the share of
      `ruler` the smaller.
    - First layer, feed-forward: a unit for each degree of likeness, of the query's cells only,
      writes to a direction of its own. The degrees are quantiles over the pairs.
    - Second layer: CLS attends to all tokens alike and takes their degrees of likeness over.
    - The classifier adds them up; its scale and bias are those of a logistic regression on the
      pairs.
    - What else the layers would add is made small.
    """
    config = model.config
    width, head, heads = config.d_model, config.d_model // config.heads, config.heads
    sides = (maps.shape[2], maps.shape[3])

    if config.layers < 2:
        raise UserError(
            "The matching start needs a model of at least two layers: use --start random."
        )

    matcher = model.matcher
    first, second = matcher.layers[0], matcher.layers[1]
    with torch.no_grad():
        free = _free_directions(width, sides)
        ruler, side, reader, degrees = free[0], free[1], free[2], free[3 : 3 + len(_QUANTILES)]
        basis = free[3 + len(_QUANTILES) :]
        per_head = len(basis) // heads
        basis = basis[: heads * per_head]
        if per_head < 1:
            raise UserError(
                f"The matching start needs a wider model than {width}: use --start random."
            )
        length = 1.5 * math.sqrt(float(sine_positions(*sides, width).square().sum(1).mean()))

        cells = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        weight, bias = principal_components(cells, len(basis), power)
        compared = min(head - 1, len(basis) // 2)
        share = float(((cells - cells.mean(0)) @ weight[:compared].T).square().sum(1).mean())
        model.remap_local.weight.copy_((length * basis.T @ weight)[:, :, None, None])
        assert model.remap_local.bias is not None
        model.remap_local.bias.copy_(length * basis.T @ bias)

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

        query, key, value = first.self_attn.in_proj_weight.chunk(3)
        first.self_attn.in_proj_weight.zero_()
        first.self_attn.out_proj.weight.zero_()
        # Scaled dot products of a like pair are to stand some 12 above those of others.
        sharpness = math.sqrt(12 * math.sqrt(head) / share) / length
        for number in range(heads):
            at = number * head
            start = 0 if number < heads // 2 else compared
            query[at : at + compared] = sharpness * basis[start : start + compared]
            key[at : at + compared] = query[at : at + compared]
            # A cell is more like itself than like any other; the two sides' difference outweighs
            # that.
            query[at + head - 1] = 4.5 * head**0.25 / length * side
            key[at + head - 1] = -query[at + head - 1]
            carried = basis[number * per_head : (number + 1) * per_head]
            value[at : at + per_head] = carried
            first.self_attn.out_proj.weight[:, at : at + per_head] = carried.T

        local = model.describe_local(maps)
        tokens = matcher.embed(local[pairs[0]], local[pairs[1]])
        cells_of_q = first.norm1(tokens + first.self_attn(tokens, None))[
            :, 1 : 1 + sides[0] * sides[1]
        ]
        rulers = torch.quantile(
            (cells_of_q @ ruler).flatten()[:1_000_000], torch.tensor(_QUANTILES)
        )
        steepness = _RANGE / float(rulers[0] - rulers[-1])
        for unit, (at_ruler, output) in enumerate(zip(rulers, degrees, strict=True)):
            # `side` equals `ruler` in the query's cells and is its opposite in those of the
            # gallery.
            first.linear1.weight[unit] = steepness * (side - 2 * ruler)
            first.linear1.bias[unit] = steepness * at_ruler
            first.linear2.weight[:, unit] = output

        query, key, value = second.self_attn.in_proj_weight.chunk(3)
        query.mul_(0.1)
        key.mul_(0.1)
        value[: len(degrees)] = 4 * degrees
        second.self_attn.out_proj.weight[:, : len(degrees)] = degrees.T
        matcher.classifier.weight.copy_(degrees.sum(0, keepdim=True))
        matcher.classifier.bias.zero_()
        count = len(same)
        scores = torch.cat(
            [
                matcher(local[pairs[0][at : at + 50]], local[pairs[1][at : at + 50]])
                for at in range(0, count, 50)
            ]
        )
        scale, offset = logistic_regression(scores, same)
        matcher.classifier.weight.mul_(scale)
        matcher.classifier.bias.fill_(offset)


def logistic_regression(
    scores: Tensor, same: Tensor, ridge: float = 1e-2, rounds: int = 50
) -> tuple[float, float]:
    """Scale and offset that make `scores` logits of `same`, float [p] both, by Newton's method.

    ridge: penalty on the scale of standardised scores, a share of p; it keeps it finite where the
        scores separate all pairs.
    """
    spread = float(scores.double().std().clamp(min=1e-12))
    x = torch.stack([scores.double() / spread, torch.ones_like(scores, dtype=torch.float64)], dim=1)
    penalty = torch.tensor([ridge * len(scores), 1e-9], dtype=torch.float64)
    beta = torch.zeros(2, dtype=torch.float64)
    for _ in range(rounds):
        p = torch.sigmoid(x @ beta)
        gradient = x.T @ (same.double() - p) - penalty * beta
        curvature = (x * (p * (1 - p))[:, None]).T @ x + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)
        beta = beta + step
        if float(step.abs().max()) < 1e-10:
            break
    return float(beta[0]) / spread, float(beta[1])


def _free_directions(width: int, sides: tuple[int, int]) -> Tensor:
    """Orthonormal rows, float32 [k, width], orthogonal to all positions and to the ones."""
    taken = torch.cat([sine_positions(*sides, width), torch.ones(1, width)]).double()
    _, singular, rows = torch.linalg.svd(taken, full_matrices=True)
    rank = int((singular > _NEGLIGIBLE * singular[0]).sum())
    return rows[rank:].float()
