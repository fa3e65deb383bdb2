"""Which device torch computes on."""

from __future__ import annotations

import torch

from schemas.errors import UserError


def choose_device(device: str, local_rank: int | None = None) -> torch.device:
    """The torch device of `auto` (CUDA where there is a GPU), `cpu`, `cuda` or `cuda:N`.

    Args:
        local_rank: number of this process among those of the machine: then `cuda` is the GPU of
            that number.

    Raises:
        UserError: another name, or a GPU that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"

    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UserError(f"device {device!r} is unknown; choose auto, cpu, cuda or cuda:N.")

    if name == "cpu":
        return torch.device(device)

    index = int(number or local_rank or 0)
    if index >= count:
        raise UserError(
            f"device {device!r}: torch finds no such GPU: torch {torch.__version__} sees {count} "
            f"CUDA devices here, and number {index} is needed; choose auto or "
            f"cpu{'' if local_rank is None else ', or start fewer processes'}."
        )

    return torch.device(device) if local_rank is None else torch.device("cuda", index)
