#!/usr/bin/env python3
"""all-MiniLM-L6-v2 with half of its feed-forward neurons and attention heads: quality of retrieval before, after, and
after tuning, and the time of a text beside the whole network and ONNX Runtime.

  scripts/fetch-models.sh minilm
  bench/peers/setup.sh onnxruntime
  bench/peers/minilm_pruned.py --out docs/results [--steps 1500]

Neurons and heads go by what calibration texts make of them (prune:score=activation), then their rows and columns
(slice-channels); the rest learns from the whole network (sluice tune) on texts that the test set does not have
(make-retrieval-set.py --others: meanings of WordNet and pages of the Python documentation that are in no query and no
document). nDCG@10 and recall@10 are those of the whole retrieval test set. Times are interleaved in one run."""
import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import minilm
import race


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the report")
    parser.add_argument("--folder", help="where models and texts stay, and are found again: learning takes minutes; a folder "
                        "that goes by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="the small test set")
    options = parser.parse_args()
    if not os.path.exists(os.path.join(minilm.MODEL, "model.safetensors")):
        sys.exit("minilm_pruned.py: no all-MiniLM-L6-v2; get it with scripts/fetch-models.sh minilm")
    python = os.path.join(minilm.CACHE, "peers/onnxruntime/bin/python")
    if not os.path.exists(python):
        sys.exit("minilm_pruned.py: no ONNX Runtime; get it with bench/peers/setup.sh onnxruntime")
    sluice = f"{race.ROOT}/build/release/sluice"
    if not os.path.exists(sluice):
        sys.exit("minilm_pruned.py: no sluice that trains; build it with scripts/build.sh release")

    run = functools.partial(race.run_json, sluice)

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        os.makedirs(folder, exist_ok=True)
        at = lambda name: os.path.join(folder, name)
        if not os.path.exists(at("set/qrels.tsv")):
            subprocess.run([f"{race.ROOT}/scripts/make-retrieval-set.py", at("set"), "--others", at("others.txt"),
                            *(["--tiny"] if options.tiny else [])], check=True, stdout=subprocess.DEVNULL)
        samples = sum(1 for _ in open(at("others.txt"), encoding="utf-8"))
        learnt = os.path.exists(at("tuned.json"))
        if not learnt:
            run("import", minilm.MODEL, "-o", at("dense.safetensors"), "--pooling", "mean", "--normalize")
            run("transform", at("dense.safetensors"), "-o", at("half.safetensors"), "--calibrate",
                at("others.txt") + ":512", "--pass", "prune:rate=0.5,granularity=neuron,score=activation",
                "--pass", "prune:rate=0.5,granularity=head,score=activation", "--pass", "slice-channels")
            tuned = run("tune", at("half.safetensors"), "--teacher", at("dense.safetensors"), "--text", at("others.txt"),
                        "-o", at("tuned.safetensors"), "--steps", options.steps, "--batch", options.batch, "--rate",
                        options.rate, "--tokens", 128, "--device", options.device)
            with open(at("tuned.json"), "w") as file:
                json.dump({**tuned, "batch": options.batch, "rate": options.rate, "device": options.device}, file)
        with open(at("tuned.json")) as file:
            tuned = json.load(file)
        arms = []
        for name, role in (("dense", "baseline"), ("half", "control"), ("tuned", "system")):
            found = run("eval", at(name + ".safetensors"), "--retrieval", at("set"), "--threads", options.threads)["models"][0]
            inspected = run("inspect", at(name + ".safetensors"))
            metrics = {"ndcg_at_10": found["ndcg_at_10"], "recall_at_10": found["recall_at_10"],
                       "macs_per_text": found["macs_per_text"], "bytes": os.path.getsize(at(name + ".safetensors")),
                       "params": inspected["total"]["params"]}
            arms.append({"name": name, "role": role,
                         "metrics": {k: {"mean": v, "std": 0, "n": 1} for k, v in metrics.items()}})
            print(f"{name:6s} nDCG@10 {metrics['ndcg_at_10']:.4f}  recall@10 {metrics['recall_at_10']:.4f}  "
                  f"{metrics['params'] / 1e6:.1f} M parameters", flush=True)
        make = f"import sys; sys.path.insert(0, {HERE!r}); import minilm_onnx as m; sys.path.pop(0); " \
               f"m.build({minilm.MODEL!r}, {at('f32.onnx')!r})"
        subprocess.run([python, "-c", make], check=True, stderr=subprocess.DEVNULL)
        worker, own = os.path.join(HERE, "minilm.py"), ["--threads", str(options.threads), "--worker"]
        workers = [race.Worker(name, [sys.executable, worker, *own, "sluice", at(name + ".safetensors")])
                   for name in ("dense", "tuned")]
        workers.append(race.Worker("onnxruntime", [python, worker, *own, "onnxruntime", at("f32.onnx")]))
        arms.append({"name": "onnxruntime", "role": "baseline", "metrics": {}})
        for case in minilm.CASES:
            times = race.race(workers, options.rounds, case=case)
            for w in workers:
                arm = next(a for a in arms if a["name"] == w.name)
                arm["metrics"][case + "_ms"] = race.summary([s * 1e3 for s in times[w.name]])
            print(f"{case:13s}" + "".join(
                f"  {w.name} {1e3 * sorted(times[w.name])[len(times[w.name]) // 2]:.3f} ms" for w in workers), flush=True)
        for w in workers:
            w.close()
    ratio = lambda name, case, arm, bound: {
        "name": name, "claim": "half of the work is half of the time, or nearly", "arm": "tuned", "metric": case + "_ms",
        "relation": "<=", "against": {"arm": arm, "metric": case + "_ms"}, "op": "ratio", "bound": bound}
    bars = [ratio(f"{case}: time over the whole network's", case, "dense", 0.7) for case in minilm.CASES]
    bars += [ratio(f"{case}: time over ONNX Runtime's for the whole network", case, "onnxruntime", 0.7)
             for case in minilm.CASES]
    bars.append({"name": "nDCG@10 over the whole network's", "claim": "tuning brings it back to 95%", "arm": "tuned",
                 "metric": "ndcg_at_10", "relation": ">=", "against": {"arm": "dense", "metric": "ndcg_at_10"},
                 "op": "ratio", "bound": 0.95})
    document = race.report(
        "minilm-pruned", "bench/peers/minilm_pruned.py" + (f" --out {options.out}" if options.out else "") +
        (f" --steps {tuned['steps']}" if tuned["steps"] != 1500 else "") +
        (f" --device {tuned['device']}" if tuned["device"] != "cpu" else "") + (" --tiny" if options.tiny else ""),
        [f"{samples} texts to prune and learn on; the retrieval test set"], arms, bars,
        {"seconds_of_tuning": tuned["seconds"], "load_average": os.getloadavg()[0]},
        ["half of the neurons and heads of every layer; the embeddings stay whole"], options.threads)
    race.print_bars(document)
    if options.out:
        race.write(os.path.join(options.out, "minilm-pruned.json"), document)


main()
