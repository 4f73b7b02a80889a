"""all-MiniLM-L6-v2 as ONNX, for ONNX Runtime: from the Hugging Face folder that scripts/fetch-models.sh brings.

The graph is what ONNX Runtime's own transformer optimizer makes of an exported BERT: its fused operators
EmbedLayerNormalization, Attention, SkipLayerNormalization and BiasGelu, with erf; then the mean over the tokens and
length 1. float32. quantize() makes the dynamic int8 copy that its quantizer makes (weights per output column)."""
import json
import os
import struct

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def read_safetensors(path):
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data, np.float32, (end - begin) // 4, 8 + length + begin).reshape(entry["shape"])
    return tensors


def build(folder, path):
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    weights = read_safetensors(os.path.join(folder, "model.safetensors"))
    heads, layers, eps = config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
    initializers, nodes = {}, []

    def constant(name, value):
        initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(op, inputs, outputs, domain="", **attributes):
        nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def norm(prefix):
        return [constant(prefix + ".weight", weights[prefix + ".weight"]),
                constant(prefix + ".bias", weights[prefix + ".bias"])]

    microsoft = "com.microsoft"
    embeddings = "embeddings."
    node("EmbedLayerNormalization",
         ["input_ids", "", constant("words", weights[embeddings + "word_embeddings.weight"]),
          constant("positions", weights[embeddings + "position_embeddings.weight"] +
                   weights[embeddings + "token_type_embeddings.weight"][0]), "",
          *norm(embeddings + "LayerNorm"), "attention_mask"], ["x0", "lengths"], microsoft, epsilon=eps)
    x = "x0"
    for i in range(layers):
        p = f"encoder.layer.{i}."
        names = [p + "attention.self." + part for part in ("query", "key", "value")]
        qkv = constant(p + "qkv", np.concatenate([weights[n + ".weight"].T for n in names], axis=1))
        bias = constant(p + "qkv.bias", np.concatenate([weights[n + ".bias"] for n in names]))
        y = node("Attention", [x, qkv, bias, "lengths"], [p + "mixed"], microsoft, num_heads=heads)
        y = node("MatMul", [y, constant(p + "out", weights[p + "attention.output.dense.weight"].T)], [p + "attended"])
        y = node("SkipLayerNormalization",
                 [y, x, *norm(p + "attention.output.LayerNorm"),
                  constant(p + "out.bias", weights[p + "attention.output.dense.bias"])], [p + "y"], microsoft,
                 epsilon=eps)
        z = node("MatMul", [y, constant(p + "up", weights[p + "intermediate.dense.weight"].T)], [p + "z"])
        z = node("BiasGelu", [z, constant(p + "up.bias", weights[p + "intermediate.dense.bias"])], [p + "gelu"],
                 microsoft)
        z = node("MatMul", [z, constant(p + "down", weights[p + "output.dense.weight"].T)], [p + "down.y"])
        x = node("SkipLayerNormalization",
                 [z, y, *norm(p + "output.LayerNorm"), constant(p + "down.bias", weights[p + "output.dense.bias"])],
                 [p + "x"], microsoft, epsilon=eps)
    mask = node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT)
    wide = node("Unsqueeze", [mask, constant("two", np.array([2], np.int64))], ["wide"])
    one = constant("one", np.array([1], np.int64))
    total = node("ReduceSum", [node("Mul", [x, wide], ["masked"]), one], ["total"], keepdims=0)
    count = node("ReduceSum", [mask, one], ["count"], keepdims=1)
    node("LpNormalization", [node("Div", [total, count], ["mean"])], ["vector"], axis=1, p=2)
    graph = helper.make_graph(
        nodes, "all-MiniLM-L6-v2",
        [helper.make_tensor_value_info(n, TensorProto.INT32, ["batch", "tokens"])
         for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", config["hidden_size"]])],
        list(initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(microsoft, 1)])
    model.ir_version = 8
    onnx.save(model, path)


def quantize(path, to):
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(path, to, op_types_to_quantize=["MatMul", "Attention"], per_channel=True,
                     weight_type=QuantType.QInt8, extra_options={'DefaultTensorType': TensorProto.FLOAT})
