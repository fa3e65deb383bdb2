"""What `train` leaves behind and says: lines, plot, weights with their notes, the manifest."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from pipelines.engines.progress import Progress
from pipelines.jobs.manifests import write_manifest
from pipelines.storage.local import sha256_file
from pipelines.storage.protocol import Place
from pipelines.train.options import STAGE
from pipelines.train.validation import SELECT
from rrt_core.checkpoints import save_checkpoint
from rrt_core.training.log import LOG_NAME, PLOT_NAME, Scalars, plot, read
from rrt_core.training.state import Progressed, write_whole
from rrt_core.transformer.model import RerankingTransformer
from schemas.manifest import Counts, FileEntry, Manifest, Marker
from schemas.plan import Job

TITLE = f"{STAGE:<9}"
WEIGHTS, BEST = "weights.safetensors", "best.safetensors"


class Speaker:
    """What the first process says, draws and hands to TensorBoard while it trains."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.progress: Progress | None = None
        self.scalars: Scalars | None = None

    def tick(self, done: int) -> None:
        """A step is done."""
        if self.progress is None:
            if done > 1:
                print(f"{TITLE}  goes on from step {done - 1:,}", file=sys.stderr)
            self.progress = Progress(TITLE, self.steps, "steps", done - 1)
            self.scalars = Scalars(self.folder / "tensorboard", done - 1)
        self.progress.show(done)

    def report(self, row: dict[str, float]) -> None:
        """A row of the log."""
        assert self.progress is not None and self.scalars is not None
        self.scalars.add(row)
        if SELECT in row or int(row["step"]) == self.steps:
            text = f"loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}"
            if SELECT in row:
                text += (
                    f"; held out: loss {row['val_loss']:.4f}, AUC {row['val_auc']:.4f}, mAP "
                    f"{row[SELECT]:.4f}"
                    f" (global {row['val_map_global']:.4f})"
                )
                plot(self.folder / PLOT_NAME, read(self.folder / LOG_NAME))
            self.progress.clear()
            print(f"{TITLE}  step {int(row['step']):,}: {text}", file=sys.stderr)

    def close(self) -> None:
        """The last line."""
        if self.progress is not None:
            self.progress.clear()
        if self.scalars is not None:
            self.scalars.close()


def save_weights(path: Path, model: RerankingTransformer, notes: dict[str, Any]) -> None:
    """A file of weights, whole or not at all."""
    beside = path.with_suffix(".part")
    save_checkpoint(str(beside), model, notes)
    write_whole(path, beside.read_bytes())
    beside.unlink()


def finish(
    place: Place, job: Job, notes: dict[str, Any], progressed: Progressed, seconds: float
) -> Manifest:
    """Draw the plot, remove what was kept for a rerun, and write the manifest, last."""
    folder = Path(place.root)
    plot(folder / PLOT_NAME, read(folder / LOG_NAME), progressed.best_step)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    names = [WEIGHTS, *([BEST] if progressed.best_step else [])]
    files = tuple(
        FileEntry(name, 1, os.path.getsize(place.path(name)), sha256_file(place.path(name)))
        for name in names
    )
    selected = {"step": progressed.best_step, **progressed.best} if progressed.best_step else None
    summary = {"figures": progressed.figures, "selected": selected}
    count = Counts(progressed.step, progressed.step)
    marker = Marker("weights", job.recipe_hash, "", files, count, summary, progressed.seconds)
    facts = {"kind": "weights", "steps": progressed.step, "data": notes["data"], **summary}
    facts["selected_by"] = notes["selected_by"]
    return write_manifest(place, Job(**{**vars(job), "facts": facts}), [marker], seconds)
