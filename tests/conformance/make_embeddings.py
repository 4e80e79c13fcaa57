"""Write cases/embed.json: what onnxruntime makes of some texts of sentences.json.

As make_cases.py, but with the model of `embed`: hidden states in f32 arithmetic on the unpacked
weights, one text at a time, their mean scaled to length 1.

    pip install -r tests/conformance/requirements.txt
    python tests/conformance/make_embeddings.py
"""

import hashlib
import json

import numpy as np
import onnxruntime
from make_cases import HERE, open_model, read_texts
from tokenizers import Tokenizer

MODEL_DIR = HERE.parent.parent / "functions" / "embed" / "model"
MAX_TOKENS = 256
EVERY = 5


def main():
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS, direction="right")
    model = open_model(MODEL_DIR / "model.onnx")
    cases = []
    for text in read_texts()[::EVERY]:
        input_ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        feeds["token_type_ids"] = np.zeros_like(input_ids)
        (hidden_states,) = model.run(["last_hidden_state"], feeds)
        mean = hidden_states[0].mean(axis=0, dtype=np.float64)
        embedding = [round(float(x), 6) for x in mean / np.linalg.norm(mean)]
        num_tokens = input_ids.shape[1]
        cases.append({"text": text, "num_tokens": num_tokens, "embedding": embedding})
    head = {
        "model_sha256": hashlib.sha256((MODEL_DIR / "model.onnx").read_bytes()).hexdigest(),
        "onnxruntime": onnxruntime.__version__,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    body = ",\n".join("    " + json.dumps(case) for case in cases)
    text = "\n".join(["{", *lines, '  "cases": [', body, "  ]", "}", ""])
    (HERE / "cases" / "embed.json").write_text(text, encoding="ascii", newline="\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
