"""Which device torch computes on."""

from __future__ import annotations

import torch

from schemas.errors import UserError


def choose_device(device: str) -> torch.device:
    """The torch device of `auto` (CUDA where there is a GPU, else the CPU), `cpu`, `cuda` or
    `cuda:N`.

    Raises:
        UserError: another name, or a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UserError(f"device {device!r} is unknown; choose auto, cpu, cuda or cuda:N.")
    if name == "cuda" and (
        not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"device {device!r}: torch finds no such GPU; choose auto or cpu.")
    return torch.device(device)
