#!/usr/bin/env python3
"""Writes blocks.gguf with the reference's own writer and dequantization: of every tensor type that is read, a tensor
with random blocks and beside it, as NAME.f32, the values they stand for.

    pip install gguf && tests/golden/gguf/make.py
"""
import os

import gguf
import numpy as np

ROWS, COLUMNS = 3, 512
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"]
# Where the f16 scales are in a block, and how many bytes it has: random ones would be NaN now and then.
SCALES = {"Q4_0": ([0], 18), "Q4_1": ([0, 2], 20), "Q8_0": ([0], 34), "Q4_K": ([0, 2], 144), "Q6_K": ([208], 210)}


def blocks(name, rng):
    if name in ("F16", "BF16"):
        values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        if name == "F16":
            return values.astype(np.float16).view(np.uint8)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    places, size = SCALES[name]
    kind = gguf.GGMLQuantizationType[name]
    count = COLUMNS // gguf.GGML_QUANT_SIZES[kind][0]
    data = rng.integers(0, 256, (ROWS, count, size), dtype=np.uint8)
    if name == "Q8_0":
        data[data == 0x80] = 0x81  # llama.cpp never writes the code -128
    for place in places:
        scale = (rng.standard_normal((ROWS, count)) * 0.01).astype(np.float16)
        data[:, :, place : place + 2] = scale.reshape(ROWS, count, 1).view(np.uint8)
    return data.reshape(ROWS, count * size)


def main():
    rng = np.random.default_rng(7)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("test.u32", 7)
    writer.add_int8("test.i8", -3)
    writer.add_uint64("test.u64", 1 << 40)
    writer.add_float32("test.f32", 1e-5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.text", "Grüße")
    writer.add_array("test.texts", ["a", "", "bc"])
    writer.add_array("test.integers", [3, -1, 4])
    writer.add_array("test.nested", [[1, 2], [3, 4]])
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        data = blocks(name, rng)
        values = gguf.dequantize(data, kind).reshape(ROWS, COLUMNS)
        writer.add_tensor(name, data, raw_dtype=kind)
        writer.add_tensor(name + ".f32", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
