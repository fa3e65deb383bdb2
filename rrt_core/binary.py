"""The rotation before descriptors are reduced to their signs (binary local descriptors).

Iterative quantization (Gong et al., "Iterative Quantization: A Procrustean Approach to Learning
Binary Codes", CVPR 2011 and PAMI 2013, section 3.2), here without reducing the dimension and
without subtracting a mean: what is compared are directions, and a stored part carries nothing but
the rotation.
"""

from __future__ import annotations

import numpy as np

ITERATIONS = 50  # as in the paper
LEAST = 1_000  # descriptors: with fewer, a random rotation serves as well


def learn_rotation(samples: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """An orthogonal matrix float32 [W, W], learned from samples float32 [n, W].

    Rows of zeros are left out.

    Rotated descriptors are `samples @ rotation`. Alternates between the signs of the rotated
    samples and the rotation that brings the samples nearest to these signs (orthogonal Procrustes),
    from a fixed random rotation; the same samples give the same matrix on the same machine. Fewer
    than 1,000 samples are not learnt from: the random rotation is given. Raises ValueError for what
    is not [n, W].
    """
    if samples.ndim != 2:
        raise ValueError(f"samples must be [n, W], not {list(samples.shape)}")
    width = samples.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0]
    values = np.asarray(samples, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    values = values[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0]
    if len(values) >= LEAST:
        for _ in range(iterations):
            signs = np.where(
                values @ rotation.astype(np.float32) >= 0, np.float32(1), np.float32(-1)
            )
            left, _, right = np.linalg.svd((values.T @ signs).astype(np.float64))
            rotation = left @ right
    return np.asarray(rotation, np.float32)
