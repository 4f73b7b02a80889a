#!/usr/bin/env python3
"""make.py FOLDER: writes golden.json beside itself: what all-MiniLM-L6-v2 in FOLDER (scripts/fetch-models.sh minilm)
gives for a few sentences, by the transformers and tokenizers libraries in double precision: the mean of the last layer over all
tokens, scaled to length 1. Needs: pip install torch transformers (made with torch 2.15, transformers 5.23)."""
import hashlib
import json
import os
import sys

import tokenizers
import torch
import transformers

SENTENCES = [
    "That is a happy person.",
    "A man is eating pasta while the café plays jazz; it's raining in São Paulo, 北京 and everywhere else!",
    "How do I sort a list of dictionaries by a value of the dictionary in Python?",
    "yes",
    " ".join(["The engine computes only what each input needs, and turns every skipped operation into time."] * 12),
]

folder = sys.argv[1]
tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(256)
model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True)
model = model.double().eval()
with open(os.path.join(folder, "model.safetensors"), "rb") as file:
    digest = hashlib.sha256(file.read()).hexdigest()
texts = []
for text in SENTENCES:
    ids = tokenizer.encode(text).ids
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    vector = torch.nn.functional.normalize(rows.mean(0), dim=0)
    texts.append(dict(text=text, ids=ids, embedding=[float(f"{x:.6g}") for x in vector.tolist()]))
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json"), "w") as file:
    json.dump(dict(model="all-MiniLM-L6-v2", sha256=digest, texts=texts), file, ensure_ascii=False,
              separators=(",", ":"))
    file.write("\n")
