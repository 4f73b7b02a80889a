#!/usr/bin/env python3
"""Writes a Llama-type decoder with random weights as a Hugging Face folder, for measuring speed and memory at a size:

  scripts/make-random-decoder.py FOLDER --layers 24 --width 1024 --inner 2816 --heads 16 --kv-heads 8 --vocabulary 32000
  sluice import FOLDER -o model.safetensors

config.json, model.safetensors (bf16) and a byte-level tokenizer.json: any text goes in, what comes out means nothing.
The same arguments give the same bytes. Python's standard library is all that is needed."""
import argparse
import json
import os
import random
import sys

PIECE = 1 << 24


def byte_characters():
    """The characters that byte-level BPE writes bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, spare = {}, 256
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(spare)
            spare += 1
    return [table[b] for b in range(256)]


def tokenizer(vocabulary):
    letters = byte_characters()
    special = ["<s>", "</s>"]
    tokens = special + letters + [letters[32] + "t"]
    # The rest of the vocabulary is never reached: nothing merges into it.
    pairs = (a + b for a in letters for b in letters)
    while len(tokens) < vocabulary:
        pair = next(pairs)
        if pair != letters[32] + "t":
            tokens.append(pair)
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(special)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": level, "post_processor": level, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [letters[32] + " t"]}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    for name, value in (("layers", 24), ("width", 1024), ("inner", 2816), ("heads", 16), ("kv-heads", 8),
                        ("vocabulary", 32000), ("context", 2048), ("seed", 1)):
        parser.add_argument("--" + name, type=int, default=value)
    o = parser.parse_args()
    if min(o.layers, o.width, o.inner, o.heads, o.kv_heads) < 1 or o.width % o.heads or o.heads % o.kv_heads:
        sys.exit("make-random-decoder.py: expected heads that divide the width, and kv-heads that divide the heads")
    if not 259 <= o.vocabulary <= 65536:
        sys.exit("make-random-decoder.py: expected a vocabulary of 259 to 65536")
    kv = o.width // o.heads * o.kv_heads
    shapes = {"model.embed_tokens.weight": [o.vocabulary, o.width]}
    for i in range(o.layers):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": [o.width], p + "self_attn.q_proj.weight": [o.width, o.width],
                   p + "self_attn.k_proj.weight": [kv, o.width], p + "self_attn.v_proj.weight": [kv, o.width],
                   p + "self_attn.o_proj.weight": [o.width, o.width], p + "post_attention_layernorm.weight": [o.width],
                   p + "mlp.gate_proj.weight": [o.inner, o.width], p + "mlp.up_proj.weight": [o.inner, o.width],
                   p + "mlp.down_proj.weight": [o.width, o.inner]}
    shapes |= {"model.norm.weight": [o.width], "lm_head.weight": [o.vocabulary, o.width]}
    header, at = {}, 0
    for name, shape in shapes.items():
        count = 1
        for n in shape:
            count *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": o.width,
              "intermediate_size": o.inner, "num_hidden_layers": o.layers, "num_attention_heads": o.heads,
              "num_key_value_heads": o.kv_heads, "vocab_size": o.vocabulary, "max_position_embeddings": o.context,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
              "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"}
    os.makedirs(o.folder, exist_ok=True)
    for name, value in (("config.json", config), ("tokenizer.json", tokenizer(o.vocabulary))):
        with open(os.path.join(o.folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False)
    numbers = random.Random(o.seed)
    # bf16: the low byte (end of the exponent, mantissa) is free, the high one leaves 2^-7 to 2^-5, some 0.017 as usual.
    high = bytes(0x3C if b < 128 else 0xBC for b in range(256))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = os.path.join(o.folder, "model.safetensors")
    with open(path + ".part", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            left = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
            if len(entry["shape"]) == 1:
                file.write(b"\x80\x3f" * left)
                continue
            while left:
                count = min(left, PIECE)
                piece = bytearray(2 * count)
                piece[0::2] = numbers.randbytes(count)
                piece[1::2] = numbers.randbytes(count).translate(high)
                file.write(piece)
                left -= count
    os.replace(path + ".part", path)
    print(f"{o.folder}: {sum(e['data_offsets'][1] - e['data_offsets'][0] for e in header.values()) // 2:,} parameters")


main()
