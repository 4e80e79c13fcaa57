"""ONNX Runtime from nothing to one answer, in the fewest steps that Python allows.

    first_answer.py <model.onnx> <folder of config.json and tokenizer.json> <settings> <text>

Prints the answer as JSON and waits until stdin ends, so that its memory can be read. `settings` is
JSON: `num_threads`, `optimize` (whether the session optimizes the graph, or takes it as it was
saved) and `entries` (of the session's configuration).
"""

import json
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

LOG_ERRORS_ONLY = 3


def open_session(path, settings):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["num_threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    if not settings["optimize"]:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    for name, value in settings["entries"].items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def predict(session, tokenizer, labels, text):
    input_ids = np.array([tokenizer.encode(text).ids], np.int64)
    feeds = {
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids),
        "token_type_ids": np.zeros_like(input_ids),
    }
    names = [declared.name for declared in session.get_inputs()]
    ((logits,),) = session.run(None, {name: feeds[name] for name in names})
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    best = int(scores.argmax())
    return [{"label": labels[str(best)], "score": float(scores[best])}]


def main():
    path, folder, settings, text = sys.argv[1:]
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        labels = json.load(file)["id2label"]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(512)
    session = open_session(path, json.loads(settings))
    print(json.dumps(predict(session, tokenizer, labels, text)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
