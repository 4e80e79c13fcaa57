"""SST-2 rows, tokenized as the model sees them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

LABELS = ("NEGATIVE", "POSITIVE")


def load_tokenizer(path: Path, max_len: int) -> Tokenizer:
    """The word-piece tokenizer, cutting at `max_len` tokens and never padding."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_len)
    return tokenizer


def read_rows(path: Path, tokenizer: Tokenizer) -> list[tuple[int, list[int]]]:
    """`(label, input_ids)` of each row of a file of tab-separated label and sentence."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    labels, sentences = zip(*(line.split("\t", 1) for line in lines))
    encodings = tokenizer.encode_batch(list(sentences))
    return [(int(label), encoding.ids) for label, encoding in zip(labels, encodings)]


def pad(sequences: list[list[int]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, `[batch_size, seq_len]`, padded to the longest."""
    seq_len = max(map(len, sequences))
    input_ids = torch.zeros(len(sequences), seq_len, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
        attention_mask[row, : len(sequence)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
