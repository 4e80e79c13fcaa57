"""Write cases/predict.json: what onnxruntime answers for every text of sentences.json.

The texts go through tokenizer.json (cut on the right at 512 ids, special tokens
kept, no padding) and model.onnx, one at a time, on one CPU thread. As a check,
padded batches of 8 must give the same logits within 1e-4.

    pip install -r tests/conformance/requirements.txt
    python tests/conformance/make_cases.py
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
MODEL_DIR = HERE.parent.parent / "functions" / "predict" / "model"
MAX_TOKENS = 512
TOLERANCE = 1e-3
BATCH = 8
BATCH_TOLERANCE = 1e-4


def read_texts():
    texts = json.loads((HERE / "sentences.json").read_text(encoding="utf-8"))
    assert len(texts) == 200 and len(set(texts)) == 200, "200 different texts expected"
    for text in texts:
        assert text.strip() and len(text) < 5000, f"blank or too long: {text[:40]!r}"
    return texts


def open_model(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # f32 arithmetic on the unpacked weights, as the file says. Otherwise onnxruntime rounds the
    # activations to 8 bits as well, which moves logits by 1e-2.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(model, rows):
    """Logits [len(rows), num_labels] of lists of ids, padded to the longest with 0."""
    shape = (len(rows), max(map(len, rows)))
    feeds = {
        name: np.zeros(shape, np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for i, ids in enumerate(rows):
        feeds["input_ids"][i, : len(ids)] = ids
        feeds["attention_mask"][i, : len(ids)] = 1
    declared = [each.name for each in model.get_inputs()]
    (logits,) = model.run(["logits"], {name: feeds[name] for name in declared})
    assert logits.shape[0] == len(rows) and np.isfinite(logits).all()
    return logits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--out", type=Path, default=HERE / "cases" / "predict.json")
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS, direction="right")
    model = open_model(args.model_dir / "model.onnx")

    texts = read_texts()
    rows = [tokenizer.encode(text).ids for text in texts]
    logits = np.concatenate([run(model, [ids]) for ids in rows])

    # Every batch mixes short and long texts: the file goes roughly from short to long.
    batches = -(-len(rows) // BATCH)
    largest = max(
        float(np.abs(run(model, rows[i::batches]) - logits[i::batches]).max())
        for i in range(batches)
    )
    print(f"largest difference between single and batched logits: {largest:.2e}")
    assert largest <= BATCH_TOLERANCE, "batching changes the logits"

    cases = [
        {
            "text": text,
            "num_tokens": len(ids),
            "input_ids_sha256": hashlib.sha256(np.array(ids, "<u4").tobytes()).hexdigest(),
            "logits": [round(float(x), 6) for x in row],
        }
        for text, ids, row in zip(texts, rows, logits, strict=True)
    ]
    head = {
        "model_sha256": hashlib.sha256((args.model_dir / "model.onnx").read_bytes()).hexdigest(),
        "onnxruntime": onnxruntime.__version__,
        "tolerance": TOLERANCE,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    body = ",\n".join("    " + json.dumps(case, ensure_ascii=True) for case in cases)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines += ['  "cases": [', body, "  ]"]
    args.out.write_text("\n".join(["{", *lines, "}", ""]), encoding="ascii", newline="\n")
    print(f"{args.out}: {len(cases)} cases")


if __name__ == "__main__":
    main()
