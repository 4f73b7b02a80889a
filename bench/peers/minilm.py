#!/usr/bin/env python3
"""all-MiniLM-L6-v2 in Sluice beside ONNX Runtime and LibTorch, and the text recogniser of PP-OCRv4 beside ONNX Runtime:
one interleaved run, each engine in a process of its own.

  scripts/fetch-models.sh minilm ocr
  bench/peers/setup.sh onnxruntime libtorch
  bench/peers/minilm.py --out docs/results

Cases: one text of 16 and of 128 tokens, 32 texts of 128 tokens, and 32 texts of the lengths that the first 32 documents
of the retrieval test set have (scripts/make-retrieval-set.py; 10 to 256 tokens). ONNX Runtime and LibTorch pad a batch
to its longest text, as their users do; Sluice computes the tokens that are there. Ids are random: they do not matter
for the time, and all engines get the same. ONNX Runtime runs the fused graph of minilm_onnx.py with all optimizations,
its int8 the dynamic quantization of its own tools; LibTorch is Debian's 1.13 in plain operators. The recogniser reads one
line of 320 columns; ocr.py has what it reads."""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import race

CACHE = os.environ.get("SLUICE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sluice")
MODEL = os.path.join(CACHE, "models/minilm")
WIDTH = 384
# Tokens of every 154th of the 4,941 documents of the retrieval test set (scripts/make-retrieval-set.py), at most 256.
LENGTHS = [16, 24, 17, 10, 9, 12, 19, 13, 10, 27, 9, 13, 17, 138, 34, 73, 36, 81, 256, 92, 28, 23, 26, 20, 37, 39,
           256, 256, 175, 53, 256, 232]
CASES = {"batch1-16": [16], "batch1-128": [128], "batch32-128": [128] * 32, "batch32-real": LENGTHS}


def texts(case):
    numbers = random.Random(1)
    return [[101] + [numbers.randrange(1000, 29000) for _ in range(n - 2)] + [102] for n in CASES[case]]


def padded(samples, numpy):
    most = max(len(s) for s in samples)
    ids = numpy.zeros((len(samples), most), numpy.int32)
    mask = numpy.zeros_like(ids)
    for i, s in enumerate(samples):
        ids[i, :len(s)] = s
        mask[i, :len(s)] = 1
    return ids, mask


def timed(call, least=0.2):
    """Seconds of one call, the mean over as many as fill a moment."""
    count, begun = 0, time.perf_counter()
    while True:
        call()
        count += 1
        passed = time.perf_counter() - begun
        if passed >= least or count >= 50:
            return passed / count


def sluice_worker(path, threads):
    import sluice_library
    networks, calls = {}, {}
    begun = time.perf_counter()
    network = sluice_library.Network(path, 1, threads)
    load = time.perf_counter() - begun

    def handle(request):
        if request.get("load"):
            return {"seconds": load}
        case = request["case"]
        if case not in calls:
            samples = texts(case)
            networks[case] = network if len(samples) == 1 else sluice_library.Network(path, len(samples), threads)
            calls[case] = networks[case].prepare(samples, WIDTH * len(samples))
        call = calls[case]
        if request.get("vectors"):
            call()
            return {"vectors": list(networks[case].output)}
        return {"seconds": timed(call)}

    race.serve(handle)


def onnxruntime_worker(path, threads):
    import numpy
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    begun = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load = time.perf_counter() - begun
    feeds = {}

    def handle(request):
        if request.get("load"):
            return {"seconds": load}
        if request["case"] not in feeds:
            ids, mask = padded(texts(request["case"]), numpy)
            feeds[request["case"]] = {"input_ids": ids, "attention_mask": mask}
        feed = feeds[request["case"]]
        if request.get("vectors"):
            return {"vectors": [float(x) for x in session.run(None, feed)[0].ravel()]}
        return {"seconds": timed(lambda: session.run(None, feed))}

    race.serve(handle)


