#!/usr/bin/env python3
"""A Llama-type decoder with random weights in Sluice beside llama.cpp as npm's node-llama-cpp has it: one interleaved
run on the same GGUF files, each engine in a process of its own.

  bench/peers/setup.sh llama-cpp
  bench/peers/llama_cpp.py --out docs/results
  bench/peers/llama_cpp.py --model small.safetensors --tokens small.tokens --out docs/results

The second form takes a decoder that Sluice trained, in f32, and also compares perplexities on held-out ids.
Formats: f16 (Sluice: bf16, the 16 bits it has), Q8_0 and Q4_0 with the codes and scales of the file on both sides and
activations rounded to int8 on both. pp512 is a prompt of 512 tokens, tg128 128 tokens one after another; rates are the
medians of interleaved rounds. Load: from the file in the page cache to the first possible run. Peak: VmHWM."""
import argparse
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import race

CACHE = os.environ.get("SLUICE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sluice")
SIZES = {"350m": ["--layers", "24", "--width", "1024", "--inner", "2816", "--heads", "16", "--kv-heads", "8",
                  "--vocabulary", "32000"],
         "tiny": ["--layers", "2", "--width", "64", "--inner", "128", "--heads", "4", "--kv-heads", "2", "--vocabulary",
                  "400"]}
# name, type of the GGUF, how Sluice imports it, claim
FORMATS = {"f16": ("f16", ["--dtype", "bf16", "--activations", "bf16"]),
           "q8_0": ("q8_0", ["--activations", "i8"]),
           "q4_0": ("q4_0", ["--activations", "i8"])}
BLOCK = 512


def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024


def sluice_worker(path, threads, vocabulary):
    import sluice_library
    begun = time.perf_counter()
    network = sluice_library.Network(path, 1, threads, last_rows=1)
    load = time.perf_counter() - begun
    single = {}

    def feed(ids):
        network.prepare([ids], vocabulary)()

    def handle(request):
        if request.get("load"):
            return {"seconds": load, "peak": peak()}
        if request.get("score"):
            whole = single.setdefault("whole", sluice_library.Network(path, 1, threads))
            whole.reset()
            ids, loss = request["ids"], 0.0
            whole.prepare([ids], vocabulary * len(ids))()
            for i, wanted in enumerate(ids[1:]):
                row = whole.output[i * vocabulary:(i + 1) * vocabulary]
                most = max(row)
                loss += most + math.log(sum(math.exp(x - most) for x in row)) - row[wanted]
            return {"loss": loss}
        network.reset()
        ids = request["ids"]
        if request.get("generate"):
            feed(ids)
            # Which token goes in makes no difference for the time.
            call = single.setdefault("call", network.prepare([[ids[0]]], vocabulary))
            begun = time.perf_counter()
            for _ in range(request["generate"]):
                call()
            return {"seconds": time.perf_counter() - begun, "peak": peak()}
        calls = [network.prepare([ids[i:i + BLOCK]], vocabulary) for i in range(0, len(ids), BLOCK)]
        begun = time.perf_counter()
        for call in calls:
            call()
        seconds = time.perf_counter() - begun
        if request.get("logprobs"):
            logits = list(network.output)
            most = max(logits)
            total = sum(math.exp(x - most) for x in logits)
            return {"probabilities": [math.exp(x - most) / total for x in logits]}
        return {"seconds": seconds, "peak": peak()}

    race.serve(handle)


