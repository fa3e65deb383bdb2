"""Does our model compute what the paper's repository computes?

    python benchmarks/parity/rrt_parity.py --reference DIR

DIR is a checkout of uvavision/RerankingTransformer. The models of its two variants are given the
same random weights and the same random input as ours: MatchERT of RRT_GLD beside
RerankingTransformer and PairScorer, MatchERT of RRT_SOP beside MapMatcher. The largest difference
of logits is printed for each shape of input. Ends with code 1 if one exceeds 1e-5.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.products.model import MapMatcher, ProductsConfig
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from rrt_core.transformer.scorer import PairScorer, TokenSet

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
    return (
        torch.from_numpy(np.stack([image.global_descriptor for image in images])),
        local,
        mask,
        scales,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reference", required=True, help="checkout of uvavision/RerankingTransformer"
    )
    parser.add_argument("--pairs", type=int, default=4, help="pairs a case")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    differences = {
        "landmarks": landmarks(Path(args.reference), args.pairs, args.seed),
        "products": products(Path(args.reference), args.pairs, args.seed),
    }
    worst = max(max(cases.values()) for cases in differences.values())

    print(
        f"largest difference {worst:.2e}, allowed {TOLERANCE:.0e}: "
        f"{'equal' if worst <= TOLERANCE else 'NOT EQUAL'}"
    )
    print_figures(
        {
            "largest_difference": worst,
            "allowed_difference": TOLERANCE,
            "equal": worst <= TOLERANCE,
            "difference_by_case": differences,
        }
    )
    return int(worst > TOLERANCE)


def reference_model(folder: Path, seed: int, *shape: object) -> torch.nn.Module:
    """The repository's MatchERT below `folder`, random in all its weights."""
    # The package's __init__ wants sacred; the file of the model alone does not.
    for name in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        del sys.modules[name]
    package = types.ModuleType("models")
    package.__path__ = [str(folder / "models")]
    sys.modules["models"] = package
    matcher = importlib.import_module("models.matcher")
    torch.manual_seed(seed)
    model: torch.nn.Module = matcher.MatchERT(*shape).eval()
    for parameter in model.parameters():  # biases and norms too, or half of the model goes untested
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.2)
    return model


def landmarks(reference_folder: Path, pair_count: int, seed: int) -> dict[str, float]:
    """Print the landmark cases: the largest difference of logits of each."""
    rng = np.random.default_rng(seed)
    reference = reference_model(
        reference_folder / "RRT_GLD", seed, 2048, 128, 1004, 256, 4, 6, 1024, 0.0, "relu", False
    )
    ours = RerankingTransformer(ModelConfig()).eval()
    ours.load_state_dict(reference.state_dict())
    print(
        f"landmarks: {count(reference):,} parameters, ours {count(ours):,}; state dict loaded "
        f"with strict keys"
    )
    cases = {
        "full 500+500": [(SLOTS, SLOTS)] * pair_count,
        "ragged": [tuple(int(n) for n in rng.integers(0, SLOTS + 1, 2)) for _ in range(pair_count)],
        "one token": [(1, 1), (1, SLOTS), (SLOTS, 1)],
        "no locals": [(0, 0), (0, SLOTS), (SLOTS, 0)],
    }
    largest: dict[str, float] = {}
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
        largest[name] = max(differences)
        spread = f"{expected.min():.4f}..{expected.max():.4f}"
        print(f"{name:>14}  {spread:>20}  {differences[0]:18.2e}  {differences[1]:18.2e}")
    return largest


def products(reference_folder: Path, pair_count: int, seed: int) -> dict[str, float]:
    """Print the products cases: the largest difference of logits of each.

    That code knows no masks: a map is always whole.
    """
    rng = np.random.default_rng(seed)
    reference = reference_model(
        reference_folder / "RRT_SOP", seed, 128, 128, 4, 6, 1024, 0.0, "relu", False
    )
    ours = MapMatcher(ProductsConfig()).eval()
    ours.load_state_dict(reference.state_dict())
    print(
        f"products: {count(reference):,} parameters, ours {count(ours):,}; state dict loaded with "
        f"strict keys"
    )
    cases = {"7 x 7": (7, 7), "10 x 10": (10, 10), "5 x 9": (5, 9), "one cell": (1, 1)}
    largest: dict[str, float] = {}
    print(f"{'map':>14}  {'logits':>20}  {'ours - reference':>18}")
    for name, (height, width) in cases.items():
        query, gallery = (
            torch.from_numpy(
                rng.standard_normal((pair_count, 128, height, width), dtype=np.float32)
            )
            for _ in range(2)
        )
        with torch.no_grad():
            expected = reference(None, query, None, gallery)
            largest[name] = difference = float((ours(query, gallery) - expected).abs().max())
        spread = f"{float(expected.min()):.4f}..{float(expected.max()):.4f}"
        print(f"{name:>14}  {spread:>20}  {difference:18.2e}")
    return largest


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    sys.exit(main())