def libtorch_worker(path, threads):
    import struct
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    with open(os.path.join(path, "model.safetensors"), "rb") as file:
        data = bytearray(file.read())
    length = struct.unpack("<Q", data[:8])[0]
    w = {}
    for name, entry in json.loads(bytes(data[8:8 + length])).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            w[name] = torch.frombuffer(data, dtype=torch.float32, count=(last - first) // 4,
                                       offset=8 + length + first).reshape(entry["shape"])
    load = time.perf_counter() - begun
    places = w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[name + ".weight"], w[name + ".bias"], 1e-12)

    def forward(ids, mask):
        batch, tokens = ids.shape
        x = norm(F.embedding(ids, w["embeddings.word_embeddings.weight"]) + places[:tokens], "embeddings.LayerNorm")
        hidden = (1 - mask[:, None, None, :]) * -1e9
        for i in range(6):
            p = f"encoder.layer.{i}."
            q, k, v = (linear(x, p + "attention.self." + n).view(batch, tokens, 12, 32).transpose(1, 2)
                       for n in ("query", "key", "value"))
            mixed = torch.softmax(q @ k.transpose(2, 3) / 32 ** 0.5 + hidden, -1) @ v
            y = norm(linear(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH), p + "attention.output.dense") + x,
                     p + "attention.output.LayerNorm")
            x = norm(linear(F.gelu(linear(y, p + "intermediate.dense")), p + "output.dense") + y,
                     p + "output.LayerNorm")
        return F.normalize((x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True), dim=1)

    feeds = {}

    def handle(request):
        if request.get("load"):
            return {"seconds": load}
        if request["case"] not in feeds:
            samples = texts(request["case"])
            most = max(map(len, samples))
            feeds[request["case"]] = (torch.tensor([s + [0] * (most - len(s)) for s in samples]),
                                      torch.tensor([[1.0] * len(s) + [0.0] * (most - len(s)) for s in samples]))
        with torch.inference_mode():
            if request.get("vectors"):
                return {"vectors": forward(*feeds[request["case"]]).ravel().tolist()}
            return {"seconds": timed(lambda: forward(*feeds[request["case"]]))}

    race.serve(handle)


LINE = [1, 3, 48, 320]


def line():
    """A picture of no text: it does not matter for the time."""
    numbers = random.Random(1)
    return [numbers.uniform(-1, 1) for _ in range(LINE[1] * LINE[2] * LINE[3])]


def sluice_ocr_worker(path, threads):
    import ctypes
    import sluice_library
    network = sluice_library.Network(path, 1, threads, sequences=False)
    x, y = line(), (ctypes.c_float * (40 * 6625))()
    x = (ctypes.c_float * len(x))(*x)
    run = network.lib.sluice_run
    arguments = (network.handle, x, ctypes.c_size_t(len(x)), y, ctypes.c_size_t(len(y)), ctypes.c_int64(1))
    race.serve(lambda request: {"output": list(y)} if request.get("output") else
               {"seconds": timed(lambda: network.check(run(*arguments)))})


def onnxruntime_ocr_worker(path, threads):
    import numpy
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = numpy.array(line(), numpy.float32).reshape(LINE)
    race.serve(lambda request: {"output": [float(v) for v in session.run(None, {"x": x})[0].ravel()]}
               if request.get("output") else {"seconds": timed(lambda: session.run(None, {"x": x}))})


