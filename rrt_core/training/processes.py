"""Training in several processes: who we are among them, and the few things they do together.

torchrun starts the processes and gives each its rank by environment variables. Gradients are
averaged by DistributedDataParallel: gloo on the CPU, nccl on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from rrt_core.devices import choose_device

CPU = torch.device("cpu")
WAIT = timedelta(hours=12)  # rank 0 may copy and mine for long while the others wait


@dataclass(frozen=True)
class Processes:
    """rank 0 .. world - 1 of `world` processes, on `device`. Rank 0 alone writes."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's run of `count` things; runs differ in length by one at most."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, values: np.ndarray) -> np.ndarray:
        """float64, elementwise over all processes; the same bits in each."""
        if self.world == 1:
            return np.asarray(values, np.float64)
        # nccl knows CUDA tensors only.
        tensor = torch.from_numpy(np.array(values, np.float64)).to(self.device)
        dist.all_reduce(tensor)
        return np.asarray(tensor.cpu().numpy())

    def leave(self) -> None:
        """Take leave of the others, once all are here."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def join(device: str, environment: Mapping[str, str] = os.environ) -> Processes:
    """Join the processes that torchrun started; alone where it did not.

    Raises:
        UserError: a device that is not there.
    """
    world = int(environment.get("WORLD_SIZE", "1")) if "RANK" in environment else 1
    local = int(environment.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local)
    if world == 1:
        return Processes(0, 1, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", timeout=WAIT, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=WAIT)
    return Processes(dist.get_rank(), world, chosen)
