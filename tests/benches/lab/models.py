"""The models of the benchmarks that start processes, each in the forms that its contestants read,
from one set of weights.

```text
functions/predict/model ─┐                ┌─> export/      ours: model.onnx, tokenizer.json, config.json
                         ├─> weights, f32 ┼─> checkpoint/  transformers: model.safetensors, …
random, from a seed ─────┘                └─> ort/         ONNX Runtime: 8-bit graphs
```
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from . import encoders, ort_files
from .engines import LAB, MODELS_DIR, PEERS, SERVICE_PYTHON

BUNDLED = LAB.parent.parent.parent / "functions" / "predict" / "model"
CHECK_TEXTS = ("This movie is amazing!", "A", "It was not as bad as they said, but still " * 3)
# Largest difference of a logit between transformers and ONNX Runtime, both in f32.
CHECKPOINT_TOLERANCE = 1e-4
LABELS = {"0": "NEGATIVE", "1": "POSITIVE"}
# How ONNX Runtime gets the graph: it optimizes the quantized one, or maps what it made of it before,
# with or without the layout that its kernels read.
QUANTIZED, MAPPED, PREPACKED = "quantized", "mapped", "mapped, prepacked"


@dataclass(frozen=True)
class Model:
    """One model in all its forms, and the right answer to one text."""

    name: str
    shape: encoders.Shape
    export: Path
    checkpoint: Path
    # By fusion, then by how it is loaded.
    ort: dict[str, dict[str, Path]]
    text: str
    label: str
    score: float
    # Whether answers in 8 bits may differ from those in f32 by more than `sanderling pack` allows.
    is_random: bool


def write_models():
    """Makes the files of both models, unless the same were made before."""
    sources = [LAB / name for name in ("models.py", "encoders.py", "ort_files.py")]
    sources += [folder / "requirements.txt" for folder in (LAB.parent, PEERS / "fastapi")]
    sources += [BUNDLED / "model.onnx", BUNDLED / "tokenizer.json"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = MODELS_DIR / f"cold-{digest[:12]}"
    return [
        _write("bundled", encoders.MINILM, folder / "bundled", is_random=False),
        _write("DistilBERT", encoders.DISTILBERT, folder / "distilbert", is_random=True),
    ]


def _write(name, shape, folder, is_random):
    export, checkpoint, f32 = folder / "export", folder / "checkpoint", folder / "f32.onnx"
    if not is_random:
        export = BUNDLED
    ort = _ort_paths(folder / "ort")
    complete = folder / "answer.json"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint.mkdir(parents=True)
        (folder / "ort").mkdir()
        weights = encoders.random_weights(shape) if is_random else _bundled_weights()
        encoders.write_onnx(shape, weights, f32)
        if is_random:
            _write_export(shape, f32, export)
        _write_checkpoint(shape, weights, checkpoint)
        _write_ort(shape, f32, folder / "fused.onnx", ort)
        session = onnxruntime.InferenceSession(f32, providers=["CPUExecutionProvider"])
        _check_checkpoint(checkpoint, session)
        complete.write_text(json.dumps(_answer(session)), encoding="utf-8")
    answer = json.loads(complete.read_text(encoding="utf-8"))
    return Model(name, shape, export, checkpoint, ort, **answer, is_random=is_random)


def write_random(shape, weights, f32, folder):
    """Makes what is no graph for ONNX Runtime of a model whose graph in f32 is there."""
    export, checkpoint = folder / "export", folder / "checkpoint"
    checkpoint.mkdir()
    _write_export(shape, f32, export)
    _write_checkpoint(shape, weights, checkpoint)
    session = onnxruntime.InferenceSession(f32, providers=["CPUExecutionProvider"])
    return Model(shape.name, shape, export, checkpoint, {}, **_answer(session), is_random=True)


def _hugging_face_names(shape):
    """Names of the weights in transformers' classifiers, by the names that encoders.py has."""
    if shape.is_bert:
        model, layers, pooler = "bert", "bert.encoder.layer", "bert.pooler.dense"
        parts = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention_output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "intermediate": "intermediate.dense",
            "output": "output.dense",
            "output_norm": "output.LayerNorm",
        }
    else:
        model, layers, pooler = "distilbert", "distilbert.transformer.layer", "pre_classifier"
        parts = {
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
            "output_norm": "output_layer_norm",
        }
    tables = {"words": "word", "positions": "position"}
    if shape.is_bert:
        tables["token_types"] = "token_type"
    names = {
        f"embeddings.{ours}": f"{model}.embeddings.{theirs}_embeddings.weight"
        for ours, theirs in tables.items()
    }
    modules = {
        "embeddings.norm": f"{model}.embeddings.LayerNorm",
        "pooler": pooler,
        "classifier": "classifier",
    }
    for index in range(shape.num_layers):
        for ours, theirs in parts.items():
            modules[f"layers.{index}.{ours}"] = f"{layers}.{index}.{theirs}"
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"
    return names


