"""Bodies for `POST /predict`, whose texts have chosen numbers of tokens: words of the vocabulary."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

BENCHES = Path(__file__).resolve().parent.parent
TOKENIZER = BENCHES.parent.parent / "functions" / "predict" / "model" / "tokenizer.json"
NUM_TEXTS = 2048
# Lengths are spread evenly over the distribution within each block, so that a slow server, which
# sees few blocks, sees the same lengths as a fast one; within a block they come in any order.
BLOCK = 64
SHORTEST_WORD, LONGEST_WORD = 3, 7
SHORTEST_TEXT, LONGEST_TEXT = 8, 512
NUM_SPECIAL = 2


def sst2():
    """Texts as long as those of SST-2; the same for every call."""
    histogram = json.loads((BENCHES / "sst2_lengths.json").read_text(encoding="ascii"))
    ends, total = [], 0
    for length, count in histogram.items():
        total += count
        ends.append((total, int(length)))

    def quantile(share):
        return next(length for end, length in ends if share * total < end)

    return _texts(quantile)


def long():
    """Texts of 8 to 512 tokens, each length as often as any other; the same for every call."""
    return _texts(lambda share: int(SHORTEST_TEXT + share * (LONGEST_TEXT + 1 - SHORTEST_TEXT)))


def write(texts, path):
    """Writes a file of bodies, one a line."""
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="ascii")


def _texts(quantile):
    draw = random.Random(0)
    words, tokenizer = _words()
    texts = []
    while len(texts) < NUM_TEXTS:
        shares = [(place + draw.random()) / BLOCK for place in range(BLOCK)]
        draw.shuffle(shares)
        for share in shares:
            num_tokens = quantile(share)
            text = " ".join(draw.choices(words, k=num_tokens - NUM_SPECIAL))
            if len(tokenizer.encode(text)) != num_tokens:
                raise ValueError(f"not {num_tokens} tokens: {text}")
            texts.append(text)
    return texts


def _words():
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = sorted(
        word
        for word in tokenizer.get_vocab()
        if SHORTEST_WORD <= len(word) <= LONGEST_WORD and word.isascii() and word.isalpha()
    )
    return words, tokenizer