def ocr(model, options, sluice, python, folder):
    """Arms of the recogniser."""
    path, me = f"{folder}/ocr.safetensors", os.path.abspath(__file__)
    subprocess.run([sluice, "import", model, "-o", path, "-q", "--json", "--input", "x=" + "x".join(map(str, LINE))],
                   check=True, stdout=subprocess.DEVNULL)
    own = ["--threads", str(options.threads), "--worker"]
    workers = [race.Worker("sluice-ocr", [sys.executable, me, *own, "sluice_ocr", path]),
               race.Worker("onnxruntime-ocr", [python, me, *own, "onnxruntime_ocr", model])]
    times = race.race(workers, options.rounds)
    mine, theirs = (w.ask(output=True)["output"] for w in workers)
    largest = max(abs(a - b) for a, b in zip(mine, theirs))
    for w in workers:
        w.close()
    arms = [{"name": w.name, "role": "system" if w.name.startswith("sluice") else "baseline",
             "metrics": {"ms": race.summary([s * 1e3 for s in times[w.name]])}} for w in workers]
    arms[0]["metrics"]["largest_difference"] = {"mean": largest, "std": 0, "n": 1}
    print("ocr          " + "".join(f"  {a['name']} {a['metrics']['ms']['mean']:.3f} ms" for a in arms) +
          f"  largest difference {largest:.2e}", flush=True)
    return arms


