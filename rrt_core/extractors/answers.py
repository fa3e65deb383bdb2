"""Whether what an extractor answers keeps the contract, ahead of storing it.

Built-in extractors are held to it by their tests; this is for those of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rrt_core.extractors import Description, Extractor, Failure
from schemas.errors import UserError

TOLERANCE = 1e-3  # of a length of 1; `import` takes the same for rounding


def checked(
    extractor: Extractor, answers: Sequence[Description | Failure], images: int
) -> list[Description | Failure]:
    """The answers to so many images; a descriptor that is not of length 1 makes a Failure of one.

    A shape is the same mistake for every image and ends the command; a value, such as a NaN, may be
    the one image's.

    Raises UserError where answers are too few, are something else, or differ in shape from what the
    extractor says.
    """
    if len(answers) != images:
        raise UserError(
            f"The extractor {extractor.name!r} gave {len(answers)} answers to {images} images; "
            "its describe() must give one for each, in order."
        )
    return [_checked(extractor, answer) for answer in answers]


def _checked(extractor: Extractor, answer: Description | Failure) -> Description | Failure:
    if isinstance(answer, Failure):
        return answer
    if not isinstance(answer, Description):
        raise UserError(
            f"The extractor {extractor.name!r} answered with {type(answer).__name__}; its "
            "describe() must give a Description or a Failure for each image."
        )

    count = len(answer.descriptors)
    for field, expected in (
        ("global_descriptor", (extractor.global_dim,)),
        ("descriptors", (count, extractor.local_dim)),
        ("xy", (count, 2)),
        ("scale", (count,)),
        ("strength", (count,)),
    ):
        shape = np.shape(getattr(answer, field))
        if shape != expected:
            raise UserError(
                f"The extractor {extractor.name!r} gave {field} of shape {shape}; by its "
                f"global_dim, local_dim and number of descriptors it must be {expected}."
            )

    for field, rows in (
        ("global", answer.global_descriptor[None]),
        ("local", answer.descriptors),
    ):
        lengths = np.linalg.norm(rows, axis=1)
        wrong = lengths[~(np.abs(lengths - 1) <= TOLERANCE)]  # so that NaN is wrong
        if len(wrong):
            return Failure(
                f"the extractor {extractor.name!r} gave a {field} descriptor of length "
                f"{wrong[0]:.4g}, not 1",
                "bad_descriptor",
            )
    return answer
