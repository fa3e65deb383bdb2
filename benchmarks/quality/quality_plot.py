"""mAP against descriptors used, one curve a method: the plot of the quality benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Curve:
    """points: (descriptors a side, mAP in [0, 1])."""

    title: str
    points: Sequence[tuple[int, float]]


MARKERS = "os^Dvp*"


def draw(
    path: Path, title: str, panels: Sequence[tuple[str, Sequence[Curve], Mapping[str, float]]]
) -> None:
    """Write a PNG of panels (title, curves, horizontal levels by name), side by side."""
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(2.5 + 4.2 * len(panels), 4.6), squeeze=False
    )
    for axis, (name, curves, levels) in zip(axes[0], panels, strict=True):
        for number, curve in enumerate(curves):
            x, y = zip(*sorted(curve.points), strict=True)
            axis.plot(
                x,
                [100 * value for value in y],
                marker=MARKERS[number % len(MARKERS)],
                label=curve.title,
            )
        for number, (level, value) in enumerate(levels.items()):
            axis.axhline(100 * value, linestyle=(":", "--")[number % 2], color="grey", label=level)
        axis.set_xscale("log", base=2)
        ticks = sorted({n for curve in curves for n, _ in curve.points})
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set_xlabel("local descriptors a side")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mAP, per cent")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.suptitle(title)
    columns = min(len(labels), 1 + len(panels))  # about 3 inches each
    figure.legend(
        handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize="small"
    )
    rows = -(-len(labels) // columns)
    figure.tight_layout(rect=(0, 0.05 * rows, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
