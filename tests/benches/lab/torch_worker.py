"""torch on a GPU behind the line protocol that peers/src/lib.rs describes.

    python -m benches.lab.torch_worker <model.safetensors> eager|compile|varlen

All compute in f16, as sanderling does there. `eager` and `compile` pad a batch to its longest text and
mask the rest, which is how most services run torch; `varlen` packs texts as we do, through torch's
attention for that, in a CUDA graph for each batch. A pass begins with token ids in the memory of the
host, and ends with logits there.
"""

import functools
import json
import struct
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .workload import read_workload

NUM_HEADS = 12
EPSILON = 1e-12
NUM_WARMUPS = 3


def read_safetensors(path):
    """Name to tensor on the GPU."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = np.frombuffer(file.read(), np.float32)
    weights = {}
    for name, about in header.items():
        start, end = (offset // 4 for offset in about["data_offsets"])
        array = data[start:end].reshape(about["shape"])
        weights[name] = torch.tensor(array, dtype=torch.float16, device="cuda")
    return weights


class Encoder(nn.Module):
    """A classifier of the shape of DistilBERT, or of BERT if there are token types."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights
        self.num_layers = len(
            {name.split(".")[1] for name in weights if name.startswith("layers.")}
        )
        self.is_bert = "embeddings.token_types" in weights
        for index in range(self.num_layers):
            for part in ("weight", "bias"):
                parts = [
                    weights[f"layers.{index}.{name}.{part}"] for name in ("query", "key", "value")
                ]
                weights[f"layers.{index}.joined.{part}"] = torch.cat(parts)

    def linear(self, name, hidden_states):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.linear(hidden_states, weight, bias)

    def norm(self, name, hidden_states):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(hidden_states, weight.shape, weight, bias, EPSILON)

    def forward(self, input_ids, position_ids, attend, first_tokens):
        """`attend` takes queries, keys and values `[.., num_heads, head_dim]`."""
        hidden_states = functional.embedding(input_ids, self.weights["embeddings.words"])
        positions = functional.embedding(position_ids, self.weights["embeddings.positions"])
        hidden_states = hidden_states + positions
        if self.is_bert:
            hidden_states = hidden_states + self.weights["embeddings.token_types"][0]
        hidden_states = self.norm("embeddings.norm", hidden_states)
        for index in range(self.num_layers):
            layer = f"layers.{index}"
            joined = self.linear(f"{layer}.joined", hidden_states)
            heads = joined.unflatten(-1, (3, NUM_HEADS, -1)).unbind(-3)
            attended = self.linear(f"{layer}.attention_output", attend(*heads).flatten(-2))
            hidden_states = self.norm(f"{layer}.attention_norm", attended + hidden_states)
            intermediate = functional.gelu(self.linear(f"{layer}.intermediate", hidden_states))
            output = self.linear(f"{layer}.output", intermediate)
            hidden_states = self.norm(f"{layer}.output_norm", output + hidden_states)
        pooled = self.linear("pooler", first_tokens(hidden_states))
        pooled = torch.tanh(pooled) if self.is_bert else functional.relu(pooled)
        return self.linear("classifier", pooled).float()


class Padded:
    """A batch as a rectangle."""

    def __init__(self, encoder, forward, sequences):
        lengths = list(map(len, sequences))
        shape = (len(sequences), max(lengths))
        self.input_ids = torch.zeros(shape, dtype=torch.int64, pin_memory=True)
        keep = torch.zeros(shape, dtype=torch.bool, pin_memory=True)
        for row, input_ids in enumerate(sequences):
            self.input_ids[row, : len(input_ids)] = torch.tensor(input_ids)
            keep[row, : len(input_ids)] = True
        self.keep = None if min(lengths) == max(lengths) else keep
        self.position_ids = torch.arange(shape[1], device="cuda")
        self.encoder, self.forward = encoder, forward

    def run(self):
        mask = None
        if self.keep is not None:
            mask = self.keep.to("cuda", non_blocking=True)[:, None, None, :]
        input_ids = self.input_ids.to("cuda", non_blocking=True)
        return self.forward(self.encoder, input_ids, self.position_ids, mask).cpu()


def forward_padded(encoder, input_ids, position_ids, mask):
    def attend(query, key, value):
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2)

    return encoder(input_ids, position_ids, attend, lambda hidden_states: hidden_states[:, 0])


class Packed:
    """A batch without padding, in a graph."""

    def __init__(self, encoder, sequences):
        from torch.nn.attention.varlen import varlen_attn

        lengths = torch.tensor(list(map(len, sequences)))
        bounds = functional.pad(lengths.cumsum(0), (1, 0)).to("cuda", torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()]).to("cuda")
        longest = int(lengths.max())
        self.input_ids = torch.tensor([id for ids in sequences for id in ids]).pin_memory()
        self.on_device = self.input_ids.to("cuda")

        def attend(query, key, value):
            return varlen_attn(query, key, value, bounds, bounds, longest, longest)

        def run():
            first = bounds[:-1].long()
            return encoder(self.on_device, positions, attend, lambda states: states[first])

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARMUPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = run()

    def run(self):
        self.on_device.copy_(self.input_ids, non_blocking=True)
        self.graph.replay()
        return self.logits.cpu()


def respond(prepare, request):
    verb, *counts, workload = request.split()
    batches = [prepare(sequences) for sequences in read_workload(workload)]
    if verb == "logits":
        return [number for batch in batches for number in batch.run().ravel().tolist()]
    warmups, passes = map(int, counts)
    for _ in range(warmups):
        for batch in batches:
            batch.run()
    times = []
    for _ in range(passes):
        started = time.perf_counter_ns()
        for batch in batches:
            batch.run()
        times.append((time.perf_counter_ns() - started) / 1e3)
    return times


@torch.inference_mode()
def main():
    _, path, how = sys.argv
    encoder = Encoder(read_safetensors(path))
    forward = forward_padded
    if how == "compile":
        # Once for all lengths, as a service does whose texts have any.
        forward = torch.compile(forward_padded, dynamic=True)

    # Graphs of batches that were asked for before are kept, as compiled code is.
    @functools.cache
    def prepared(text):
        sequences = json.loads(text)
        if how == "varlen":
            return Packed(encoder, sequences)
        return Padded(encoder, forward, sequences)

    print("ready", flush=True)
    for request in sys.stdin:
        answer = respond(lambda sequences: prepared(json.dumps(sequences)), request)
        print(*answer, flush=True)


if __name__ == "__main__":
    main()
