"""The table of metrics that a person reads."""

from __future__ import annotations

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
    """The mAP table for a terminal, in percent."""
    protocols = list(next(iter(metrics["rankings"].values())))
    head = f"{'mAP':<30}" + "".join(f"{protocol.capitalize():>9}" for protocol in protocols)
    lines = [head, "-" * len(head)]
    for ranking, by_protocol in metrics["rankings"].items():
        cells = [by_protocol[protocol]["mAP"] for protocol in protocols]
        lines.append(
            f"{TITLES[ranking]:<30}"
            + "".join(f"{'-' if c is None else f'{100 * c:.2f}':>9}" for c in cells)
        )
    if "ensemble" in metrics:
        values = metrics["ensemble"]
        lines.append(
            f"ensemble: lambda {values['lambda']:g}, gamma {values['gamma']:g}, k {values['k']}"
        )
    return "\n".join(lines)
