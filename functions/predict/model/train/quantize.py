"""8-bit weights in an ONNX graph, so that any engine reads the same file.

Weights become integers with one scale a channel, initializers behind DequantizeLinear: the matrices
by output column, the embeddings by hidden dimension, taken row by row before they are scaled, so that
no engine needs to unpack a whole table. Biases and LayerNorm stay f32.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def quantize(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit integers, and one f32 scale for each index of `axis`."""
    largest = np.abs(weights).max(axis=1 - axis)
    scale = (np.maximum(largest, 1e-12) / 127.0).astype(np.float32)
    integers = np.rint(weights / np.expand_dims(scale, 1 - axis))
    return integers.astype(np.int8), scale


def quantize_weights(model: onnx.ModelProto) -> None:
    """Puts every matrix that a MatMul, Gemm or Gather reads behind a DequantizeLinear."""
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in ("MatMul", "Gemm", "Gather"):
            continue
        place = 0 if node.op_type == "Gather" else 1
        name = node.input[place]
        if name not in initializers or len(initializers[name].dims) != 2:
            continue
        outputs_first = any(
            attribute.name == "transB" and attribute.i for attribute in node.attribute
        )
        axis = 0 if outputs_first else 1
        integers, scale = quantize(numpy_helper.to_array(initializers[name]), axis)
        initializers[name].CopyFrom(numpy_helper.from_array(integers, name))
        zero_point = np.zeros(scale.shape, np.int8)
        graph.initializer.extend(
            [
                numpy_helper.from_array(scale, f"{name}.scale"),
                numpy_helper.from_array(zero_point, f"{name}.zero_point"),
            ]
        )
        if node.op_type == "Gather":
            rows, scaled, axis = f"{node.output[0]}.rows", node.output[0], -1
            node.output[0] = rows
            nodes.append(dequantize(name, rows, scaled, axis))
        else:
            node.input[place] = f"{name}.dequantized"
            nodes.insert(-1, dequantize(name, name, node.input[place], axis))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)


def dequantize(weights: str, integers: str, scaled: str, axis: int) -> onnx.NodeProto:
    """`scaled = integers * scale`, with the scales of `weights` along `axis`."""
    inputs = [integers, f"{weights}.scale", f"{weights}.zero_point"]
    return helper.make_node("DequantizeLinear", inputs, [scaled], name=scaled, axis=axis)
