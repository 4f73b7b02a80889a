#!/usr/bin/env python3
"""Writes the golden files of mixtures of experts (mixtral, qwen2_moe, qwen3_moe) and of picture classifiers (vit,
deit, deit_distilled): the published definitions in numpy and double precision, written without a look at Sluice's code.
Before that it computes llama.json, qwen2.json, qwen3.json and mistral.json, which transformers itself made, and
compares.

    pip install numpy && tests/golden/huggingface/make_numpy.py

Weights come from names as in make.py.
"""
import json
import math
import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
SPREAD = 0.25
IDS = [3, 17, 39, 0, 8, 8, 21, 33, 5, 12, 30, 1, 26, 14]


def values(name, shape):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.uint64(h) + np.arange(count, dtype=np.uint64)
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(57)).astype(np.float64) / 128 - 0.5
    norm = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
    return (1 + u if norm else SPREAD * u).reshape(shape)


class Tensors:
    """Remembers the shape of every tensor that was asked for."""

    def __init__(self):
        self.shapes = {}

    def __call__(self, name, *shape):
        assert self.shapes.setdefault(name, list(shape)) == list(shape)
        return values(name, shape)

    def linear(self, name, x, out, bias):
        y = x @ self(name + ".weight", out, x.shape[-1]).T
        return y + self(name + ".bias", out) if bias else y


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, t, name, eps):
    centered = x - x.mean(-1, keepdims=True)
    unit = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    return unit * t(name + ".weight", x.shape[-1]) + t(name + ".bias", x.shape[-1])


