"""EfficientNet-Lite0 as a graph of OpenVINO's operators, of the weights that torch's network has.

TensorFlow's SAME padding is an attribute of OpenVINO's convolutions, so that one graph takes every
size of picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rrt_core.extractors.efficientnet.network import (
    INPUT_DEVIATION,
    INPUT_MEAN,
    Block,
    EfficientNetLite0,
    SameConv,
)

if TYPE_CHECKING:
    from openvino import Model


def graph_of(network: EfficientNetLite0) -> Model:
    """RGB uint8 [1, H, W, 3] -> the stage of 112 channels, and the head map (`Maps`)."""
    from openvino import Model
    from openvino import opset13 as operators

    image = operators.parameter([1, -1, -1, 3], np.uint8)
    planes = operators.transpose(image, operators.constant(np.array([0, 3, 1, 2])))
    numbers = operators.convert(planes, np.float32)
    centred = operators.subtract(numbers, operators.constant(np.float32(INPUT_MEAN)))
    scaled = operators.multiply(centred, operators.constant(np.float32(1.0 / INPUT_DEVIATION)))
    x: Any = _convolution(scaled, network.stem)
    kept = {}
    for number, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        wide = x if block.widen is None else _convolution(x, block.widen)
        narrow = _convolution(_convolution(wide, block.depthwise), block.narrow)
        x = operators.add(narrow, x) if block.residual else narrow
        if number in network.ends:
            kept[number] = x
    outputs = [kept[network.ends[4]], _convolution(x, network.head)]
    return Model(outputs, [image], "efficientnet_lite0")


def _convolution(x: Any, convolution: SameConv) -> Any:
    from openvino import opset13 as operators

    weight = convolution.weight.contiguous().numpy()
    groups, kind = convolution.groups, operators.convolution
    if groups > 1:
        kind = operators.group_convolution
        weight = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    strides = [convolution.stride] * 2
    none, ones = [0, 0], [1, 1]
    x = kind(x, operators.constant(weight), strides, none, none, ones, auto_pad="same_upper")
    x = operators.add(x, operators.constant(convolution.bias.numpy().reshape(1, -1, 1, 1)))
    return operators.clamp(x, 0.0, 6.0) if convolution.relu6 else x
