"""The file that a training run continues from: weights, optimiser, step, figures.

It is written whole or not at all.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas.errors import UserError

STATE_NAME = "state.pt"


@dataclass
class Progressed:
    """How far a run came.

    step: optimiser steps done.
    seconds: spent on them, over all starts.
    figures: of the latest evaluation.
    best_step, best: the step that was chosen so far and its figures; 0 and {} where none was.
    """

    step: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)


def write_whole(path: Path, data: bytes) -> None:
    """Write temporary, fsync, rename, fsync of the folder.

    After a kill or a power cut the old file or the new one is there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    progressed: Progressed,
    identity: str,
) -> None:
    """`identity` names the run's data and options; `load_state` refuses a state of another."""
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "identity": identity,
        **vars(progressed),
    }
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def load_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    identity: str,
) -> Progressed:
    """Fill model, optimiser and scaler from the file; nothing in it is run.

    Raises:
        UserError: damaged, of another model, or of a run with another identity.
    """
    try:
        saved: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        step = int(saved["step"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is damaged, so that the run cannot continue from it: delete it to start again."
        ) from None

    if saved.get("identity", identity) != identity:
        raise UserError(
            f"{path} is of a run on other data or with other options: name another folder, or "
            "delete it."
        )

    try:
        # "network": as train-products called it in older states
        model.load_state_dict(saved["model"] if "model" in saved else saved["network"])
    except (KeyError, RuntimeError):
        raise UserError(f"{path} is of another model: name another folder, or delete it.") from None

    optimiser.load_state_dict(saved["optimiser"])
    if scaler is not None and "scaler" in saved:
        scaler.load_state_dict(saved["scaler"])
    return Progressed(
        step,
        float(saved.get("seconds", 0.0)),
        dict(saved.get("figures", {})),
        int(saved.get("best_step", 0)),
        dict(saved.get("best", {})),
    )
