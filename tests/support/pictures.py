"""Pictures made for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A picture of coarse random colours: another one for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save_scenes(folder: Path, scenes: Sequence[str]) -> list[str]:
    """Save three shots of each scene, SCENE_SHOT.png; gives the files' names, sorted."""
    for seed, scene in enumerate(scenes):
        for shot in range(3):
            view = picture(seed).crop((3 * shot, 2 * shot, 90 + shot, 60 + shot))
            view.save(folder / f"{scene}_{shot}.png")
    return sorted(path.name for path in folder.iterdir())
