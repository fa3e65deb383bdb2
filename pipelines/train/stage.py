"""train: stores + labels -> weights of the Reranking Transformer (docs/training.md).

One process, or those that torchrun starts; no Beam, since a step needs the step before. What is
done is in training.py: the command line starts without torch.
"""

from __future__ import annotations

from typing import Any

from pipelines.train.options import Options, Settings, complete
from schemas.errors import UserError

__all__ = ["Options", "Settings", "complete", "run", "summarise"]


def run(options: Options, settings: Settings) -> Any:
    """Train (or go on, or skip); gives the manifest, or None for a dry run and in all processes but
    the first.

    Raises UserError.
    """
    for name in ("stores", "labels", "out"):
        if not getattr(options, name):
            raise UserError(f"train: --{name} is missing")
    from pipelines.train import training

    return training.run(options, settings)


def summarise(options: Options, manifest: Any) -> None:
    """Print where the weights are and how good."""
    if manifest is None:
        return
    facts = manifest.facts
    print(f"\nWeights of the last step, {facts['steps']:,}: {options.out}/weights.safetensors")
    if facts["selected"]:
        best = facts["selected"]
        print(
            f"Weights of the best step, {best['step']:,}: {options.out}/best.safetensors\n"
            f"  held-out mAP {best['val_map']:.4f} (global {best['val_map_global']:.4f}), AUC "
            f"{best['val_auc']:.4f}; "
            f"{facts['selected_by']}"
        )
    name = "best" if facts["selected"] else "weights"
    print(f"Use them: rerank --weights {options.out}/{name}.safetensors ...")
