"""Token ids of a workload, the same as peers/src/lib.rs makes."""

FIRST_WORD, NUM_WORDS = 1000, 28_000


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