def rope(x, base):
    """[tokens, heads, width]; pairs are half a head apart."""
    # transformers keeps frequencies in single precision
    half = x.shape[-1] // 2
    frequency = (1.0 / base ** (np.arange(half, dtype=np.float32) * np.float32(2) / np.float32(x.shape[-1]))).astype(np.float32)
    angle = np.arange(x.shape[0], dtype=np.float32)[:, None] * frequency
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q, k, v, causal, window=0):
    """[tokens, heads, width] each; several heads of q share one of k and v."""
    k, v = (np.repeat(y, q.shape[1] // y.shape[1], 1) for y in (k, v))
    score = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    i, j = np.arange(q.shape[0])[:, None], np.arange(k.shape[0])[None, :]
    if causal:
        score = np.where((j > i) | ((window > 0) & (j <= i - window)), -np.inf, score)
    return np.einsum("hqk,khd->qhd", softmax(score), v).reshape(q.shape[0], -1)


def gated(t, name, x, inner, parts, bias=False):
    gate, up, down = parts
    h = silu(t.linear(f"{name}.{gate}", x, inner, bias)) * t.linear(f"{name}.{up}", x, inner, bias)
    return t.linear(f"{name}.{down}", h, x.shape[-1], bias)


def mixture(t, path, x, c, kind):
    mixtral = kind == "MixtralForCausalLM"
    name = path + (".block_sparse_moe" if mixtral else ".mlp")
    count = c["num_local_experts" if mixtral else "num_experts"]
    inner = c["intermediate_size" if mixtral else "moe_intermediate_size"]
    parts = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    share = softmax(t.linear(name + ".gate", x, count, False))
    chosen = np.argsort(-share, -1, kind="stable")[:, : c["num_experts_per_tok"]]
    outputs = np.stack([gated(t, f"{name}.experts.{e}", x, inner, parts) for e in range(count)], 1)
    y = np.zeros_like(x)
    for row in range(x.shape[0]):
        weight = share[row, chosen[row]]
        if mixtral or c.get("norm_topk_prob", False):
            weight = weight / weight.sum()
        y[row] = weight @ outputs[row, chosen[row]]
    if kind == "Qwen2MoeForCausalLM":
        shared = gated(t, name + ".shared_expert", x, c["shared_expert_intermediate_size"], parts)
        y += sigmoid(t.linear(name + ".shared_expert_gate", x, 1, False)) * shared
    return y


def decoder(c, ids):
    t, kind = Tensors(), c["architectures"][0]
    hidden, heads, kv_heads = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    width, eps = c.get("head_dim") or hidden // heads, c["rms_norm_eps"]
    base = c.get("rope_theta") or c.get("rope_parameters", {}).get("rope_theta", 10000.0)
    qwen2, bias = kind.startswith("Qwen2"), c.get("attention_bias", False)
    words = t("model.embed_tokens.weight", c["vocab_size"], hidden)
    x = words[ids]
    for i in range(c["num_hidden_layers"]):
        path = f"model.layers.{i}"
        self = path + ".self_attn"
        h = rms_norm(x, t(path + ".input_layernorm.weight", hidden), eps)
        q, k, v = (t.linear(f"{self}.{n}_proj", h, m * width, qwen2 or bias).reshape(len(ids), m, width)
                   for n, m in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
        if kind.startswith("Qwen3"):
            q, k = rms_norm(q, t(self + ".q_norm.weight", width), eps), rms_norm(k, t(self + ".k_norm.weight", width), eps)
        window = c.get("sliding_window") or 0
        if not kind.startswith("Mi"):
            window = window if c.get("use_sliding_window") and i >= c.get("max_window_layers", 28) else 0
        x = x + t.linear(self + ".o_proj", attention(rope(q, base), rope(k, base), v, True, window), hidden, bias)
        z = rms_norm(x, t(path + ".post_attention_layernorm.weight", hidden), eps)
        sparse = "num_experts_per_tok" in c and (i + 1) % c.get("decoder_sparse_step", 1) == 0 and i not in c.get("mlp_only_layers", [])
        if sparse:
            x = x + mixture(t, path, z, c, kind)
        else:
            x = x + gated(t, path + ".mlp", z, c["intermediate_size"], ("gate_proj", "up_proj", "down_proj"), c.get("mlp_bias", False))
    x = rms_norm(x, t("model.norm.weight", hidden), eps)
    logits = x @ words.T if c["tie_word_embeddings"] else t.linear("lm_head", x, c["vocab_size"], False)
    return t.shapes, logits


def picture(c):
    shape = (c["num_channels"], c["image_size"], c["image_size"])
    return values("picture", shape) / SPREAD * 2


def vit(c, pixels):
    t, kind = Tensors(), c["architectures"][0]
    family = "deit" if kind.startswith("DeiT") else "vit"
    distilled = kind == "DeiTForImageClassificationWithTeacher"
    hidden, heads, size, eps = c["hidden_size"], c["num_attention_heads"], c["patch_size"], c["layer_norm_eps"]
    name = family + ".embeddings"
    weight = t(name + ".patch_embeddings.projection.weight", hidden, c["num_channels"], size, size)
    side = c["image_size"] // size
    patches = pixels.reshape(c["num_channels"], side, size, side, size).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = patches @ weight.reshape(hidden, -1).T + t(name + ".patch_embeddings.projection.bias", hidden)
    tokens = [t(name + ".cls_token", 1, 1, hidden)[0]]
    if family == "deit":
        tokens.append(t(name + ".distillation_token", 1, 1, hidden)[0])
    x = np.concatenate(tokens + [x]) + t(name + ".position_embeddings", 1, side * side + len(tokens), hidden)[0]
    for i in range(c["num_hidden_layers"]):
        path = f"{family}.encoder.layer.{i}"
        h = layer_norm(x, t, path + ".layernorm_before", eps)
        q, k, v = (t.linear(f"{path}.attention.attention.{n}", h, hidden, c.get("qkv_bias", True)).reshape(len(x), heads, -1)
                   for n in ("query", "key", "value"))
        x = x + t.linear(path + ".attention.output.dense", attention(q, k, v, False), hidden, True)
        h = layer_norm(x, t, path + ".layernorm_after", eps)
        h = gelu(t.linear(path + ".intermediate.dense", h, c["intermediate_size"], True))
        x = x + t.linear(path + ".output.dense", h, hidden, True)
    x = layer_norm(x, t, family + ".layernorm", eps)
    labels = len(c["id2label"])
    if distilled:
        logits = (t.linear("cls_classifier", x[0], labels, True) + t.linear("distillation_classifier", x[1], labels, True)) / 2
    else:
        logits = t.linear("classifier", x[0], labels, True)
    return t.shapes, logits


def rounded(array):
    return [float(f"{x:.7g}") for x in np.asarray(array).reshape(-1)]


def check():
    for name in ("llama", "qwen2", "qwen3", "mistral"):
        with open(os.path.join(HERE, name + ".json")) as file:
            golden = json.load(file)
        shapes, logits = decoder(golden["config"], golden["ids"])
        assert {n: s for n, s in shapes.items()} == golden["tensors"], name
        expected = np.array(golden["logits"])
        error = np.abs(logits.reshape(-1) - expected).max() / np.abs(expected).max()
        assert error < 1e-6, (name, error)


DECODER = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=64, hidden_act="silu", rms_norm_eps=1e-5,
               bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
PICTURE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=12,
               patch_size=4, num_channels=3, hidden_act="gelu", layer_norm_eps=1e-12, qkv_bias=True,
               id2label={str(i): f"class {i}" for i in range(5)})
DECODERS = {
    "mixtral": dict(DECODER, architectures=["MixtralForCausalLM"], num_local_experts=4, num_experts_per_tok=2,
                    rope_theta=1e6, sliding_window=None),
    "qwen2_moe": dict(DECODER, architectures=["Qwen2MoeForCausalLM"], num_experts=5, num_experts_per_tok=2,
                      moe_intermediate_size=24, shared_expert_intermediate_size=40, norm_topk_prob=False,
                      decoder_sparse_step=1, mlp_only_layers=[0], num_hidden_layers=3),
    "qwen3_moe": dict(DECODER, architectures=["Qwen3MoeForCausalLM"], head_dim=16, num_experts=4,
                      num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1,
                      mlp_only_layers=[], tie_word_embeddings=True),
}
PICTURES = {
    "vit": dict(PICTURE, architectures=["ViTForImageClassification"]),
    "deit": dict(PICTURE, architectures=["DeiTForImageClassification"]),
    "deit_distilled": dict(PICTURE, architectures=["DeiTForImageClassificationWithTeacher"], qkv_bias=False),
}


def write(name, document):
    with open(os.path.join(HERE, name + ".json"), "w") as file:
        json.dump(document, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    check()
    for name, config in DECODERS.items():
        shapes, logits = decoder(config, IDS)
        write(name, dict(config=config, spread=SPREAD, tensors=shapes, ids=IDS, logits=rounded(logits)))
    for name, config in PICTURES.items():
        pixels = picture(config)
        shapes, logits = vit(config, pixels)
        write(name, dict(config=config, spread=SPREAD, tensors=shapes, pixels=rounded(pixels), logits=rounded(logits)))
