"""Turns a checkpoint into what the repository ships, and measures what the 8-bit weights cost.

    python export.py --checkpoint DIR --sst2 DIR [--out functions/predict/model] [--test]

Writes model.onnx, tokenizer.json and config.json, and prints the accuracy of the f32 model and of
model.onnx on dev (with --test, on test too), and how often their labels agree.
"""

import argparse
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from quantize import quantize_weights
from sst2 import LABELS, load_tokenizer, pad, read_rows
from transformers import BertForSequenceClassification

OPSET = 17
NAME = "minilm-l6-h384-sst2"


class Classifier(torch.nn.Module):
    """Token ids to logits, with the attention mask as plain arithmetic.

    The mask that transformers builds itself asks the graph for shapes that only fixed sizes can
    answer; a mask of four dimensions is taken as it is.
    """

    def __init__(self, model: BertForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids) -> torch.Tensor:
        keep = attention_mask[:, None, None, :].to(torch.float32)
        mask = (1.0 - keep) * -1e9
        return self.model(input_ids, attention_mask=mask, token_type_ids=token_type_ids).logits


def to_onnx(model: BertForSequenceClassification) -> onnx.ModelProto:
    """The f32 graph, for any batch size and sequence length."""
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    sample = torch.ones(2, 8, dtype=torch.long)
    graph = io.BytesIO()
    torch.onnx.export(
        Classifier(model).eval(),
        (sample, sample, sample),
        graph,
        input_names=inputs,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch_size", 1: "seq_len"} for name in inputs}
        | {"logits": {0: "batch_size"}},
        opset_version=OPSET,
        dynamo=False,
    )
    return onnx.load_from_string(graph.getvalue())


def predict(model: onnx.ModelProto, rows: list[tuple[int, list[int]]]) -> np.ndarray:
    """The label that `model` finds most probable, for each row."""
    options = onnxruntime.SessionOptions()
    # f32 arithmetic on the unpacked weights, as the file says.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][1]))
    predicted = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(order), 64):
        indices = order[start : start + 64]
        feed = {name: ids.numpy() for name, ids in pad([rows[i][1] for i in indices]).items()}
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        predicted[indices] = session.run(["logits"], feed)[0].argmax(-1)
    return predicted


def write_config(checkpoint: Path, out: Path) -> None:
    """What a reader of the model needs of the checkpoint's config.json."""
    config = json.loads((checkpoint / "config.json").read_text())
    kept = (
        "architectures hidden_act hidden_size intermediate_size layer_norm_eps"
        " max_position_embeddings model_type num_attention_heads num_hidden_layers pad_token_id"
        " type_vocab_size vocab_size"
    )
    labels = {
        "id2label": {str(index): label for index, label in enumerate(LABELS)},
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    config = {"_name_or_path": NAME} | labels | {key: config[key] for key in kept.split()}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--test", action="store_true", help="measure on test.tsv as well")
    args = parser.parse_args()

    checkpoint = BertForSequenceClassification.from_pretrained(
        args.checkpoint, attn_implementation="eager"
    )
    f32 = to_onnx(checkpoint.eval())
    int8 = onnx.ModelProto()
    int8.CopyFrom(f32)
    quantize_weights(int8)

    args.out.mkdir(parents=True, exist_ok=True)
    onnx.save(int8, args.out / "model.onnx")
    shutil.copyfile(args.checkpoint / "tokenizer.json", args.out / "tokenizer.json")
    write_config(args.checkpoint, args.out)

    tokenizer = load_tokenizer(args.out / "tokenizer.json", max_len=512)
    agreed = total = 0
    for split in ["dev", "test"] if args.test else ["dev"]:
        rows = read_rows(args.sst2 / f"{split}.tsv", tokenizer)
        labels = np.array([label for label, _ in rows])
        f32_labels, int8_labels = predict(f32, rows), predict(int8, rows)
        agreed += (f32_labels == int8_labels).sum()
        total += len(rows)
        print(
            f"{split}: f32 {(f32_labels == labels).mean():.4f}"
            f"  8-bit {(int8_labels == labels).mean():.4f}  of {len(rows)} rows"
        )
    print(f"labels agree on {agreed} of {total} rows ({agreed / total:.2%})")
    print(f"model.onnx: {(args.out / 'model.onnx').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