def _bundled_weights():
    """The weights of the bundled model in f32, by the names that encoders.py has.

    functions/predict/model/train/export.py says how the graph holds them: names are those of the
    checkpoint behind `model.`, but matrices that were transposed have only the name of their node.
    """
    graph = onnx.load(BUNDLED / "model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def unpacked(name, axis):
        scale = np.expand_dims(arrays[f"{name}.scale"], 1 - axis)
        return arrays[name].astype(np.float32) * scale

    state = {}
    for name, array in arrays.items():
        if name.startswith("model.") and not name.endswith((".scale", ".zero_point")):
            if array.dtype == np.int8:
                array = unpacked(name, axis=1 if "embeddings" in name else 0)
            state[name.removeprefix("model.")] = array
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].endswith(".dequantized"):
            module = node.name.removeprefix("/model/").removesuffix("/MatMul").replace("/", ".")
            name = node.input[1].removesuffix(".dequantized")
            state[f"{module}.weight"] = np.ascontiguousarray(unpacked(name, axis=1).T)
    return {ours: state[theirs] for ours, theirs in _hugging_face_names(encoders.MINILM).items()}


def _write_export(shape, f32, folder):
    folder.mkdir()
    os.link(f32, folder / "model.onnx")
    shutil.copy(BUNDLED / "tokenizer.json", folder)
    config = _config(shape) | {"_name_or_path": f"{shape.name.lower()}-random", "precision": "int8"}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_checkpoint(shape, weights, folder):
    state = {theirs: weights[ours] for ours, theirs in _hugging_face_names(shape).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(BUNDLED / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2), encoding="utf-8")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": encoders.MAX_POSITIONS,
        "model_input_names": ["input_ids", "attention_mask"] + ["token_type_ids"] * shape.is_bert,
        **{f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def _config(shape):
    """What transformers reads of config.json; `max_position_embeddings` and labels, we do too."""
    shared = {
        "id2label": LABELS,
        "label2id": {label: int(index) for index, label in LABELS.items()},
        "max_position_embeddings": encoders.MAX_POSITIONS,
        "vocab_size": encoders.VOCAB_SIZE,
        "pad_token_id": 0,
    }
    if shape.is_bert:
        return shared | {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "layer_norm_eps": encoders.EPSILON,
            "num_attention_heads": encoders.NUM_HEADS,
            "num_hidden_layers": shape.num_layers,
            "type_vocab_size": 2,
        }
    return shared | {
        "architectures": ["DistilBertForSequenceClassification"],
        "model_type": "distilbert",
        "activation": "gelu",
        "dim": shape.hidden_size,
        "hidden_dim": shape.intermediate_size,
        "n_heads": encoders.NUM_HEADS,
        "n_layers": shape.num_layers,
    }


def _ort_paths(folder):
    def path(fusion, load):
        return folder / f"{fusion} {load}.onnx".replace(",", "").replace(" ", "-")

    return {
        fusion: {load: path(fusion, load) for load in (QUANTIZED, MAPPED, PREPACKED)}
        for fusion in (ort_files.AS_EXPORTED, ort_files.FUSED)
    }


def _write_ort(shape, f32, fused, paths):
    """8-bit graphs, embeddings included, as `quantize_dynamic` makes them if nothing else is said;
    and what a session makes of them, with the weights in a file of their own, which is mapped.
    """
    logging.getLogger().setLevel(logging.ERROR)
    ort_files.fuse(shape, f32, fused)
    op_types = (*ort_files.LINEAR_OPS, "Gather", "EmbedLayerNormalization")
    for source, loads in zip((f32, fused), paths.values(), strict=True):
        ort_files.quantize(source, loads[QUANTIZED], op_types)
        for load in (MAPPED, PREPACKED):
            _save_optimized(loads[QUANTIZED], loads[load], prepacked=load == PREPACKED)
    fused.unlink()


def _save_optimized(source, target, prepacked):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{prefix}file_name", f"{target.name}.data")
    options.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")
    entry = "session.save_external_prepacked_constant_initializers"
    options.add_session_config_entry(entry, str(int(prepacked)))
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _logits(session, texts):
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    names = [declared.name for declared in session.get_inputs()]
    answers = []
    for text in texts:
        input_ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = dict.fromkeys(names, np.zeros_like(input_ids))
        feeds |= {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        answers.append(session.run(None, feeds)[0][0])
    return np.array(answers)


def _check_checkpoint(checkpoint, session):
    """Ends the run if transformers answers otherwise than ONNX Runtime."""
    command = [SERVICE_PYTHON, PEERS / "fastapi" / "logits.py", checkpoint, *CHECK_TEXTS]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    difference = np.abs(np.array(json.loads(ran.stdout)) - _logits(session, CHECK_TEXTS)).max()
    if not difference <= CHECKPOINT_TOLERANCE:
        sys.exit(f"{checkpoint}: logits of transformers differ by {difference:.2g}")


def _answer(session):
    """A text, and what is right for it."""
    text = CHECK_TEXTS[0]
    scores = _softmax(_logits(session, [text])[0])
    best = int(scores.argmax())
    return {"text": text, "label": LABELS[str(best)], "score": float(scores[best])}


def _softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()
