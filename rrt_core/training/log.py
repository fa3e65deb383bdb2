"""The log of a training run: log.csv, its plot, and TensorBoard's scalars where that is installed.

log.csv is in long form, a line a value (step, name, value): evaluation is rarer than the rest, so
columns would have holes.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rrt_core.training.state import write_whole

LOG_NAME = "log.csv"
PLOT_NAME = "plot.png"
HEAD = ("step", "name", "value")


def append(path: Path, row: Mapping[str, float]) -> None:
    """Add a step's values, durable before the checkpoint that holds the step."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(HEAD)
        for name, value in row.items():
            if name != "step":
                writer.writerow([int(row["step"]), name, f"{value:.6g}"])
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) in the order of the file.

    A last line that a kill cut short is left out.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in _lines(path):
        series.setdefault(name, []).append((int(step), float(value)))
    return series


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`.

    A run that continues from its checkpoint writes them again.
    """
    if not path.exists():
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(HEAD)
    writer.writerows(line for line in _lines(path) if int(line[0]) <= step)
    write_whole(path, text.getvalue().encode())


def _lines(path: Path) -> list[tuple[str, str, str]]:
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # behind it, what a kill cut short
    return [
        (row[0], row[1], row[2])
        for row in csv.reader(io.StringIO(whole))
        if len(row) == 3 and row[0].isdigit()
    ]


def plot(path: Path, series: Mapping[str, list[tuple[int, float]]], chosen: int = 0) -> None:
    """Loss and held-out figures over steps, as PNG. `chosen`: the step to mark, 0 for none."""
    from matplotlib.figure import Figure

    panels = [
        ("loss", {"loss": "training", "val_loss": "held out"}),
        (
            "held-out identities",
            {"val_map": "mAP reranked", "val_map_global": "mAP global", "val_auc": "AUC of pairs"},
        ),
        ("accuracy of training pairs", {"accuracy": "accuracy"}),
    ]
    shown = [(title, names) for title, names in panels if any(name in series for name in names)]
    figure = Figure(figsize=(5 * max(1, len(shown)), 3.6), layout="constrained")

    for number, (title, names) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        for name, label in names.items():
            if name in series:
                steps, values = zip(*series[name], strict=True)
                axes.plot(steps, values, marker="." if len(steps) < 50 else "", label=label)
        if chosen:
            axes.axvline(chosen, color="grey", linestyle=":", label=f"chosen: step {chosen:,}")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_whole(path, buffer.getvalue())


class Scalars:
    """TensorBoard's event files in a folder; does nothing where the package is not installed."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Open the writer where TensorBoard is installed.

        first_step: the step that the run continues from; TensorBoard hides what was written of
        later ones.
        """
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, row: Mapping[str, float]) -> None:
        """A row of the log."""
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    group = "held_out" if name.startswith("val_") else "training"
                    self._writer.add_scalar(
                        f"{group}/{name.removeprefix('val_')}", value, int(row["step"])
                    )

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
