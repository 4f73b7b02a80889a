#!/usr/bin/env python3
"""The recogniser of PP-OCRv4 in Sluice beside ONNX Runtime: are the outputs equal, and whose are nearer to those of a
computation in double precision; how many rendered lines are read, also by smaller copies; which is faster.

  scripts/fetch-models.sh ocr
  bench/peers/setup.sh onnxruntime
  bench/peers/ocr.py --out docs/results

Lines are words of Debian's licence texts in its fonts (text_lines.py). Copies: `sluice import --weights i8 --activations
i8` (weights in int8 with a scale a row or output channel, inputs rounded when they are used), the same without the
rounding of inputs (i8-weights), ONNX Runtime's dynamic int8 quantization, and one whose weights of convolutions and
linear layers are half zeros, the smallest of each layer, on both engines, not tuned; and, where this build trains, one
that lost as many (prune:rate=0.5) and then learnt from the whole (sluice tune --pictures) on lines of other texts than
those that are read. Further bundles: --copies.
Times are of one line of 320 columns, in turns, medians."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import race

CACHE = os.environ.get("SLUICE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sluice")
PYTHON = os.path.join(CACHE, "peers/onnxruntime/bin/python")
if __name__ == "__main__" and os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(PYTHON))):
    if not os.path.exists(os.path.join(CACHE, "peers/onnxruntime/.complete-2")):
        sys.exit("ocr.py: no ONNX Runtime; get it with bench/peers/setup.sh onnxruntime")
    os.execv(PYTHON, [PYTHON, os.path.abspath(__file__), *sys.argv[1:]])

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import sluice_library
import text_lines


class BatchNormalization(OpRun):
    """onnx's own mixes operator set 9's momentum into inference."""
    op_domain = ""

    def _run(self, x, scale, bias, mean, var, epsilon=None, momentum=None, **_):
        wide = (1, -1) + (1,) * (x.ndim - 2)
        return ((x - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + epsilon) * scale.reshape(wide) +
                bias.reshape(wide),)


def in_double(path):
    """The model's outputs computed by onnx's reference in float64."""
    model = onnx.load(path)

    def double(tensor):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    for tensor in model.graph.initializer:
        double(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                double(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    evaluator = ReferenceEvaluator(model, new_ops=[BatchNormalization])
    return lambda x: evaluator.run(None, {model.graph.input[0].name: x.astype(np.float64)})[0]


def halve(path, to):
    """Zeroes the smaller half of the weights of every convolution and linear layer, but of depthwise ones: they have
    few. Returns the share of zeros of all parameters."""
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors[node.output[0]] = node.attribute[0].t
    zeros = total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in tensors:
            continue
        tensor = tensors[node.input[1]]
        weight = numpy_helper.to_array(tensor).copy()
        total += weight.size
        if weight.ndim == 4 and weight.shape[1] == 1:
            continue
        order = np.argsort(np.abs(weight), axis=None, kind="stable")
        weight.ravel()[order[:weight.size // 2]] = 0
        zeros += weight.size // 2
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weight, name))
    onnx.save(model, to)
    return zeros / total


def quantize(path, to):
    """ONNX Runtime's dynamic quantization, which wants weights as initializers."""
    import logging
    from onnxruntime.quantization import QuantType, quantize_dynamic
    logging.disable(logging.WARNING)
    model = onnx.load(path)
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        model.graph.node.remove(node)
    model = onnx.version_converter.convert_version(model, 13)
    onnx.save(model, to)
    quantize_dynamic(to, to, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv", "MatMul"])


def learn(sluice, model, labels, folder, args):
    """The bundle of a copy with half of the weights that learnt from the whole network."""
    at = lambda name: os.path.join(folder, name)
    pictures = at("lines")
    os.makedirs(pictures)
    for i, (_, image) in enumerate(text_lines.lines(args.tune_lines, 1000 + args.seed, training=True)):
        image.save(os.path.join(pictures, f"{i:05d}.png"))
    quiet = lambda *words: subprocess.run([sluice, *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    quiet("import", model, "-o", at("whole.safetensors"), "--input", f"x=1x3x{text_lines.HEIGHT}x{text_lines.WIDTH}",
          "--task", "read", "--labels", labels, "--mean", "0.5", "--std", "0.5", "--bgr")
    quiet("transform", at("whole.safetensors"), "-o", at("pruned.safetensors"), "--pass", "prune:rate=0.5")
    quiet("tune", at("pruned.safetensors"), "--teacher", at("whole.safetensors"), "--pictures", pictures, "-o",
          at("half-tuned.safetensors"), "--steps", str(args.tune), "--batch", "8", "--rate", str(args.tune_rate))
    return at("half-tuned.safetensors")


def runtime(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the report")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--double", type=int, default=20, help="lines that are also computed in float64")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--build", help="build folder; default: build/release, then build/engine-only")
    parser.add_argument("--tune", type=int, default=600, help="updates of the copy that learns; 0: none")
    parser.add_argument("--tune-lines", type=int, default=2000)
    parser.add_argument("--tune-rate", type=float, default=5e-4)
    parser.add_argument("--copies", nargs="*", default=[], metavar="NAME=BUNDLE", help="further copies")
    args = parser.parse_args()
    builds = [args.build] if args.build else [os.path.join(race.ROOT, "build", b) for b in ("release", "engine-only")]
    build = next((b for b in builds if os.path.exists(os.path.join(b, "sluice"))), None)
    if not build:
        sys.exit("ocr.py: no sluice; build it with scripts/build.sh engine-only")
    os.environ.setdefault("SLUICE_LIBRARY", os.path.abspath(os.path.join(build, "lib/engine/capi/libsluice.so")))
    folder = os.path.join(CACHE, "models/ocr")
    model = os.path.join(folder, "ch_PP-OCRv4_rec_infer.onnx")
    if not os.path.exists(model):
        sys.exit("ocr.py: no PP-OCRv4; get it with scripts/fetch-models.sh ocr")
    labels = text_lines.read_labels(os.path.join(folder, "ppocr_keys_v1.txt"))
    classes = len(labels)
    runs, sizes = {}, {}
    with tempfile.TemporaryDirectory() as work:
        at = lambda name: os.path.join(work, name)
        zeros = halve(model, at("half.onnx"))
        quantize(model, at("i8.onnx"))
        for name, source in (("onnxruntime-f32", model), ("onnxruntime-i8", at("i8.onnx")),
                             ("onnxruntime-half", at("half.onnx"))):
            runs[name], sizes[name] = runtime(source, args.threads), os.path.getsize(source)
        bundles = []
        for name, source, more in (("f32", model, []), ("i8", model, ["--weights", "i8", "--activations", "i8"]),
                                   ("i8-weights", model, ["--weights", "i8"]),
                                   ("half", at("half.onnx"), [])):
            bundles.append(("sluice-" + name, at(name + ".safetensors")))
            subprocess.run([os.path.join(build, "sluice"), "import", source, "-o", bundles[-1][1], "--input",
                            f"x=1x3x{text_lines.HEIGHT}x{text_lines.WIDTH}", "--quiet", *more], check=True,
                           stdout=subprocess.DEVNULL)
        if args.tune and os.path.basename(build) == "release":
            print(f"the half copy learns: {args.tune} updates", flush=True)
            bundles.append(("sluice-half-tuned", learn(os.path.join(build, "sluice"), model,
                                                       os.path.join(folder, "ppocr_keys_v1.txt"), work, args)))
        bundles += [("sluice-" + name, path) for name, path in (c.split("=", 1) for c in args.copies)]

        def mine(path):
            network = sluice_library.Network(path, 1, args.threads, sequences=False)
            output = np.zeros((text_lines.WIDTH // 8, classes), np.float32)
            return lambda x: network.run(x, output)

        for name, path in bundles:
            runs[name], sizes[name] = mine(path), os.path.getsize(path)
        lines = text_lines.lines(args.lines, args.seed)
        exact = in_double(model)
        stats = {name: {"read": 0, "unspaced": 0, "edits": 0, "same": 0, "difference": 0.0, "double": 0.0} for name in runs}
        characters = sum(len(line) for line, _ in lines)
        for i, (line, image) in enumerate(lines):
            x = text_lines.as_input(image)
            outputs = {name: run(x) for name, run in runs.items()}
            rival = outputs["onnxruntime-f32"]
            theirs = text_lines.decode(rival, labels)
            truth = exact(x)[0] if i < args.double else None
            for name, output in outputs.items():
                text, s = text_lines.decode(output, labels), stats[name]
                s["read"] += text.rstrip() == line
                s["unspaced"] += text.replace(" ", "") == line.replace(" ", "")
                s["edits"] += text_lines.edits(line, text.rstrip())
                s["same"] += text == theirs
                s["difference"] = max(s["difference"], float(np.abs(output - rival).max()))
                if truth is not None:
                    s["double"] = max(s["double"], float(np.abs(output - truth).max()))
        times = {name: [] for name in runs}
        names = list(runs)
        for r in range(args.rounds):
            for k in range(len(names)):
                name = names[(r + k) % len(names)]
                runs[name](x)  # the caches are its own again
                begun = time.perf_counter()
                runs[name](x)
                times[name].append(time.perf_counter() - begun)
    value = lambda v: {"mean": v, "std": 0, "n": 1}
    arms = []
    for name, s in stats.items():
        arms.append({"name": name, "role": "system" if name.startswith("sluice") else "baseline", "metrics": {
            "lines_read": value(s["read"] / len(lines)), "lines_read_but_spaces": value(s["unspaced"] / len(lines)),
            "character_errors": value(s["edits"] / characters),
            "same_text": value(s["same"] / len(lines)), "largest_difference": value(s["difference"]),
            "difference_to_double": value(s["double"]), "file_mb": value(sizes[name] / 1e6),
            "ms": race.summary([1e3 * t for t in times[name]])}})
        m = arms[-1]["metrics"]
        print(f"{name:18s} lines read {m['lines_read']['mean']:.3f}, but for spaces "
              f"{m['lines_read_but_spaces']['mean']:.3f}  character errors {m['character_errors']['mean']:.4f}  "
              f"as onnxruntime {m['same_text']['mean']:.3f}  largest difference {m['largest_difference']['mean']:.2e}, to "
              f"float64 {m['difference_to_double']['mean']:.2e}  {m['file_mb']['mean']:.1f} MB  {m['ms']['mean']:.2f} ms")
    bar = lambda name, claim, arm, metric, relation, bound, against=None, op="value": {
        "name": name, "claim": claim, "arm": arm, "metric": metric, "relation": relation,
        "against": against and {"arm": against, "metric": metric}, "op": op, "bound": bound}
    bars = [
        bar("largest difference to ONNX Runtime", "the same output", "sluice-f32", "largest_difference", "<=", 1e-4),
        bar("largest difference to float64", "exact to 1e-4", "sluice-f32", "difference_to_double", "<=", 1e-4),
        bar("lines read, beside ONNX Runtime", "reads as exactly", "sluice-f32", "lines_read", ">=", 0, "onnxruntime-f32",
            "diff"),
        bar("lines read by the int8 copy, beside f32", "no more than one line in a hundred lost", "sluice-i8", "lines_read",
            ">=", -0.01, "sluice-f32", "diff"),
        bar("lines read but for spaces by the int8 copy, beside f32", "no more than two lines in a hundred lost", "sluice-i8",
            "lines_read_but_spaces", ">=", -0.02, "sluice-f32", "diff"),
        bar("time of ONNX Runtime over Sluice's, f32", "at least as fast", "onnxruntime-f32", "ms", ">=", 1, "sluice-f32",
            "ratio"),
        bar("time of Sluice's f32 over its int8", "int8 is faster", "sluice-f32", "ms", ">=", 1, "sluice-i8", "ratio"),
        bar("lines read by the int8 copy, beside ONNX Runtime's", "reads as exactly", "sluice-i8", "lines_read", ">=", 0,
            "onnxruntime-i8", "diff"),
        bar("time of ONNX Runtime over Sluice's, int8", "at least as fast", "onnxruntime-i8", "ms", ">=", 1, "sluice-i8",
            "ratio")]
    fonts = sorted({os.path.basename(p) for p in text_lines.fonts()})
    document = race.report(
        "ocr", "bench/peers/ocr.py" + (f" --seed {args.seed}" if args.seed != 1 else "") +
        (f" --out {args.out}" if args.out else ""),
        [f"{len(lines)} lines of {characters} characters, seed {args.seed}: licence texts of Debian in {', '.join(fonts)}"],
        arms, bars, {"float64_lines": args.double, "zeros_of_half": zeros, "load_average": os.getloadavg()[0]},
        [f"ONNX Runtime {onnxruntime.__version__}; float64: onnx's reference evaluator", "sluice-i8: weights in int8, "
         "inputs rounded but of depthwise and small convolutions; i8-weights: none rounded; onnxruntime-i8: its dynamic "
         "quantization", "half: half of the weights of each layer "
         "but the depthwise ones are zero, the smallest; not tuned", f"half-tuned: half of the weights of every layer; "
         f"{args.tune} updates on {args.tune_lines} lines of other texts"], args.threads)
    document["seeds"] = [args.seed]
    race.print_bars(document)
    if args.out:
        race.write(os.path.join(args.out, "ocr.json"), document)


if __name__ == "__main__":
    main()
