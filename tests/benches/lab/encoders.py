"""Encoders with random weights, as ONNX graphs and as safetensors, in the shapes of real models.

The graphs are what torch's exporter (opset 17) writes for the classifiers of transformers with
plain attention: shapes computed from shapes, transposed weights, GELU by Erf. The mask is the one
step written more simply, as Unsqueeze, Cast, Sub, Mul: what recent transformers export for it
cannot be read with symbolic shapes by tract.

Weights are twice as large as freshly initialized ones, and nothing is exactly zero or one: logits
are of order one, so that a wrong answer is seen.
"""

import json
import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCAB_SIZE = 30_522
MAX_POSITIONS = 512
NUM_HEADS = 12
NUM_LABELS = 2
EPSILON = 1e-12
OPSET = 17
# The newest that tract 0.23 and rten 0.27 accept with this opset.
IR_VERSION = 8


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    # BERT has segments and a tanh pooler; DistilBERT has neither, and ReLU before its classifier.
    is_bert: bool

    @property
    def num_linear_weights(self):
        """Weights that every token is multiplied with."""
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return self.num_layers * layer

    def attention_operations(self, seq_len):
        """Operations of queries with keys, and of their weights with values, for one sequence."""
        return self.num_layers * 4 * seq_len**2 * self.hidden_size


DISTILBERT = Shape("DistilBERT", 768, 3072, 6, is_bert=False)
MINILM = Shape("MiniLM", 384, 1536, 6, is_bert=True)


def random_weights(shape):
    """Name to array; matrices `[out_features, in_features]`. The same for every call."""
    random = np.random.default_rng(0)
    weights = {}

    def table(name, rows, columns):
        weights[name] = random.normal(0, 0.04, (rows, columns)).astype(np.float32)

    def vector(name, size, mean):
        weights[name] = random.normal(mean, 0.02, size).astype(np.float32)

    def linear(name, in_features, out_features):
        table(f"{name}.weight", out_features, in_features)
        vector(f"{name}.bias", out_features, 0)

    def norm(name):
        vector(f"{name}.weight", shape.hidden_size, 1)
        vector(f"{name}.bias", shape.hidden_size, 0)

    hidden_size, intermediate_size = shape.hidden_size, shape.intermediate_size
    table("embeddings.words", VOCAB_SIZE, hidden_size)
    table("embeddings.positions", MAX_POSITIONS, hidden_size)
    if shape.is_bert:
        table("embeddings.token_types", 2, hidden_size)
    norm("embeddings.norm")
    for index in range(shape.num_layers):
        layer = f"layers.{index}"
        for part in ("query", "key", "value", "attention_output"):
            linear(f"{layer}.{part}", hidden_size, hidden_size)
        norm(f"{layer}.attention_norm")
        linear(f"{layer}.intermediate", hidden_size, intermediate_size)
        linear(f"{layer}.output", intermediate_size, hidden_size)
        norm(f"{layer}.output_norm")
    linear("pooler", hidden_size, hidden_size)
    linear("classifier", hidden_size, NUM_LABELS)
    return weights


def write_safetensors(weights, path):
    """Writes `weights` in the safetensors format: a JSON header, then the arrays end to end."""
    header, offset = {}, 0
    for name, array in weights.items():
        end = offset + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in weights.values():
            file.write(array.tobytes())


