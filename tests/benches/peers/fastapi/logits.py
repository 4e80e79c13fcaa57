"""Logits of the service's model for texts, to compare them with those of other engines.

    logits.py <folder> <text…>

Prints JSON: `[num_texts, num_labels]`. All texts are one batch, so that padding is tried too.
"""

import json
import sys

from torch_classifier import Classifier


def main():
    folder, *texts = sys.argv[1:]
    print(json.dumps(Classifier(folder).logits(texts).tolist()))


if __name__ == "__main__":
    main()
