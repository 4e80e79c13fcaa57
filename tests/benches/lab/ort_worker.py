"""ONNX Runtime behind the line protocol that peers/src/lib.rs describes.

    python -m benches.lab.ort_worker <model.onnx> <threads> [spin|park]

`spin` and `park` say what idle threads of its pool do between two operators. Inputs and outputs are
bound before the clock starts, so that a pass costs one call and no copy.
"""

import sys
import time

import numpy as np
import onnxruntime

from .workload import read_workload

LOG_ERRORS_ONLY = 3


def open_session(path, num_threads, idle):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    spinning = "1" if idle == "spin" else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def bind(session, sequences):
    """The batch, padded to its longest sequence and bound; gives the binding and its logits."""
    shape = (len(sequences), max(map(len, sequences)))
    feeds = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask")}
    feeds["token_type_ids"] = np.zeros(shape, np.int64)
    for row, input_ids in enumerate(sequences):
        feeds["input_ids"][row, : len(input_ids)] = input_ids
        feeds["attention_mask"][row, : len(input_ids)] = 1
    binding = session.io_binding()
    for declared in session.get_inputs():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(feeds[declared.name])
        binding.bind_ortvalue_input(declared.name, value)
    (declared,) = session.get_outputs()
    shape = (len(sequences), declared.shape[1])
    logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
    binding.bind_ortvalue_output(declared.name, logits)
    return binding, logits


def respond(session, request):
    verb, *counts, workload = request.split()
    bound = [bind(session, sequences) for sequences in read_workload(workload)]

    def run():
        for binding, _ in bound:
            session.run_with_iobinding(binding)

    if verb == "logits":
        run()
        return [number for _, logits in bound for number in logits.numpy().ravel()]
    warmups, passes = map(int, counts)
    for _ in range(warmups):
        run()
    times = []
    for _ in range(passes):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) / 1e3)
    return times


def main():
    path, num_threads, *rest = sys.argv[1:]
    session = open_session(path, int(num_threads), *rest or ["spin"])
    print("ready", flush=True)
    for request in sys.stdin:
        print(*respond(session, request), flush=True)


if __name__ == "__main__":
    main()
