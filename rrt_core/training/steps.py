"""The steps of a training run, whatever is trained: checkpoints, log, evaluation, the best step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rrt_core.training import log as training_log
from rrt_core.training.log import LOG_NAME
from rrt_core.training.processes import Processes
from rrt_core.training.state import STATE_NAME, Progressed, load_state, save_state
from schemas.errors import UserError

Figures = dict[str, float]


@dataclass(frozen=True)
class Run:
    """Where a run is kept, and how often what is done.

    folder: of `state.pt`, from which a rerun continues, and `log.csv` (step, name, value).
    identity: names data and options; a checkpoint of another is refused.
    """

    folder: Path
    steps: int
    checkpoint_every: int
    evaluate_every: int
    identity: str = ""
    processes: Processes = field(default_factory=Processes)

    @property
    def state(self) -> Path:
        """The file of the checkpoint."""
        return self.folder / STATE_NAME


def resume(
    run: Run,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> Progressed:
    """Fill module and optimiser from the run's checkpoint, where there is one.

    Raises UserError for a checkpoint that is damaged or of another run.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    progressed = Progressed()
    if run.state.exists():
        progressed = load_state(run.state, module, optimiser, scaler, run.identity)

    run.processes.wait()  # none writes before all have read
    if run.processes.first:
        training_log.truncate(run.folder / LOG_NAME, progressed.step)
    return progressed


def go_on(
    run: Run,
    progressed: Progressed,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    take_step: Callable[[int], Tensor],
    evaluate: Callable[[], Figures],
    *,
    scaler: torch.amp.GradScaler | None = None,
    report: Callable[[Figures], None] = lambda row: None,
    tick: Callable[[int], None] = lambda done: None,
    select: str = "",
    keep_best: Callable[[int, Figures], None] = lambda step, figures: None,
    without: str = "",
) -> Progressed:
    """Take the steps that are left.

    Args:
        take_step: does a step, by its number from 0; float64 [3]: loss and hits summed, and over
            how many.
        evaluate: figures of the held-out split, every `evaluate_every` steps and at the end.
        report: called by the first process with each row of the log.
        tick: called after each step, by every process.
        select: the figure by which the best step is chosen (higher is better; of equal ones the
            first); "": none is chosen.
        keep_best: called by the first process whenever a step is better than all before; after a
            kill perhaps twice with the same.
        without: a value that is not logged.

    Returns how far it came. Raises UserError where the loss is no number any more.
    """
    sums: Tensor | None = None  # since the last row
    begun = time.monotonic() - progressed.seconds
    for step in range(progressed.step, run.steps):
        module.train()
        taken = take_step(step)
        sums = taken if sums is None else sums + taken
        done = step + 1
        tick(done)

        evaluating = done % run.evaluate_every == 0 or done == run.steps
        if not evaluating and done % run.checkpoint_every:
            continue

        loss, hits, count = run.processes.sum(sums.cpu().numpy()).tolist()
        sums = None
        if not math.isfinite(loss):
            raise UserError(
                f"Training: the loss is no number any more at step {done}; lower the learning "
                f"rate, or use float32. The checkpoint before it is in {run.folder}."
            )

        progressed.step, progressed.seconds = done, time.monotonic() - begun
        row = {"step": float(done), "seconds": progressed.seconds}
        row |= {"lr": optimiser.param_groups[-1]["lr"], "loss": loss / count}
        row |= {"accuracy": hits / count}
        row.pop(without, None)
        if evaluating:
            module.eval()
            progressed.figures = evaluate()
            row |= progressed.figures
            if select and progressed.figures[select] > progressed.best.get(select, -math.inf):
                progressed.best_step, progressed.best = done, progressed.figures
                if run.processes.first:
                    keep_best(done, progressed.figures)

        if run.processes.first:
            training_log.append(run.folder / LOG_NAME, row)
            save_state(run.state, module, optimiser, scaler, progressed, run.identity)
            report(row)

    run.processes.wait()
    module.eval()
    return progressed
