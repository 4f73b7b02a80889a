#!/usr/bin/env python3
"""Trains a tokenizer with the reference library: what sluice/text/train_bpe.h has to learn, too.

    pip install tokenizers
    tests/golden/tokenizers/train.py 700 LICENSE > tests/golden/tokenizers/trained.json
"""
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=int(sys.argv[1]),
    min_frequency=2,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)


def texts():
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8", newline="") as file:
            yield file.read()


tokenizer.train_from_iterator(texts(), trainer)
print(tokenizer.to_str())
