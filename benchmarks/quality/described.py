"""Descriptions of image files, kept in a folder: a file an image, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrt_core.extractors import Description, Extractor
from rrt_core.images import decode

Box = tuple[float, float, float, float]


def described(
    extractor: Extractor, items: Sequence[tuple[Path, Box | None]], work: Path
) -> list[Description]:
    """Describe each (file, box or None for the whole picture), or take it from `work`."""
    made_by = [extractor.name, extractor.revision, extractor.config, extractor.weights_sha256]
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    folder = work / f"described-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    descriptions = []
    for path, box in items:
        kept = folder / f"{hashlib.sha256(f'{path} {box}'.encode()).hexdigest()[:24]}.npz"
        if not kept.exists():
            (description,) = extractor.describe([decode(path.read_bytes(), path.name, box)])
            if not isinstance(description, Description):
                raise SystemExit(f"{path}: {description.reason}")
            unfinished = kept.with_suffix(f".{os.getpid()}")
            with unfinished.open("wb") as file:
                np.savez(file, **vars(description))
            unfinished.rename(kept)
        with np.load(kept) as arrays:
            descriptions.append(Description(**arrays))
    return descriptions
