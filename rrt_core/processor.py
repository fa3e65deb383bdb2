"""What this machine's processor does: its vector units, and whether bfloat16 pays on it.

Descriptors and logits differ in their last bits between vector units, so outputs record them. How
fast a precision is, no list of names says: it is measured once, by running it.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# From the widest on: torch, oneDNN, OpenCV and faiss each choose other code by these.
VECTOR_UNITS = {
    "amx_tile": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "AVX512-VNNI",
    "avx512f": "AVX512",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}
HELD_DOWN_BY = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")

SIDE = 384  # of the matrices that are multiplied: a millisecond in float32
TRIES = 5
SLOW = 1.5  # times float32's time: worth a sentence


@cache
def vector_units(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The widest vector units of this processor, such as `AVX512-BF16`; "" where it is not known.

    Variables that hold torch or oneDNN down to others are named behind it.
    """
    try:
        lines = Path(cpuinfo).read_text(errors="replace").splitlines()
    except OSError:
        return ""  # another system than Linux

    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    widest = next((name for flag, name in VECTOR_UNITS.items() if flag in flags), "")
    held = [f"{name}={os.environ[name]}" for name in HELD_DOWN_BY if os.environ.get(name)]
    return f"{widest} ({', '.join(held)})" if held else widest


def slow_bfloat16(precision: str, device: torch.device) -> str:
    """A sentence where training in a precision is far slower than in float32, else ""."""
    if precision != "bfloat16" or device.type != "cpu" or bfloat16_slowdown() < SLOW:
        return ""
    return (
        f"bfloat16 takes {bfloat16_slowdown():.0f} times as long as float32 in a linear layer on "
        "this processor, which does not multiply it by itself: float32 is faster here, and exact"
    )


@cache
def bfloat16_slowdown() -> float:
    """How many times as long as in float32 a step of training takes in bfloat16 on this processor.

    Measured by a linear layer's forward and backward pass, the best of a few, in about 20 ms where
    bfloat16 is fast. Below 1 where the processor multiplies it itself.
    """
    import torch

    def seconds(dtype: torch.dtype) -> float:
        layer = torch.nn.Linear(SIDE, SIDE)
        rows = torch.ones(SIDE, SIDE)
        taken = []
        for _ in range(TRIES):
            begun = time.perf_counter()
            with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                layer(rows).sum().backward()
            taken.append(time.perf_counter() - begun)
        return min(taken)

    return seconds(torch.bfloat16) / seconds(torch.float32)
