"""Where the training of the Reranking Transformer starts: weights that already compare.

`RerankingTransformer(config)` is Xavier's random start, as the paper's. The two here are for little
data or little time: with a random start a model must first learn that likeness between the images
is what counts.
"""

from __future__ import annotations

import math

import torch

from rrt_core.transformer.model import SEGMENT_LOCAL_G, SEGMENT_LOCAL_Q, RerankingTransformer
from schemas.errors import UserError

MATCHING_SHARPNESS = 25.0
IDENTITY_SHARPNESS = 25.0
# degrees of likeness that the first layer of `initialise_matching` distinguishes
THRESHOLDS = (0.35, 0.45, 0.55, 0.65)


def initialise_matching(model: RerankingTransformer, sharpness: float = MATCHING_SHARPNESS) -> None:
    """Start from a model whose first layer already compares each local with its best match.

    The match is the most similar local of the other image.

    Not in the paper, which has a million photographs to learn it from. It is for locals in
    principal components, the widest first, whose last few dimensions are empty, as those of the
    extractor `efficientnet` (112 of 128 are used). Two of the empty dimensions are given a meaning:
    `side` distinguishes the two images' locals (+1, -1), `ruler` is 1 for every local.

    - Attention: half of the heads compare the first components, half the next ones; an opposite
      `side` counts for, so that a local attends to its likeness in the other image and not to
      itself.
    - Values and output: the identity without the ruler. A local and its match then add up to a
      vector that is the longer the more alike they are (in all dimensions), and the layer norm
      makes the ruler's share the smaller.
    - Feed-forward: a unit for each of four degrees of likeness writes to an empty dimension of its
      own.

    All else is random, embeddings and outputs of the feed-forward smaller than Xavier's, so as not
    to drown the above.

    Raises:
        UserError: a model too small for it (two heads, six dimensions a head, four units in the
            feed-forward).
    """
    config = model.config
    width, head = config.d_model, config.d_model // config.heads
    if config.heads < 2 or head < 6 or config.feedforward < len(THRESHOLDS):
        raise UserError(
            "The initialisation 'matching' needs at least 2 heads of 6 dimensions and a "
            f"feed-forward of {len(THRESHOLDS)}, not {config.heads} of {head} and "
            f"{config.feedforward}; choose 'identity' or 'random'."
        )

    ruler, side, outputs = width - 1, width - 2, range(width - 3, width - 3 - len(THRESHOLDS), -1)
    steepness, strength, side_share = 15.0, 4.0, 0.4
    with torch.no_grad():
        model.scale_encoder.weight.mul_(0.1)
        model.seg_encoder.weight.mul_(0.1)
        model.seg_encoder.weight[[SEGMENT_LOCAL_Q, SEGMENT_LOCAL_G], ruler] += 1
        model.seg_encoder.weight[SEGMENT_LOCAL_Q, side] += 1
        model.seg_encoder.weight[SEGMENT_LOCAL_G, side] -= 1
        for layer in model.layers:
            layer.linear2.weight.mul_(0.3)
        first = model.layers[0]
        query, key, value = first.self_attn.in_proj_weight.chunk(3)
        query.zero_()
        key.zero_()
        for number in range(config.heads):
            component = 0 if number < config.heads // 2 else head
            for place in range(head - 1):
                query[number * head + place, component + place] = sharpness
                key[number * head + place, component + place] = sharpness
            last = (number + 1) * head - 1
            query[last, side] = side_share * sharpness
            key[last, side] = -side_share * sharpness
        value.copy_(torch.eye(width))
        value[ruler] = 0
        first.self_attn.out_proj.weight.copy_(torch.eye(width))
        for unit, (likeness, output) in enumerate(zip(THRESHOLDS, outputs, strict=True)):
            # Squared length of local + match: 2 + 2 * likeness, and 1 along the ruler.
            first.linear1.weight[unit] = 0
            first.linear1.weight[unit, ruler] = -steepness
            first.linear1.bias[unit] = steepness * math.sqrt(width / (3 + 2 * likeness))
            first.linear2.weight[:, unit] = 0
            first.linear2.weight[output, unit] = strength


def initialise_identity(
    model: RerankingTransformer, sharpness: float = IDENTITY_SHARPNESS, layers: int = 2
) -> None:
    """Start from a model whose first layers attend by likeness.

    Queries and keys are multiples of the identity.

    Not in the paper. For locals of any kind, centred ones the better. The multiples are such that a
    token and its equal have the attention logit `sharpness` in every head: locals come in with
    length 1, and later layers see the layer norm's length, sqrt(d_model). All else stays random.
    """
    config = model.config
    head = config.d_model // config.heads
    with torch.no_grad():
        for number, layer in enumerate(model.layers[:layers]):
            square = 1.0 if number == 0 else float(config.d_model)
            # Each head sees its share of the dimensions, 1 / heads of the square, and divides by
            # sqrt(head).
            multiple = math.sqrt(sharpness * math.sqrt(head) * config.heads / square)
            query, key, _ = layer.self_attn.in_proj_weight.chunk(3)
            query.copy_(multiple * torch.eye(config.d_model))
            key.copy_(multiple * torch.eye(config.d_model))
