"""Counts how many texts of SST-2 have how many tokens, special ones included.

    target/bench-venv/bin/python tests/benches/lab/sst2_lengths.py <folder of sst2>/train.tsv

../sst2_lengths.json is what it wrote, with the tokenizer of the bundled classifier. `tests/bench cpu`
makes its batches of mixed lengths after it.
"""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

BENCHES = Path(__file__).resolve().parent.parent
TOKENIZER = BENCHES.parent.parent / "functions" / "predict" / "model" / "tokenizer.json"


def write_lengths(train_tsv):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    with open(train_tsv, encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    lengths = Counter(len(encoding) for encoding in tokenizer.encode_batch([r[1] for r in rows]))
    text = json.dumps(dict(sorted(lengths.items())), indent=0)
    (BENCHES / "sst2_lengths.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    write_lengths(sys.argv[1])
