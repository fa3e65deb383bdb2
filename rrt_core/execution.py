"""What runs an extractor's network on the CPU: torch, or OpenVINO, which is faster at convolutions.

Descriptors by either agree to 1e-4; equal bytes are those of one of them, on one type of processor.
OpenVINO is an optional package: nothing here imports it before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rrt_core.options import check_choice
from schemas.errors import UserError

if TYPE_CHECKING:
    from openvino import Model
    from torch import Tensor

TORCH, OPENVINO = "torch", "openvino"
_CPU = {
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",  # else what the processor likes, such as bfloat16
    "ENABLE_CPU_PINNING": False,  # workers would all sit on the first core
    "CPU_RUNTIME_CACHE_CAPACITY": 2000,  # kernels, some 30 shapes' worth (100 MB): no more are kept
}


def check_execution(execution: object) -> None:
    """Raise UserError unless it is `torch`, or `openvino` and that package is here."""
    check_choice("The extractor's option execution", execution, (TORCH, OPENVINO))
    if execution == OPENVINO and find_spec("openvino") is None:
        raise UserError(
            "The extractor's option execution=openvino needs the package openvino: give "
            "RRT_EXTRAS=openvino to run_pipeline.sh once, or install it."
        )


class CompiledNetwork:
    """A network of one image input, run by OpenVINO with as many threads as torch has.

    build  gives the model; called at the first run, since threads are set by then
    """

    def __init__(self, build: Callable[[], Model]) -> None:
        self._build = build
        self._request: Any = None
        self._outputs = 0

    def __call__(self, x: npt.NDArray[Any]) -> list[Tensor]:
        """The outputs, float32, each of memory of its own."""
        import torch

        if self._request is None:
            from openvino import Core

            threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
            compiled = Core().compile_model(self._build(), "CPU", {**_CPU, **threads})
            self._request, self._outputs = compiled.create_infer_request(), len(compiled.outputs)
        self._request.infer({0: np.ascontiguousarray(x)}, share_inputs=True)
        outputs = map(self._request.get_output_tensor, range(self._outputs))
        return [torch.from_numpy(output.data.copy()) for output in outputs]
