"""The table of metrics that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.metrics import ENSEMBLE, ENSEMBLE_DEPLOY, GLOBAL, RERANKED
from schemas.ranking import DEPLOY

TITLES = {
    GLOBAL: "global",
    RERANKED: "reranked",
    DEPLOY: "reranked, no label knowledge",
    ENSEMBLE: "ensemble",
    ENSEMBLE_DEPLOY: "ensemble, no label knowledge",
}


def metrics_table(metrics: dict[str, Any]) -> str:
    """The mAP table of a run's metrics for a terminal."""
    rows = {
        TITLES[ranking]: {protocol: each["mAP"] for protocol, each in by_protocol.items()}
        for ranking, by_protocol in metrics["rankings"].items()
    }
    table = map_table(rows, width=30)
    if "ensemble" in metrics:
        table += f"\nensemble: {weights(metrics['ensemble'])}"
    if metrics["facts"]["truncated"]:
        end = metrics["facts"].get("shortest_list", metrics["facts"]["k"])
        table += (
            f"\nlists end after {end:,} images or more, and positives beyond count as not found: "
            f"of whole lists these figures would be higher, or the same"
        )
    return table


def map_table(rows: Mapping[str, Mapping[str, float | None]], width: int) -> str:
    """Title -> protocol -> mAP in [0, 1], as a table in percent; a dash for None."""
    columns = list(next(iter(rows.values())))
    head = f"{'mAP':<{width}}" + "".join(f"{name.capitalize():>9}" for name in columns)
    lines = [head, "-" * len(head)]
    for title, values in rows.items():
        cells = (
            "-" if (value := values[name]) is None else f"{100 * value:.2f}" for name in columns
        )
        lines.append(f"{title:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def weights(values: Mapping[str, float]) -> str:
    """An ensemble's weights in words."""
    return f"lambda {values['lambda']:g}, gamma {values['gamma']:g}, k {values['k']}"
