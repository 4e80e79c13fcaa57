"""transformers and torch behind service.py: what the service that sanderling replaces has.

| Variable | Default | |
|---|---|---|
| DTYPE | float32 | of weights and hidden states, as torch calls it |
"""

import os

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_INPUT_TOKENS = 512

if "NUM_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["NUM_THREADS"]))


class Classifier:
    """A tokenizer and a model, for one batch at a time."""

    def __init__(self, folder: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        dtype = getattr(torch, os.environ.get("DTYPE", "float32"))
        self.model = model.to(self.device, dtype).eval()
        self.name = model.config.name_or_path
        self.labels = model.config.id2label

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> torch.Tensor:
        """`[num_texts, num_labels]`; all texts are padded to the longest."""
        batch = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=MAX_INPUT_TOKENS,
            return_tensors="pt",
        )
        return self.model(**batch.to(self.device)).logits

    def scores(self, texts: list[str]) -> list[list[float]]:
        return self.logits(texts).softmax(dim=-1).tolist()
