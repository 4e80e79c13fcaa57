"""Workloads: how long their texts are, and token ids for these, the same as peers/src/lib.rs makes."""

import json
import random
from pathlib import Path

SST2_LENGTHS = Path(__file__).resolve().parent.parent / "sst2_lengths.json"

FIRST_WORD, NUM_WORDS = 1000, 28_000


def equal_lengths(batch_size, seq_len):
    """The name of a workload of one batch, and the lengths of its texts."""
    return f"{batch_size}x{seq_len}", ((seq_len,) * batch_size,)


def mixed_lengths(num_batches, batch_size):
    """Batches whose lengths are drawn from those of SST-2, the same ones every time."""
    counts = _sst2_counts()
    draw = random.Random(0)
    return tuple(
        tuple(draw.choices(list(counts), list(counts.values()), k=batch_size))
        for _ in range(num_batches)
    )


def mean_sst2_length():
    """Tokens of a text, special ones included."""
    counts = _sst2_counts()
    return sum(length * count for length, count in counts.items()) / sum(counts.values())


def _sst2_counts():
    """How many texts of SST-2 have each length."""
    histogram = json.loads(SST2_LENGTHS.read_text(encoding="ascii"))
    return {int(length): count for length, count in histogram.items()}


def read_workload(text):
    """A list of batches, each a list of texts, each a list of ids."""
    state = 12_345

    def next_id():
        nonlocal state
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        return FIRST_WORD + (state >> 33) % NUM_WORDS

    return [
        [[next_id() for _ in range(int(length))] for length in batch.split(",")]
        for batch in text.split(";")
    ]
