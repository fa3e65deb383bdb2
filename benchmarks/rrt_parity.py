"""Does our model compute what the paper's repository computes?

    python benchmarks/rrt_parity.py --reference DIR

DIR is a checkout of uvavision/RerankingTransformer. Its MatchERT and our RerankingTransformer and
PairScorer are given the same random weights and the same random descriptors; the largest difference
of logits is printed for each shape of input. Ends with code 1 if one exceeds 1e-5.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from rrt_core.scorer import PairScorer, TokenSet
from rrt_core.transformer import ModelConfig, RerankingTransformer

TOLERANCE = 1e-5
SLOTS = 500


def random_image(rng: np.random.Generator, tokens: int, global_dim: int) -> TokenSet:
    def unit(*shape: int) -> np.ndarray:
        x = rng.standard_normal(shape, dtype=np.float32)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return TokenSet(unit(global_dim), unit(tokens, 128), rng.integers(0, 7, tokens))


def padded(images: list[TokenSet]) -> tuple[torch.Tensor, ...]:
    """Global, local, mask (True = padding), scale rows, as the repository's loader pads them."""
    local = torch.zeros(len(images), SLOTS, 128)
    mask = torch.ones(len(images), SLOTS, dtype=torch.bool)
    scales = torch.zeros(len(images), SLOTS, dtype=torch.long)
    for i, image in enumerate(images):
        count = len(image.local)
        local[i, :count] = torch.from_numpy(image.local)
        mask[i, :count] = False
        scales[i, :count] = torch.from_numpy(image.scale_rows)
    return torch.from_numpy(np.stack([image.global_descriptor for image in images])), local, mask, scales


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="checkout of uvavision/RerankingTransformer")
    parser.add_argument("--pairs", type=int, default=4, help="pairs a case")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(args.reference) / "RRT_GLD"))
    # The package's __init__ wants sacred; the file of the model alone does not.
    import importlib
    import types

    package = types.ModuleType("models")
    package.__path__ = [str(Path(args.reference) / "RRT_GLD" / "models")]
    sys.modules["models"] = package
    matcher = importlib.import_module("models.matcher")

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    reference = matcher.MatchERT(2048, 128, 1004, 256, 4, 6, 1024, 0.0, "relu", False).eval()
    for parameter in reference.parameters():  # biases and norms too, or half of the model goes untested
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.2)
    ours = RerankingTransformer(ModelConfig()).eval()
    ours.load_state_dict(reference.state_dict())
    print(f"parameters: reference {count(reference):,}, ours {count(ours):,}; state dict loaded with strict keys")

    cases = {
        "full 500+500": [(SLOTS, SLOTS)] * args.pairs,
        "ragged": [tuple(int(n) for n in rng.integers(0, SLOTS + 1, 2)) for _ in range(args.pairs)],
        "one token": [(1, 1), (1, SLOTS), (SLOTS, 1)],
        "no locals": [(0, 0), (0, SLOTS), (SLOTS, 0)],
    }
    worst = 0.0
    print(f"{'case':>14}  {'logits':>20}  {'plain - reference':>18}  {'scorer - reference':>18}")
    for name, sizes in cases.items():
        pairs = [(random_image(rng, n, 2048), random_image(rng, m, 2048)) for n, m in sizes]
        query, gallery = padded([q for q, _ in pairs]), padded([g for _, g in pairs])
        positions = F.pad(torch.zeros(len(pairs), SLOTS, 1), (0, 1))
        with torch.no_grad():
            expected = reference(*query, positions, *gallery, positions).numpy()
            plain = ours(*query, *gallery).numpy()
        scored = PairScorer(ours).score(pairs)
        differences = [float(np.abs(x - expected).max()) for x in (plain, scored)]
        worst = max(worst, *differences)
        spread = f"{expected.min():.4f}..{expected.max():.4f}"
        print(f"{name:>14}  {spread:>20}  {differences[0]:18.2e}  {differences[1]:18.2e}")
    print(f"largest difference {worst:.2e}, allowed {TOLERANCE:.0e}: {'equal' if worst <= TOLERANCE else 'NOT EQUAL'}")
    return int(worst > TOLERANCE)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    sys.exit(main())
