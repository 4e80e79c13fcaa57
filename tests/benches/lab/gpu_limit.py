"""What a GPU does at most, as far as torch gets it to: operations in f16, and bytes of memory. Or, in
seconds, how long torch takes for linear layers, by cublasLt.

    python -m benches.lab.gpu_limit
    {"f16_per_s": …, "bytes_per_s": …}
    python -m benches.lab.gpu_limit <rows>x<in_features>x<out_features>…
    {"<rows>x<in_features>x<out_features>": …}

The best of some runs, of a product of large matrices with random numbers, of a copy, which reads and
writes each byte, and of many layers behind each other.
"""

import json
import sys

import torch

SIZE = 8192
COPIED_BYTES = 2 << 30
RUNS = 20
LAYERS = 50


def least_secs(run):
    run()
    secs = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        secs.append(start.elapsed_time(end) / 1e3)
    return min(secs)


def linear_secs(name):
    """Of one layer, with a bias."""
    rows, in_features, out_features = map(int, name.split("x"))
    shapes = ((rows, in_features), (out_features, in_features), (out_features,))
    tensors = [torch.randn(*shape, dtype=torch.float16, device="cuda") for shape in shapes]
    graph = torch.cuda.CUDAGraph()
    torch.nn.functional.linear(*tensors)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(LAYERS):
            torch.nn.functional.linear(*tensors)
    return least_secs(graph.replay) / LAYERS


def limits():
    a, b = (torch.randn(SIZE, SIZE, dtype=torch.float16, device="cuda") for _ in range(2))
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "f16_per_s": 2 * SIZE**3 / least_secs(lambda: torch.mm(a, b)),
        "bytes_per_s": 2 * COPIED_BYTES / least_secs(lambda: target.copy_(source)),
    }


def main():
    names = sys.argv[1:]
    print(json.dumps({name: linear_secs(name) for name in names} if names else limits()))


if __name__ == "__main__":
    main()
