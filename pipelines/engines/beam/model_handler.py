"""Our extractors as a model of Beam's own `RunInference`, for pipelines that are not ours.

Nothing is committed and nothing is stored: for that there is `RunUnits`. What an image gives is, to
the bit, what `extract` stores of it in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from pipelines.engines.processes import limit_threads
from rrt_core.extractors import Description, Extractor, Failure, create
from rrt_core.extractors.answers import checked
from rrt_core.images import DecodeError, Image, decode

Example = tuple[str, bytes]  # record id, the bytes of an image file
Prediction = tuple[str, Description | Failure]


class ExtractorModelHandler(ModelHandler[Example, Prediction, Extractor]):
    """(record id, bytes of an image file) -> (record id, Description or Failure).

        names_and_bytes | RunInference(ExtractorModelHandler("efficientnet"))

    Args:
        extractor: its name as in `extract --extractor`: registered, "timm:NAME", or
            "package.module:Class".
        options: its options, such as {"sizes": "512,360"}.
        threads: that torch and OpenCV get in a worker process; they are part of what decides bits.
        with_locals: False leaves the local descriptors out, which some extractors do for less.
        batch: most images in memory at once.

    Pictures that cannot be decoded are Failures. Raises UserError, when the model is loaded, as
    `rrt_core.extractors.create` does.
    """

    def __init__(
        self,
        extractor: str = "efficientnet",
        options: dict[str, Any] | None = None,
        *,
        threads: int = 1,
        with_locals: bool = True,
        batch: int = 4,
    ) -> None:
        super().__init__(max_batch_size=batch)
        self.extractor, self.options = extractor, dict(options or {})
        self.threads, self.with_locals = threads, with_locals

    def load_model(self) -> Extractor:
        """Make the extractor: once a process."""
        limit_threads(self.threads)
        extractor = create(self.extractor, **self.options)
        limit_threads(self.threads)  # for the libraries that it loaded
        return extractor

    def run_inference(
        self,
        batch: Sequence[Example],
        model: Extractor,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Prediction]:
        """Describe a batch; the answers are in its order."""
        decoded = [_decoded(*example) for example in batch]
        images = [image for image in decoded if isinstance(image, Image)]
        describe = model.describe if self.with_locals else model.describe_globals
        answers = iter(checked(model, describe(images), len(images)) if images else [])
        for (record_id, _), image in zip(batch, decoded, strict=True):
            yield record_id, image if isinstance(image, Failure) else next(answers)

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        """Bytes of the image files."""
        return sum(len(data) for _, data in batch)

    def get_metrics_namespace(self) -> str:
        """Beam's metrics of the model are found by it."""
        return "rrt_pipelines"


def _decoded(record_id: str, data: bytes) -> Image | Failure:
    try:
        return decode(data, record_id)
    except DecodeError as error:
        return Failure(error.reason, error.error_class)
