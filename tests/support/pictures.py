"""Pictures made for tests."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A picture of coarse random colours: another one for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
