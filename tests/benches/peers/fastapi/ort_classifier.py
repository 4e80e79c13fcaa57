"""ONNX Runtime behind service.py, without torch and transformers.

| Variable | Default | |
|---|---|---|
| GRAPH | | file of the graph; MODEL has tokenizer.json and config.json |
| IS_OPTIMIZED | 0 | 1 takes the graph as it is: a session has optimized and saved it before |
| NUM_THREADS | | threads of a session, in each worker |
| IDLE_THREADS | spin | what they do between two operators: spin or park |
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MAX_INPUT_TOKENS = 512
LOG_ERRORS_ONLY = 3


class Classifier:
    """A tokenizer and a session; callers on several threads may use it at once."""

    def __init__(self, folder: str):
        self.name = Path(folder).name
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.labels = {int(index): label for index, label in config["id2label"].items()}
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_INPUT_TOKENS)
        self.tokenizer.enable_padding()
        self.session = open_session()
        self.inputs = [declared.name for declared in self.session.get_inputs()]

    def logits(self, texts: list[str]) -> np.ndarray:
        """`[num_texts, num_labels]`; all texts are padded to the longest."""
        encodings = self.tokenizer.encode_batch_fast(texts)
        input_ids = np.array([encoding.ids for encoding in encodings], np.int64)
        feeds = {
            "input_ids": input_ids,
            "attention_mask": np.array([each.attention_mask for each in encodings], np.int64),
            "token_type_ids": np.zeros_like(input_ids),
        }
        (logits,) = self.session.run(None, {name: feeds[name] for name in self.inputs})
        return logits

    def scores(self, texts: list[str]) -> list[list[float]]:
        logits = self.logits(texts)
        scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (scores / scores.sum(axis=-1, keepdims=True)).tolist()


def open_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["NUM_THREADS"])
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    if os.environ.get("IS_OPTIMIZED") == "1":
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    spinning = "0" if os.environ.get("IDLE_THREADS") == "park" else "1"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    graph = os.environ["GRAPH"]
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
