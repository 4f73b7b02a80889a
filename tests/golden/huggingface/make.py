#!/usr/bin/env python3
"""Writes <case>.json beside itself: tiny models of each architecture and what the transformers library computes with
them, in double precision. Needs: pip install torch transformers (made with torch 2.15, transformers 5.23).

Weights are not stored but made from their names, here and in sluice/bundle/import/testing.h: element i of a tensor is
offset + spread * u, u = (splitmix64(fnv1a64(name) + i) >> 57) / 128 - 0.5, which f32, f16 and bf16 hold exactly;
norms have offset 1 and spread 1, everything else offset 0 and the spread of the file.
"""
import json
import os

import numpy as np
import torch
import transformers

SPREAD = 0.25
IDS = [3, 17, 39, 0, 8, 8, 21, 33, 5, 12, 30, 1, 26, 14]


def splitmix64(x):
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def fnv1a64(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def is_norm(name):
    return name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)


def values(name, shape):
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = splitmix64(np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64))
    u = (z >> np.uint64(57)).astype(np.float64) / 128 - 0.5
    return (1 + u if is_norm(name) else SPREAD * u).reshape(shape)


def rounded(array):
    return [float(f"{x:.7g}") for x in np.asarray(array).reshape(-1)]


DECODER = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=64, hidden_act="silu", rms_norm_eps=1e-5,
               bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
LONG = dict(original_max_position_embeddings=16, factor=4.0)
ENCODER = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
               max_position_embeddings=20, hidden_act="gelu", layer_norm_eps=1e-12)
# name: (configuration class, architecture, fields, write them as new versions of transformers do)
CASES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM",
              dict(DECODER, attention_bias=True, mlp_bias=True, rope_theta=500.0), False),
    "llama_linear": ("LlamaConfig", "LlamaForCausalLM",
                     dict(DECODER, num_key_value_heads=4, rope_scaling=dict(type="linear", factor=2.5)), False),
    "llama_dynamic": ("LlamaConfig", "LlamaForCausalLM",
                      dict(DECODER, rope_theta=1000.0, rope_scaling=dict(rope_type="dynamic", factor=2.0)), False),
    "llama_llama3": ("LlamaConfig", "LlamaForCausalLM",
                     dict(DECODER, rope_theta=100.0, tie_word_embeddings=True,
                          rope_scaling=dict(LONG, rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)), False),
    "llama_yarn": ("LlamaConfig", "LlamaForCausalLM",
                   dict(DECODER, rope_theta=50.0, rope_scaling=dict(LONG, rope_type="yarn")), True),
    "mistral": ("MistralConfig", "MistralForCausalLM", dict(DECODER, head_dim=12, sliding_window=5), True),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM",
              dict(DECODER, tie_word_embeddings=True, use_sliding_window=True, sliding_window=4, max_window_layers=1),
              False),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", dict(DECODER, head_dim=16, rope_theta=1e6), True),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel",
             dict(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, activation_function="gelu_new",
                  bos_token_id=1, eos_token_id=2, tie_word_embeddings=True), False),
    "bert": ("BertConfig", "BertModel", dict(ENCODER, type_vocab_size=2, pad_token_id=0), False),
    "roberta": ("RobertaConfig", "RobertaModel", dict(ENCODER, type_vocab_size=1, pad_token_id=1), False),
}


def make(config_class, architecture, fields, new):
    ids = [9 if i == fields.get("pad_token_id") else i for i in IDS]  # no tokenizer puts padding between words
    config = getattr(transformers, config_class)(**json.loads(json.dumps(fields)), attn_implementation="eager")
    model = getattr(transformers, architecture)(config).double().eval()
    state = model.state_dict()
    tied = fields.get("tie_word_embeddings", False)
    shapes = {n: list(t.shape) for n, t in state.items()
              if t.is_floating_point() and not (tied and n == "lm_head.weight")}
    loaded = {n: torch.from_numpy(values(n, s)) for n, s in shapes.items()}
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    assert not unexpected, unexpected
    assert all("position_ids" in n or "token_type_ids" in n or (tied and n == "lm_head.weight") for n in missing), missing
    if tied:
        model.tie_weights()
    # The generator of angles keeps single precision; what it holds is made from the configuration.
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]))
    rows = output.logits if hasattr(output, "logits") else output.last_hidden_state
    written = dict(fields)
    if new:
        written = {k: v for k, v in config.to_dict().items() if k in fields or k in ("rope_parameters", "layer_types")}
    written["architectures"] = [architecture]
    result = dict(config=written, spread=SPREAD, tensors=shapes, ids=ids)
    if hasattr(output, "logits"):
        result["logits"] = rounded(rows[0])
    else:
        result["mean"] = rounded(rows[0].mean(0))
        result["first"] = rounded(rows[0, 0])
        result["normalized"] = rounded(torch.nn.functional.normalize(rows[0].mean(0), dim=0))
    return result


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    for name, case in CASES.items():
        with open(os.path.join(here, name + ".json"), "w") as file:
            json.dump(make(*case), file, separators=(",", ":"))
            file.write("\n")
