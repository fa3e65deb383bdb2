"""What a training leaves behind and says: its folder, lines, plot, weights, the manifest."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.engines import signals as stopping
from pipelines.engines.progress import Progress
from pipelines.jobs.existing_output import made_before, readable_manifest, say_made
from pipelines.jobs.manifests import write_manifest
from pipelines.jobs.plan import write_plan
from pipelines.jobs.replacing import at, begin_beside, finish_swap, place_for, swap_in
from pipelines.storage.local import sha256_file
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from rrt_core.checkpoints import save_checkpoint
from rrt_core.processor import slow_bfloat16
from rrt_core.products.model import ProductsTransformer
from rrt_core.training.log import LOG_NAME, PLOT_NAME, Scalars, plot, read
from rrt_core.training.processes import Processes
from rrt_core.training.state import STATE_NAME, write_whole
from rrt_core.transformer.model import RerankingTransformer
from schemas.errors import UserError
from schemas.manifest import FileEntry, Manifest, Marker
from schemas.plan import Job

WEIGHTS, BEST = "weights.safetensors", "best.safetensors"
CACHE = "cache"  # folder of what took long, removed at the end
TENSORBOARD = "tensorboard"

# All that a training writes, besides its plan and manifest.
OWN = (WEIGHTS, BEST, LOG_NAME, PLOT_NAME, STATE_NAME, f"{CACHE}/", f"{TENSORBOARD}/")


# ------------------------------------------------------------------------------------- the folder


@dataclass(frozen=True)
class Output:
    """Where a training writes, while it holds the output's folder.

    made: its manifest, where nothing is left to do.
    """

    job: Job
    place: Place
    new: Place  # the place itself, or a folder beside the old output there
    made: Manifest | None

    @property
    def folder(self) -> Path:
        """The folder to write into."""
        return Path(self.new.root)

    def begin(self) -> None:
        """Write the plan: from here on the folder is of this job."""
        if self.new.url != self.place.url:
            begin_beside(self.new, self.job)
        write_plan(self.new, at(self.job, self.new), {})

    def withdraw(self) -> None:
        """Take back what `begin` wrote, where the inputs turn out to be of no use: a next try,
        with other options, finds no other job's folder.
        """
        if (self.folder / STATE_NAME).exists():
            return
        self.new.remove_folder("plan")
        shutil.rmtree(self.folder / CACHE, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder that holds other things stays
            self.folder.rmdir()

    def finish(self, job: Job, names: list[str], marker: Marker, seconds: float) -> Manifest:
        """Write the manifest of the named files, last, and put the output into its place.

        marker: but for its files. seconds: since the start.
        """
        files = tuple(
            FileEntry(name, 1, os.path.getsize(path), sha256_file(path))
            for name, path in ((name, self.new.path(name)) for name in names)
        )
        manifest = write_manifest(self.new, job, [replace(marker, files=files)], seconds)
        shutil.rmtree(self.folder / CACHE, ignore_errors=True)
        return manifest

    def swap_in(self) -> None:
        """Put what was made beside an old output in its place."""
        if self.new.url != self.place.url:
            swap_in(self.place, self.job, OWN)


@contextlib.contextmanager
def open_output(job: Job, processes: Processes, overwrite: bool) -> Iterator[Output]:
    """Hold the job's folder; all processes get the same. Nothing is written before `begin`.

    Raises UserError where it is no local folder, or holds another recipe's output.
    """
    place = open_place(job.output)
    if not place.local:
        raise UserError(
            f"{job.stage}: --out is {job.output}; it must be a local folder, for its checkpoints"
        )
    with contextlib.ExitStack() as stack:
        if processes.first:
            stack.enter_context(place.alone())
            finish_swap(place)
        processes.wait()
        new = place_for(place, overwrite, (entry["url"] for entry in job.inputs.values()))
        output = Output(job, place, new, _made(job, place, new))
        processes.wait()  # all have looked before the first one writes
        if output.made is not None and processes.first:
            output.swap_in()
            say_made(f"{job.stage:<9}", place, output.made)
        stopping.during(
            lambda: f"{_checkpoint(output.folder)}; the same command goes on from there"
        )
        try:
            yield output
        finally:
            stopping.during(None)


def _made(job: Job, place: Place, new: Place) -> Manifest | None:
    if new.url == place.url:
        return made_before(place, job)
    whole = readable_manifest(new)  # all but the swap may be done
    return made_before(new, job) if whole and whole.recipe_hash == job.recipe_hash else None


def _checkpoint(folder: Path) -> str:
    if (folder / STATE_NAME).exists():
        return f"the last checkpoint is in {folder}"
    return f"there is no checkpoint yet in {folder}"


def say_slow(stage: str, precision: str, device: torch.device) -> None:
    """Say where float32 would be the faster precision of a training."""
    slow = slow_bfloat16(precision, device)
    if slow:
        print(f"{stage:<9}  NOTE: {slow} (--precision float32)", file=sys.stderr)


def save_weights(
    path: Path,
    model: RerankingTransformer | ProductsTransformer,
    notes: Mapping[str, Any],
    backbone: Mapping[str, Tensor] | None = None,
) -> None:
    """A file of weights, whole or not at all."""
    beside = path.with_suffix(".part")
    save_checkpoint(str(beside), model, notes, backbone)
    write_whole(path, beside.read_bytes())
    beside.unlink()


# ------------------------------------------------------------------------------------- what is said


class Speaker:
    """What the first process says, draws and hands to TensorBoard while it trains."""

    def __init__(
        self,
        title: str,
        folder: Path,
        steps: int,
        text_of: Callable[[dict[str, float]], str],
        plotted: str = "",
    ) -> None:
        """Args:
        text_of: what is said of a row of the log; "" nothing.
        plotted: the figure whose rows draw the plot anew; "": there is no plot.
        """
        self.title, self.folder, self.steps = title, folder, steps
        self.text_of, self.plotted = text_of, plotted
        self.progress: Progress | None = None
        self.scalars: Scalars | None = None

    def tick(self, done: int) -> None:
        """A step is done."""
        if self.progress is None:
            if done > 1:
                print(f"{self.title}  goes on from step {done - 1:,}", file=sys.stderr)
            self.progress = Progress(self.title, self.steps, "steps", done - 1)
            self.scalars = Scalars(self.folder / TENSORBOARD, done - 1)
        self.progress.show(done)

    def report(self, row: dict[str, float]) -> None:
        """A row of the log."""
        assert self.progress is not None and self.scalars is not None
        self.scalars.add(row)
        if self.plotted in row:
            plot(self.folder / PLOT_NAME, read(self.folder / LOG_NAME))
        text = self.text_of(row)
        if text:
            self.progress.clear()
            print(f"{self.title}  {text}", file=sys.stderr)

    def close(self) -> None:
        """The last line."""
        if self.progress is not None:
            self.progress.clear()
        if self.scalars is not None:
            self.scalars.close()