def held_out_ids(path, count):
    """Of a token file (docs/token-files.md)."""
    with open(path, "rb") as file:
        head = struct.unpack("<8sIIQQQ", file.read(40))
        if head[0] != b"SLTOKENS":
            sys.exit(f"llama_cpp.py: {path} is no token file")
        file.seek(64 + (head[5] + 7) // 8 * 8 + head[3] * head[2])
        data = file.read(min(count, head[4]) * head[2])
    return list(struct.unpack(f"<{len(data) // head[2]}{'H' if head[2] == 2 else 'I'}", data))


def divergence(p, q):
    """Kullback-Leibler, in nats, over the tokens that both give."""
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a and b)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the report")
    parser.add_argument("--size", choices=SIZES, default="350m")
    parser.add_argument("--model", help="bundle of a decoder in f32, in place of random weights")
    parser.add_argument("--tokens", help="with --model: token file whose held-out ids are scored and prompted with")
    parser.add_argument("--windows", type=int, default=8, help="of 256 held-out ids that perplexity is of")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--keep", help="folder for the models; made once, used again")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return sluice_worker(options.worker[0], options.threads, int(options.worker[1]))
    peer = os.path.join(CACHE, "peers/llama-cpp")
    if not os.path.exists(os.path.join(peer, ".complete")):
        sys.exit("llama_cpp.py: no llama.cpp; get it with bench/peers/setup.sh llama-cpp")
    sluice = next((p for p in (f"{race.ROOT}/build/{b}/sluice" for b in ("release", "engine-only"))
                   if os.path.exists(p)), None)
    if not sluice:
        sys.exit("llama_cpp.py: no sluice; build it with scripts/build.sh engine-only")
    formats = options.formats.split(",")
    temporary = tempfile.TemporaryDirectory()
    folder = options.keep or temporary.name
    os.makedirs(folder, exist_ok=True)
    if bool(options.model) != bool(options.tokens):
        sys.exit("llama_cpp.py: --model and --tokens go together")
    stem = os.path.basename(options.model).removesuffix(".safetensors") if options.model else options.size
    at = lambda name: os.path.join(folder, f"{stem}-{name}")

    def make(name, command):
        if not os.path.exists(at(name)):
            print("making", at(name), file=sys.stderr)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    about = options.model and json.loads(
        subprocess.run([sluice, "inspect", options.model, "--json"], check=True, capture_output=True).stdout)
    positions = about["provenance"][0]["options"]["context"] if options.model else 1024
    context = ["--context", str(positions), "--block", str(BLOCK)]
    if options.model:
        base = options.model
    else:
        base = at("base.safetensors")
        make("hf", [sys.executable, f"{race.ROOT}/scripts/make-random-decoder.py", at("hf"), *SIZES[options.size]])
        make("base.safetensors", [sluice, "import", at("hf"), "-o", base, "-q"])
    for name in formats:
        kind, how = FORMATS[name]
        make(name + ".gguf", [sluice, "export", base, "-o", at(name + ".gguf"), "--format", "gguf",
                              "--dtype", kind, "-q"])
        make(name + ".safetensors", [sluice, "import", at(name + ".gguf"), "-o", at(name + ".safetensors"), "-q",
                                     *context, *how])
    if options.model:
        parameters = about["total"]["params"]
        ids = held_out_ids(options.tokens, max(options.prompt, 256 * options.windows))
        windows = [ids[i * 256:(i + 1) * 256] for i in range(options.windows)]
        ids, data = ids[:options.prompt], [f"{stem}, {parameters / 1e6:.1f} M parameters, trained; held-out text"]
        vocabulary = about["outputs"][0]["shape"][-1]
    else:
        vocabulary = json.load(open(os.path.join(at("hf"), "config.json")))["vocab_size"]
        parameters = os.path.getsize(os.path.join(at("hf"), "model.safetensors")) // 2
        numbers = random.Random(1)
        ids, windows = [numbers.randrange(2, 258) for _ in range(options.prompt)], []
        data = [f"random weights, {parameters / 1e6:.0f} M parameters ({options.size}); random ids"]
    arms, bars, lines = [], [], []
    for name in formats:
        workers = [race.Worker("sluice-" + name, [sys.executable, os.path.abspath(__file__), "--threads",
                                                  str(options.threads), "--worker", at(name + ".safetensors"),
                                                  str(vocabulary)]),
                   race.Worker("llama.cpp-" + name, ["node", os.path.join(HERE, "llama_worker.mjs"), at(name + ".gguf"),
                                                     str(options.threads), "1024"], cwd=peer)]
        loads = [w.ask(load=True) for w in workers]
        prompt = race.race(workers, options.rounds, ids=ids)
        decode = race.race(workers, options.rounds, ids=ids[:16], generate=options.generate)
        p, q = (w.ask(ids=ids[:64], logprobs=True, vocabulary=vocabulary)["probabilities"] for w in workers)
        size = os.path.getsize(at(name + ".gguf"))
        for w, load in zip(workers, loads):
            rates = lambda times, count: race.summary([count / s for s in times[w.name]])
            metrics = {f"pp{options.prompt}": rates(prompt, options.prompt),
                       f"tg{options.generate}": rates(decode, options.generate),
                       "load_ms": {"mean": load["seconds"] * 1e3, "std": 0, "n": 1},
                       "peak_mib": {"mean": w.ask(load=True)["peak"] / 2 ** 20, "std": 0, "n": 1}}
            if windows:
                loss = sum(w.ask(ids=window, score=True)["loss"] for window in windows)
                scored = sum(len(window) - 1 for window in windows)
                metrics["perplexity"] = {"mean": math.exp(loss / scored), "std": 0, "n": 1}
            tg = metrics[f"tg{options.generate}"]["mean"]
            metrics["decode_gb_per_s"] = {"mean": tg * size / 1e9, "std": 0, "n": 1}
            if w.name.startswith("sluice"):
                metrics["divergence"] = {"mean": divergence(q, p), "std": 0, "n": 1}
                metrics["same_first"] = {"mean": float(p.index(max(p)) == q.index(max(x or 0 for x in q))), "std": 0,
                                         "n": 1}
            arms.append({"name": w.name, "role": "system" if w.name.startswith("sluice") else "baseline",
                         "metrics": metrics})
            print(f"{w.name:18s} pp {metrics[f'pp{options.prompt}']['mean']:8.1f} t/s   tg {tg:7.2f} t/s "
                  f"({metrics['decode_gb_per_s']['mean']:.1f} GB/s)   load {load['seconds'] * 1e3:7.1f} ms   "
                  f"peak {metrics['peak_mib']['mean']:.0f} MiB"
                  + (f"   perplexity {metrics['perplexity']['mean']:.3f}" if windows else ""), flush=True)
            w.close()
        bounds = {"f16": (1.0, 1.0), "q8_0": (1.3, 2.0), "q4_0": (1.5, 2.0)}[name]
        for metric, bound in ((f"tg{options.generate}", bounds[0]), (f"pp{options.prompt}", bounds[1])):
            bars.append({"name": f"{metric} at {name}: Sluice's rate over llama.cpp's",
                         "claim": "decoding and prompts at equal bits", "arm": "sluice-" + name, "metric": metric,
                         "relation": ">=", "against": {"arm": "llama.cpp-" + name, "metric": metric}, "op": "ratio",
                         "bound": bound})
        bars.append({"name": f"next-token divergence at {name}, nats", "claim": "the same model on both sides",
                     "arm": "sluice-" + name, "metric": "divergence", "relation": "<=", "against": None, "op": "value",
                     "bound": 0.01})
    slug = "peer-llama-cpp-trained" if options.model else "peer-llama-cpp"
    others = options.threads != os.cpu_count()
    slug += f"-threads-{options.threads}" if others else ""
    document = race.report(
        slug, "bench/peers/llama_cpp.py" + (f" --model {os.path.basename(options.model)} --tokens "
                                            f"{os.path.basename(options.tokens)}" if options.model else "")
        + (f" --threads {options.threads}" if others else "") + (f" --out {options.out}" if options.out else ""),
        data, arms, bars, {},
        ["llama.cpp of node-llama-cpp 3.22.1, CPU, prebuilt", "f16: Sluice keeps bf16, the 16-bit type it has",
         "both engines read the codes and scales of one GGUF file; activations are rounded to int8 by both"],
        options.threads)
    race.print_bars(document)
    if options.out:
        race.write(os.path.join(options.out, slug + ".json"), document)


main()