def cosine(a, b):
    worst = 1.0
    for i in range(0, len(a), WIDTH):
        x, y = a[i:i + WIDTH], b[i:i + WIDTH]
        worst = min(worst, sum(p * q for p, q in zip(x, y)) /
                    (sum(p * p for p in x) * sum(q * q for q in y)) ** 0.5)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the report")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--without-libtorch", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return globals()[options.worker[0] + "_worker"](options.worker[1], options.threads)
    if not os.path.exists(os.path.join(MODEL, "model.safetensors")):
        sys.exit("minilm.py: no all-MiniLM-L6-v2; get it with scripts/fetch-models.sh minilm")
    python = os.path.join(CACHE, "peers/onnxruntime/bin/python")
    if not os.path.exists(python):
        sys.exit("minilm.py: no ONNX Runtime; get it with bench/peers/setup.sh onnxruntime")
    sluice = next((p for p in (f"{race.ROOT}/build/{b}/sluice" for b in ("release", "engine-only"))
                   if os.path.exists(p)), None)
    if not sluice:
        sys.exit("minilm.py: no sluice; build it with scripts/build.sh engine-only")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        make = f"import sys; sys.path.insert(0, {HERE!r}); import minilm_onnx as m; sys.path.pop(0); " \
               f"m.build({MODEL!r}, {folder + '/f32.onnx'!r}); m.quantize({folder + '/f32.onnx'!r}, {folder + '/i8.onnx'!r})"
        subprocess.run([python, "-c", make], check=True, stderr=subprocess.DEVNULL)
        for name, more in (("f32", []), ("i8", ["--dtype", "i8", "--activations", "i8"])):
            subprocess.run([sluice, "import", MODEL, "-o", f"{folder}/{name}.safetensors", "-q", "--json", *more],
                           check=True, stdout=subprocess.DEVNULL)
        me = os.path.abspath(__file__)
        own = ["--threads", str(options.threads), "--worker"]
        workers = [
            race.Worker("sluice-f32", [sys.executable, me, *own, "sluice", f"{folder}/f32.safetensors"]),
            race.Worker("sluice-i8", [sys.executable, me, *own, "sluice", f"{folder}/i8.safetensors"]),
            race.Worker("onnxruntime-f32", [python, me, *own, "onnxruntime", f"{folder}/f32.onnx"]),
            race.Worker("onnxruntime-i8", [python, me, *own, "onnxruntime", f"{folder}/i8.onnx"])]
        if not options.without_libtorch:
            # Debian's OpenBLAS does not know newer cores unless told.
            workers.append(race.Worker("libtorch-f32", ["/usr/bin/python3", me, *own, "libtorch", MODEL],
                                       {"OPENBLAS_CORETYPE": "SKYLAKEX"}))
        # A file that was just written is in the page cache, as a model in use is.
        arms = [{"name": w.name, "role": "system" if w.name.startswith("sluice") else "baseline",
                 "metrics": {"load_ms": race.summary([w.ask(load=True)["seconds"] * 1e3])}} for w in workers]
        reference = None
        for case in options.cases.split(","):
            times = race.race(workers, options.rounds, case=case)
            vectors = {w.name: w.ask(case=case, vectors=True)["vectors"] for w in workers}
            reference = vectors["onnxruntime-f32"]
            for arm in arms:
                arm["metrics"][case + "_ms"] = race.summary([s * 1e3 for s in times[arm["name"]]])
                arm["metrics"][case + "_cosine"] = {"mean": cosine(vectors[arm["name"]], reference), "std": 0, "n": 1}
            print(f"{case:13s}" + "".join(
                f"  {a['name']} {a['metrics'][case + '_ms']['mean']:.3f} ms (cos {a['metrics'][case + '_cosine']['mean']:.5f})"
                for a in arms), flush=True)
        for w in workers:
            w.close()
        recogniser = os.path.join(CACHE, "models/ocr/ch_PP-OCRv4_rec_infer.onnx")
        if os.path.exists(recogniser):
            arms += ocr(recogniser, options, sluice, python, folder)
        else:
            print("no PP-OCRv4; get it with scripts/fetch-models.sh ocr")
    bars = []
    for case in options.cases.split(","):
        for kind, bound in (("f32", 1.0), ("i8", 1.0)):
            bars.append({"name": f"MiniLM {kind} {case}: time of ONNX Runtime over Sluice's",
                         "claim": "at least as fast in f32, faster in int8", "arm": "onnxruntime-" + kind,
                         "metric": case + "_ms", "relation": ">=", "against": {"arm": "sluice-" + kind,
                                                                               "metric": case + "_ms"},
                         "op": "ratio", "bound": bound})
        bars.append({"name": f"MiniLM f32 {case}: same vectors", "claim": "cosine to ONNX Runtime's", "arm": "sluice-f32",
                     "metric": case + "_cosine", "relation": ">=", "against": None, "op": "value", "bound": 0.9999})
        bars.append({"name": f"MiniLM {case}: time of Sluice's f32 over its int8", "claim": "int8 is faster than f32",
                     "arm": "sluice-f32", "metric": case + "_ms", "relation": ">=",
                     "against": {"arm": "sluice-i8", "metric": case + "_ms"}, "op": "ratio", "bound": 1.0})
    if any(a["name"] == "sluice-ocr" for a in arms):
        bars.append({"name": "recogniser: time of ONNX Runtime over Sluice's", "claim": "at least as fast in f32",
                     "arm": "onnxruntime-ocr", "metric": "ms", "relation": ">=",
                     "against": {"arm": "sluice-ocr", "metric": "ms"}, "op": "ratio", "bound": 1.0})
        bars.append({"name": "recogniser: largest difference", "claim": "the same output", "arm": "sluice-ocr",
                     "metric": "largest_difference", "relation": "<=", "against": None, "op": "value", "bound": 1e-4})
    bars.append({"name": "load of a mapped bundle, ms", "claim": "below 50 ms", "arm": "sluice-f32", "metric": "load_ms",
                 "relation": "<=", "against": None, "op": "value", "bound": 50})
    document = race.report(
        "peer-onnxruntime", "bench/peers/minilm.py" + (f" --out {options.out}" if options.out else ""),
        ["random ids; lengths of 32 documents of the retrieval test set; a line of random pixels"], arms, bars,
        {"load_average_before": load, "load_average_after": os.getloadavg()[0]}, ["ONNX Runtime 1.32 with fused BERT operators, int8 by its dynamic quantization; LibTorch 1.13 of Debian, "
         "OpenBLAS told to use its AVX-512 kernels", "batch32-real: Sluice computes the tokens that are there, the "
         "others pad to the longest text"], options.threads)
    for arm in (a for a in arms if "load_ms" in a["metrics"]):
        print(f"load {arm['name']}: {arm['metrics']['load_ms']['mean']:.1f} ms")
    race.print_bars(document)
    if options.out:
        race.write(os.path.join(options.out, "peer-onnxruntime.json"), document)


if __name__ == "__main__":
    main()