def write_onnx(shape, weights, path):
    """Writes the graph of a classifier: ids and mask `[batch, seq_len]` to logits `[batch, 2]`."""
    graph = _Graph(weights)
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * shape.is_bert
    logits = _classifier(graph, shape, _encoder(graph, shape))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            shape.name,
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq_len"])
                for name in inputs
            ],
            [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", NUM_LABELS])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_nearly_empty_onnx(path):
    """Writes a graph with the inputs and the output of a classifier that computes next to nothing.

    What a run of it costs is what a call costs.
    """
    graph = _Graph({})
    ids = graph.add("Cast", "input_ids", to=TensorProto.FLOAT)
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    logits = graph.add(
        "ReduceSum", graph.add("Mul", ids, mask), graph.constant([1]), keepdims=1, output="logits"
    )
    names = ["input_ids", "attention_mask"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "nearly empty",
            [
                helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq_len"])
                for n in names
            ],
            [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", 1])],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.save(model, path)


class _Graph:
    """Nodes and initializers of a graph in the making; values go by name."""

    def __init__(self, weights):
        self.weights = weights
        self.nodes = []
        self.initializers = []

    def add(self, op_type, *inputs, output=None, **attributes):
        """Appends a node; gives the name of its output."""
        output = output or f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def constant(self, value, dtype=np.int64):
        return self.add("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def weight(self, name, transposed=False):
        array = self.weights[name].T if transposed else self.weights[name]
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def linear(self, name, hidden_states):
        product = self.add("MatMul", hidden_states, self.weight(f"{name}.weight", transposed=True))
        return self.add("Add", self.weight(f"{name}.bias"), product)

    def norm(self, name, hidden_states):
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", hidden_states, weight, bias, axis=-1, epsilon=EPSILON)

    def size(self, value, axis):
        return self.add("Gather", self.add("Shape", value), self.constant(axis), axis=0)

    def reshape(self, value, sizes):
        """Reshapes to `sizes`: values by name, constants by number."""
        dims = [
            self.add("Unsqueeze", size, self.constant([0]))
            if isinstance(size, str)
            else self.constant([size])
            for size in sizes
        ]
        return self.add("Reshape", value, self.add("Concat", *dims, axis=0))


def _encoder(graph, shape):
    """The last hidden states."""
    one, lowest = graph.constant(1, np.float32), np.finfo(np.float32).min
    mask = graph.add("Unsqueeze", "attention_mask", graph.constant([1]))
    mask = graph.add("Unsqueeze", mask, graph.constant([2]))
    mask = graph.add("Sub", one, graph.add("Cast", mask, to=TensorProto.FLOAT))
    mask = graph.add("Mul", mask, graph.constant(lowest, np.float32))
    hidden_states = _embeddings(graph, shape)
    for index in range(shape.num_layers):
        hidden_states = _layer(graph, shape, f"layers.{index}", hidden_states, mask)
    return hidden_states


def _embeddings(graph, shape):
    embeddings = graph.add("Gather", graph.weight("embeddings.words"), "input_ids")
    if shape.is_bert:
        token_types = graph.weight("embeddings.token_types")
        segments = graph.add("Gather", token_types, "token_type_ids")
        embeddings = graph.add("Add", embeddings, segments)
    end = graph.add("Unsqueeze", graph.size("input_ids", 1), graph.constant([0]))
    all_positions = graph.constant([list(range(MAX_POSITIONS))])
    axis, start, step = graph.constant([1]), graph.constant([0]), graph.constant([1])
    position_ids = graph.add("Slice", all_positions, start, end, axis, step)
    positions = graph.add("Gather", graph.weight("embeddings.positions"), position_ids)
    return graph.norm("embeddings.norm", graph.add("Add", embeddings, positions))


def _layer(graph, shape, name, hidden_states, mask):
    attended = _attention(graph, shape, name, hidden_states, mask)
    attended = graph.linear(f"{name}.attention_output", attended)
    sum_ = graph.add("Add", attended, hidden_states)
    hidden_states = graph.norm(f"{name}.attention_norm", sum_)
    intermediate = _gelu(graph, graph.linear(f"{name}.intermediate", hidden_states))
    output = graph.linear(f"{name}.output", intermediate)
    return graph.norm(f"{name}.output_norm", graph.add("Add", output, hidden_states))


def _attention(graph, shape, name, hidden_states, mask):
    head_dim = shape.hidden_size // NUM_HEADS
    batch, seq_len = graph.size(hidden_states, 0), graph.size(hidden_states, 1)

    def heads(part, perm):
        projected = graph.linear(f"{name}.{part}", hidden_states)
        split = graph.reshape(projected, [batch, seq_len, -1, head_dim])
        return graph.add("Transpose", split, perm=perm)

    query = heads("query", [0, 2, 1, 3])
    key = heads("key", [0, 2, 3, 1])
    value = heads("value", [0, 2, 1, 3])
    scale = graph.constant(math.sqrt(head_dim), np.float32)
    scores = graph.add("Div", graph.add("MatMul", query, key), scale)
    scores = graph.add("Softmax", graph.add("Add", scores, mask), axis=-1)
    attended = graph.add("Transpose", graph.add("MatMul", scores, value), perm=[0, 2, 1, 3])
    return graph.reshape(attended, [batch, seq_len, shape.hidden_size])


def _gelu(graph, value):
    half, one = graph.constant(0.5, np.float32), graph.constant(1, np.float32)
    erf = graph.add("Erf", graph.add("Div", value, graph.constant(math.sqrt(2), np.float32)))
    return graph.add("Mul", graph.add("Mul", value, graph.add("Add", erf, one)), half)


def _classifier(graph, shape, hidden_states):
    def linear(name, value, **output):
        weight, bias = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
        return graph.add("Gemm", value, weight, bias, transB=1, **output)

    first = graph.add("Gather", hidden_states, graph.constant(0), axis=1)
    pooled = graph.add("Tanh" if shape.is_bert else "Relu", linear("pooler", first))
    return linear("classifier", pooled, output="logits")
